"""The other libraries.

What they are asked to run is said once, in nodes.py. Each has a module, on_<library>.py, whose
`prepare(network, threads)` returns two functions: `run`, which is timed, and `result`, which turns
what `run` returned into an NHWC array. It raises ImportError where the library is not installed and
NotImplementedError where the library lacks an operation. The libraries are imported there and not
here: it takes seconds, and the environment must be set before.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import on_ncnn, on_onnxruntime, on_openvino, on_torch
from .nodes import Network

Program = tuple[Callable[[], Any], Callable[[Any], Any]]


@dataclass(frozen=True)
class Peer:
    """A library.

    Attributes
    ----------
    package : str
        What pip installs.
    prepare : callable
        As above.
    holdable : bool
        Whether it can be held to an older instruction set; see `hold_to`.
    """

    package: str
    prepare: Callable[[Network, int], Program]
    holdable: bool = False


PEERS = {
    "torch": Peer("torch", partial(on_torch.prepare, "NHWC"), holdable=True),
    "onnxruntime": Peer("onnxruntime", on_onnxruntime.prepare),
    "openvino": Peer("openvino", on_openvino.prepare, holdable=True),
    "ncnn": Peer("ncnn", on_ncnn.prepare),
}

# The environment that holds oneDNN (in torch and in OpenVINO) and torch's own kernels to an ISA.
# SSE4.1 is the least that oneDNN has.
_LEAST = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
_HOLD = {
    "scalar": _LEAST,
    "sse2": _LEAST,
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def hold_to(isa: str, best: str) -> list[str]:
    """Hold the peers to an instruction set of convkern's, before they are imported.

    Returns
    -------
    list of str
        The peers that a comparison is fair with: all where `isa` is the CPU's best, and where that
        is amx and `isa` avx512, because no peer multiplies float32 with AMX.
    """
    if isa == best or (isa, best) == ("avx512", "amx"):
        return list(PEERS)
    os.environ.update(_HOLD.get(isa, {}))
    return [name for name, peer in PEERS.items() if peer.holdable and isa in _HOLD]
