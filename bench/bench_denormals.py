"""What denormal numbers cost: operations on normal numbers, on denormal ones, and to denormal ones.

The kernels run with flush-to-zero, so the three rows of a group should take the same time. Without
it an operation on a denormal number takes a hundred cycles or more on many CPUs.
"""

from dataclasses import replace

import engines
import numpy as np
import pytest
import shapes

import convkern as ck

LARGEST = 1e-30  # of sums of thousands of denormal numbers (below 1.2e-38), times weights


def normal(call):
    return call


def denormal(call):
    """Scale the image: every pixel is denormal, the weights are normal."""
    return replace(call, x=call.x * np.float32(1e-39))


def denormal_products(call):
    """Scale the image and the first weights: all are normal, their products are denormal."""
    first = call.op == "deform_conv2d"  # after the offset
    weights = [w * np.float32(1e-20 if i == first else 1) for i, w in enumerate(call.weights)]
    return replace(call, x=call.x * np.float32(1e-20), weights=tuple(weights))


def without_bias(call):
    """Leave out what would be added to a sum and make it normal."""
    return replace(call, biases=tuple(None for _ in call.biases))


def rows():
    """List a case of each operation and window, with the data that it can have.

    Of cases that differ in size alone, the first.
    """
    first = {}
    for case in shapes.load_all(all_shapes=False):
        op, _, _, *window = str(case).split("-")
        first.setdefault((op, *window), case)
    for case in first.values():
        yield case, normal
        yield case, denormal
        if not isinstance(case, shapes.PoolCase):  # it has no products
            yield case, denormal_products


@pytest.mark.parametrize(
    ("case", "data"), list(rows()), ids=lambda v: getattr(v, "__name__", str(v))
)
@pytest.mark.parametrize("layout", engines.LAYOUTS)
def bench_denormals(benchmark, case, layout, data):
    benchmark.group = f"{case}-{layout}-{ck.isa()}"
    call = case.call("reals", layout)
    if not isinstance(case, shapes.PoolCase):
        call = without_bias(call)
    run, result = engines.run_call(ck.isa(), layout, data(call))
    got = result(benchmark(run))
    assert np.isfinite(got).all()
    if data is not normal:
        assert np.abs(got).max() < LARGEST
