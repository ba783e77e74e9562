"""What a call costs beside its work: one pixel of 8 channels, on one thread.

A layer call should take less than 3 microseconds, a function call, which checks and packs its
weights too, less than 10, where it was called with arrays of such shapes before. That a call with
`out` allocates nothing is a test, in test_overhead.py.
"""

from functools import partial

import cases
import deforming
import numpy as np
import pooling
import pytest
import shapes

import convkern as ck

PIXEL = (1, 1, 8)
CALLS = {op: partial(cases.call, op, PIXEL, padding=1) for op in cases.OPS}
CALLS["pointwise_conv2d"] = partial(cases.call, "pointwise_conv2d", PIXEL)
CALLS["deform_conv2d"] = partial(deforming.deform, PIXEL, padding=1)
CALLS |= {op: partial(pooling.pool, op, PIXEL, kernel=3, padding=1) for op in pooling.WINDOWED}
CALLS["global_avg_pool2d"] = partial(pooling.pool, "global_avg_pool2d", PIXEL)


@pytest.mark.parametrize("out", [False, True], ids=["new", "out"])
@pytest.mark.parametrize("op", CALLS)
def bench_layer_call(benchmark, op, out):
    benchmark.group = f"layer call, {'out=' if out else 'new output'}"
    call = CALLS[op]()
    layer, inputs = shapes.prepare(call)
    call_with(benchmark, out, partial(layer, *inputs, threads=1), call)


@pytest.mark.parametrize("out", [False, True], ids=["new", "out"])
@pytest.mark.parametrize("op", CALLS)
def bench_function_call(benchmark, op, out):
    benchmark.group = f"function call, {'out=' if out else 'new output'}"
    call = CALLS[op]()
    call_with(benchmark, out, partial(call.run, threads=1), call)


def bench_graph_call(benchmark):
    benchmark.group = "layer call, new output"
    call = CALLS["pointwise_conv2d"]()
    call_with(benchmark, False, partial(ck.Sequential([call.layer()]), call.x, threads=1), call)


def call_with(benchmark, out, run, call):
    want = run()
    got = benchmark(partial(run, out=np.empty_like(want)) if out else run)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, call.want(), rtol=0, atol=1e-4)
