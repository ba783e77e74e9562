"""ncnn: a fresh extractor for each run, as it asks for; fp32 throughout."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .nodes import Conv, Deform, Network, Pool

MAGIC = "7767517"
# Parameters of a convolution that clamps by itself, or follows a sum; see ncnn's
# docs/developer-guide/operators.md.
_FUSED = {"sigmoid": "9=4", "hardswish": f"9=6 -23310=2,{1 / 6},0.5"}
_ALONE = {
    "sigmoid": "Sigmoid",
    "hardswish": f"HardSwish 0={1 / 6} 1=0.5",
    "hardsigmoid": f"HardSigmoid 0={1 / 6} 1=0.5",
    "silu": "Swish",
}


def prepare(network: Network, threads: int):
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for kind in ("fp16", "bf16"):
        for use in ("packed", "storage"):
            setattr(net.opt, f"use_{kind}_{use}", False)
    net.opt.use_fp16_arithmetic = False
    param = Param(network)
    net.load_param_mem(param.text)
    with TemporaryDirectory() as folder:
        path = Path(folder, "weights.bin")
        path.write_bytes(param.weights)
        net.load_model(str(path))
    # A Mat does not keep what it was made from.
    mats = {name: ncnn.Mat(a[0]).clone() for name, a in network.inputs.items()}

    def run():
        with net.create_extractor() as extractor:
            for name, mat in mats.items():
                extractor.input(name, mat)
            return extractor.extract(param.output)[1]

    return run, _result


def _result(mat) -> np.ndarray:
    """Copy (C, H, W), or (C,) of one pixel, to NHWC: views do not keep their memory."""
    y = np.array(mat)
    y = y[:, None, None] if y.ndim == 1 else y
    return y.transpose(1, 2, 0)


class Param:
    """A network as ncnn's param file and its weights.

    A blob has one reader; what several nodes read goes through a Split.
    """

    def __init__(self, network: Network) -> None:
        self._lines, self._blobs, self._weights = [], 0, []
        self._readers = Counter(name for node in network.nodes for name in node.inputs)
        self._readers[network.output] += 1
        self._arrays, self._vectors = {}, set()
        for name in network.inputs:
            self._layer("Input", [], [name])
            self._offer(name, name)
        for node in network.nodes:
            inputs = [self._arrays[name].pop() for name in node.inputs]
            add = self._pool if isinstance(node, Pool) else self._conv
            self._offer(node.name, add(node, inputs))
        self.output = self._arrays[network.output].pop()

    @property
    def text(self) -> str:
        return "\n".join([MAGIC, f"{len(self._lines)} {self._blobs}", *self._lines]) + "\n"

    @property
    def weights(self) -> bytes:
        return b"".join(self._weights)

    def _layer(self, kind: str, inputs: list[str], outputs: list[str]) -> str:
        """Write a layer; `kind` has its parameters after it."""
        kind, *parameters = kind.split()
        counts = [str(len(inputs)), str(len(outputs))]
        name = f"{kind}_{len(self._lines)}"
        self._lines.append(" ".join([kind, name, *counts, *inputs, *outputs, *parameters]))
        self._blobs += len(outputs)
        return outputs[0]

    def _add(self, kind: str, *inputs: str) -> str:
        return self._layer(kind, list(inputs), [f"blob_{len(self._lines)}"])

    def _offer(self, name: str, blob: str) -> None:
        """Let as many nodes as want to read an array."""
        self._arrays[name] = [blob]
        if self._readers[name] > 1:
            self._arrays[name] = [f"{blob}.{i}" for i in range(self._readers[name])]
            self._layer("Split", [blob], self._arrays[name])

    def _pool(self, node: Pool, inputs: list[str]) -> str:
        parameters = {0: int(node.kind != "max"), 4: int(node.kernel is None)}
        if node.kernel is None:  # ncnn drops the axes of one pixel
            self._vectors.add(node.name)
        else:  # 5=1: no more padding than said
            (kh, kw), (sh, sw), (top, left, bottom, right) = node.kernel, node.stride, node.pads
            parameters |= {1: kw, 11: kh, 2: sw, 12: sh, 5: 1}
            parameters |= {3: left, 14: right, 13: top, 15: bottom}
        return self._add(f"Pooling {_numbered(parameters)}", *inputs)

    def _conv(self, node: Conv, inputs: list[str]) -> str:
        x, *more = inputs
        # A tag of 0 says raw float32.
        self._weights += [np.uint32(0).tobytes(), node.w.tobytes(), node.bias.tobytes()]
        if isinstance(node, Deform):
            if (node.groups, node.offset_groups, node.activation) != (1, 1, None):
                raise NotImplementedError("ncnn has neither groups nor offset groups here")
            return self._add(f"DeformableConv2D {_window(node)}", x, *more)
        fused = "" if more else _fused(node.activation)
        y = self._add(f"{self._sums(node)} {fused}", x)
        if more:
            y = self._add("BinaryOp 0=0", y, *more)  # 0: the sum
        return y if fused or node.activation is None else self._add(_alone(node.activation), y)

    def _sums(self, node: Conv) -> str:
        if node.x in self._vectors:
            self._vectors.add(node.name)
            return f"InnerProduct 0={len(node.w)} 1=1 2={node.w.size}"
        kind = "ConvolutionDepthWise" if node.groups > 1 else "Convolution"
        return f"{kind} {_window(node)}"


def _window(node: Conv) -> str:
    (kh, kw), (dh, dw), (sh, sw) = node.kernel, node.dilation, node.stride
    top, left, bottom, right = node.pads
    parameters = {0: len(node.w), 1: kw, 11: kh, 2: dw, 12: dh, 3: sw, 13: sh, 5: 1}
    parameters |= {4: left, 15: right, 14: top, 16: bottom, 6: node.w.size, 7: node.groups}
    return _numbered(parameters)


def _fused(activation) -> str:
    """Parameters of an activation inside a convolution, or nothing where it has none."""
    if not isinstance(activation, tuple):
        return _FUSED.get(activation, "")
    return "9=1" if activation == (0, np.inf) else "9=3 -23310=2,{},{}".format(*_finite(activation))


def _alone(activation) -> str:
    if not isinstance(activation, tuple):
        return _ALONE[activation]
    return "ReLU" if activation == (0, np.inf) else "Clip 0={} 1={}".format(*_finite(activation))


def _finite(limits: tuple[float, float]) -> list[str]:
    """Write numbers that its parser reads: it knows no infinity."""
    largest = float(np.finfo(np.float32).max)
    return [f"{value:.9e}" for value in np.clip(limits, -largest, largest)]


def _numbered(parameters: dict[int, int]) -> str:
    return " ".join(f"{key}={value}" for key, value in parameters.items())
