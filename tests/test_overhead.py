"""What a call with `out` takes beside its work: no memory. bench/bench_overhead.py has its time."""

import sys
import tracemalloc
import weakref

import cases
import deforming
import numpy as np
import pooling
import pytest
from shapes import prepare

import convkern as ck
from convkern import _operation

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


def test_plans_are_few():
    w = np.ones((1, 1), np.float32)
    for width in range(1, 2 * _operation.MOST_PLANS):
        assert ck.pointwise_conv2d(np.ones((1, width, 1), np.float32), w).shape == (1, width, 1)
        assert ck.max_pool2d(np.ones((1, width, 1), np.float32), 1).shape == (1, width, 1)
        assert len(_operation._plans) <= _operation.MOST_PLANS


def test_plans_keep_no_array():
    arrays = [np.ones(shape, np.float32) for shape in [(5, 5, 3), (3, 3, 3, 4), (4,)]]
    seen = [weakref.ref(array) for array in arrays]
    ck.conv2d(*arrays)
    arrays.clear()
    assert [ref() for ref in seen] == [None] * 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plans_of_one_shape_are_apart(dtype):
    """Equal shapes mean different things to different operations."""
    x = np.ones((4, 4, 4), dtype)
    assert ck.conv2d(x, np.ones((2, 2, 4, 8), dtype)).shape == (3, 3, 8)
    assert ck.conv2d(x, np.ones((2, 2, 2, 4), dtype), groups=2).shape == (3, 3, 4)
    assert ck.depthwise_conv2d(x, np.ones((2, 2, 4, 2), dtype)).shape == (3, 3, 8)
    assert ck.depthwise_conv2d(x, np.ones((2, 2, 4, 2), dtype), stride=2).shape == (2, 2, 8)
    assert ck.max_pool2d(x, 2).shape == ck.avg_pool2d(x, 2).shape == (2, 2, 4)
    assert ck.max_pool2d(x, 2, layout="NCHW").shape == (4, 2, 2)
    assert ck.global_avg_pool2d(x).shape == (1, 1, 4)
    assert ck.global_avg_pool2d(x, keepdims=False).shape == (4,)
