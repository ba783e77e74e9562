"""Who is timed: convkern with each instruction set and layout, its textbook loops, and the peers.

An engine takes a case of shapes.py and returns two functions: `run`, which is timed, and `result`,
which turns what `run` returned into an NHWC array. What an engine lets one do beforehand is done
beforehand: weights packed, graph compiled, input in the engine's layout, output allocated where it
can be. All run on one thread, in float32.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from peers import nodes, on_torch
from peers.libraries import PEERS
from shapes import prepare

import convkern as ck

LAYOUTS = ("NHWC", "NCHW")


def convkern(isa, layout, case):
    """Run the layer, its weights packed once and its output reused."""
    return run_call(isa, layout, case.call(layout=layout))


def run_call(isa, layout, call):
    """Run the layer of a call in this layout."""
    with ck.use_isa(isa):
        layer, inputs = prepare(call)
    out = np.empty(layer.out_shape(call.x.shape), call.x.dtype)
    result = np.asarray if layout == "NHWC" else lambda y: y.transpose(1, 2, 0)
    return partial(layer, *inputs, out=out, threads=1), result


def naive(case):
    """Run the textbook loops."""
    return partial(case.call().run, ck.naive), np.asarray


def depthwise(case):
    """Run the depthwise layer whose kernels are column times row, on the best instruction set."""
    call = case.call()
    column, row = call.weights
    w = np.ascontiguousarray(column[:, None] * row[None])
    return run_call(ck.isa(), "NHWC", replace(call, op="depthwise_conv2d", weights=(w,)))


def peer(prepare_peer, case):
    """Give a peer the call as it would have it."""
    call = case.call(layout="NCHW")
    try:
        return prepare_peer(nodes.of_call(call, prepare(call)[0]), threads=1)
    except (ImportError, NotImplementedError) as error:
        pytest.skip(str(error))


def of(op):
    """List who has an operation: engines by name."""
    engines = {
        f"{isa}-{layout}": partial(convkern, isa, layout)
        for isa in ck.available_isas()
        for layout in LAYOUTS
    }
    if hasattr(ck.naive, op):
        engines["naive"] = naive
    if op == "spatially_separable_conv2d":
        engines["depthwise"] = depthwise
    have = {f"torch-{layout}": partial(on_torch.prepare, layout) for layout in LAYOUTS}
    have |= {name: peer.prepare for name, peer in PEERS.items() if name != "torch"}
    return engines | {name: partial(peer, run) for name, run in have.items()}
