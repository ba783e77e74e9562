"""Who is timed: convkern with each instruction set and layout, its textbook loops, and the peers.

An engine takes a case of shapes.py and returns two functions: `run`, which is timed, and `result`,
which turns what `run` returned into an NHWC array. What an engine lets one do beforehand is done
beforehand: weights packed, graph compiled, input in the engine's layout, output allocated where it
can be. All run on one thread, in float32.
"""

from dataclasses import replace
from functools import partial

import deforming
import numpy as np
import peers

import convkern as ck

LAYOUTS = ("NHWC", "NCHW")


def prepare(call):
    """Make the layer of a call, and the arrays to call it with."""
    if call.op == "deform_conv2d":
        return deforming.layer_of(call), (call.x, call.weights[0], call.options["mask"])
    return call.layer(), (call.x,)


def cost(case):
    """Ask the layer what a case costs."""
    layer, (x, *more) = prepare(case.call())
    return layer.cost(x.shape, more[0].shape, mask=True) if more else layer.cost(x.shape)


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


def peer(run, case):
    """Give a peer the call as it would have it."""
    return run(case.call(layout="NCHW"))


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
    have = peers.PEERS if op != "deform_conv2d" else peers.PEERS_THAT_DEFORM
    return engines | {name: partial(peer, run) for name, run in have.items()}
