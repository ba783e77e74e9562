"""What a call with `out` takes beside its work: no memory. bench/bench_overhead.py has its time."""

import sys
import tracemalloc

import cases
import deforming
import pooling
import pytest
from shapes import prepare

import convkern as ck

IMAGE = (1, 24, 24, 16)
# What the interpreter takes for a moment, in bytes: far less than an output, which is 30 KiB.
MOMENTARY = 1024


def example(op):
    """Make a layer and what it is called with."""
    if op in pooling.OPS:
        return prepare(pooling.pool(op, IMAGE, **{"kernel": 2} if op in pooling.WINDOWED else {}))
    if op == "deform_conv2d":
        return prepare(deforming.deform(IMAGE, outputs=16))
    layer, inputs = prepare(cases.call("conv2d" if op == "graph" else op, IMAGE, outputs=16))
    return (ck.Sequential([layer, layer]), inputs) if op == "graph" else (layer, inputs)


def taken(call):
    """Measure what a call takes for good, and at most: bytes, and blocks of the interpreter."""
    tracemalloc.start()
    try:
        for _ in range(3):  # the first makes what is made once
            blocks, (before, _) = sys.getallocatedblocks(), tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            call()
            after, peak = tracemalloc.get_traced_memory()
            more = sys.getallocatedblocks() - blocks
    finally:
        tracemalloc.stop()
    return after - before, peak - before, more


@pytest.mark.parametrize("op", [*cases.OPS, "deform_conv2d", *pooling.OPS, "graph"])
def test_a_call_with_out_allocates_nothing(op):
    layer, inputs = example(op)
    out = layer(*inputs)
    kept, peak, blocks = taken(lambda: layer(*inputs, out=out))
    assert kept <= 64  # the numbers that count it are objects too
    assert blocks <= 2
    assert peak <= MOMENTARY


def test_a_new_output_is_seen():
    layer, inputs = example("conv2d")
    outputs = []
    kept, peak, blocks = taken(lambda: outputs.append(layer(*inputs)))
    assert min(kept, peak) >= outputs[0].nbytes
    assert blocks > 0
