"""precision="fast": fewer products of parts where float32 has those, and nothing elsewhere."""

import pickle

import numpy as np
import pytest
import reference
from cases import assert_same_bits, assert_within, images_nchw

import convkern as ck

AMX = "amx" in ck.available_isas()
needs_amx = pytest.mark.skipif(not AMX, reason="this CPU has no AMX")
REST = [isa for isa in ck.available_isas() if isa != "amx"]
PIXELS, C, N = (2, 9, 11), 64, 80


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def calls(dtype=np.float32):
    """Operations that multiply matrices, and what they are called with."""
    x = normal(*PIXELS, C, dtype=dtype)
    offset = normal(*PIXELS, 18, seed=1, dtype=dtype)
    dw, pw = normal(3, 3, C, seed=2, dtype=dtype), normal(C, N, seed=3, dtype=dtype)
    w = normal(3, 3, C, N, seed=4, dtype=dtype)
    return {
        "conv2d": ((x, w), {"padding": 1}),
        "pointwise_conv2d": ((x, pw), {}),
        "separable_conv2d": ((x, dw, pw), {"padding": 1}),
        "deform_conv2d": ((x, offset, w), {"padding": 1}),
    }


def each_isa_and_op(isas):
    return [pytest.param(isa, op, id=f"{isa}-{op}") for isa in isas for op in calls()]


def run(isa, op, *arrays, **options):
    with ck.use_isa(isa):
        return getattr(ck, op)(*arrays, **options)


@pytest.mark.parametrize(("isa", "op"), each_isa_and_op(REST))
def test_without_parts_both_are_the_same(isa, op):
    arrays, options = calls()[op]
    assert_same_bits(
        run(isa, op, *arrays, **options, precision="fast"), run(isa, op, *arrays, **options)
    )


@pytest.mark.parametrize(("isa", "op"), each_isa_and_op(ck.available_isas()))
def test_float64_is_as_exact_as_ever(isa, op):
    arrays, options = calls(np.float64)[op]
    assert_same_bits(
        run(isa, op, *arrays, **options, precision="fast"), run(isa, op, *arrays, **options)
    )


@needs_amx
@pytest.mark.parametrize("terms", [33, 48, 49, 72, 5000], ids="terms_{}".format)
def test_last_terms_stay_within_the_bound(terms):
    """Those that do not fill a register have products of their own; in both layouts."""
    x, w = normal(*PIXELS, terms), normal(terms, N, seed=1)
    want = reference.pointwise_conv2d(x, w)
    fast = run("amx", "pointwise_conv2d", x, w, precision="fast")
    size = reference.pointwise_conv2d(np.abs(x), np.abs(w))
    room = reference.bound(reference.pointwise_conv2d, x, w) + 2.0**-16 * size
    assert_within(fast, want, room)
    planes = run("amx", "pointwise_conv2d", images_nchw(x), w.T, layout="NCHW", precision="fast")
    assert_same_bits(planes, images_nchw(fast))


@needs_amx
@pytest.mark.parametrize("op", calls())
def test_stays_within_its_bound(op):
    """Which is 2^-16 sum |x||w| more; it is less exact than the full one, or nothing is saved."""
    arrays, options = calls()[op]
    oracle = getattr(reference, op)
    want = oracle(*arrays, **options)
    fast = run("amx", op, *arrays, **options, precision="fast")
    full = run("amx", op, *arrays, **options)
    positive = [np.abs(a) if i != 1 or op != "deform_conv2d" else a for i, a in enumerate(arrays)]
    size = oracle(*positive, **options)
    assert_within(fast, want, reference.bound(oracle, *arrays, **options) + 2.0**-16 * size)
    assert np.abs(fast - want).mean() > 3 * np.abs(full - want).mean()


@needs_amx
@pytest.mark.parametrize("op", ["conv2d", "pointwise_conv2d", "separable_conv2d"])
def test_bits_do_not_depend_on_layout_batch_or_threads(op):
    arrays, options = calls()[op]
    options = {**options, "precision": "fast"}
    want = run("amx", op, *arrays, **options)
    one = run("amx", op, arrays[0][1], *arrays[1:], **options, threads=3)
    planes = run(
        "amx", op, images_nchw(arrays[0]), *arrays[1:], **options, layout="NCHW",
        weight_layout="HWIO",
    )  # fmt: skip
    assert_same_bits(one, want[1])
    assert_same_bits(planes, images_nchw(want))


@needs_amx
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38], ids=str)
def test_what_has_no_parts(value):
    (x, w), _ = calls()["pointwise_conv2d"]
    before = run("amx", "pointwise_conv2d", x, w, precision="fast")
    x[0, 2, 3, 5] = value
    after = run("amx", "pointwise_conv2d", x, w, precision="fast")
    assert_same_bits(after[0, 2, 3], run("avx512", "pointwise_conv2d", x, w)[0, 2, 3])
    after[0, 2, 3] = before[0, 2, 3]
    assert_same_bits(after, before)


def layers():
    dw, pw = normal(3, 3, C, seed=2), normal(C, N, seed=3)
    return [
        ck.PointwiseConv2d(normal(C, C, seed=5), precision="fast"),
        ck.DepthwiseConv2d(dw, padding=1),
        ck.PointwiseConv2d(pw, precision="fast"),
        ck.SeparableConv2d(normal(3, 3, N, seed=6), normal(N, C, seed=7), precision="fast"),
        ck.Conv2d(normal(3, 3, C, N, seed=8), precision="fast"),
    ]


def test_layers_and_graphs_keep_it():
    """Also where a depthwise and a pointwise layer become one, and through a pickle."""
    x = want = normal(*PIXELS, C)
    made = layers()
    for layer in made:
        copy = pickle.loads(pickle.dumps(layer))
        assert_same_bits(copy(want), layer(want))
        want = layer(want)
    graph = ck.Sequential(made)
    assert len(graph.plan(x.shape).steps) < len(made)
    assert_same_bits(graph(x), want)


def test_naive_loops_take_it():
    (x, w), options = calls()["conv2d"]
    np.testing.assert_array_equal(
        ck.naive.conv2d(x, w, **options, precision="fast"), ck.naive.conv2d(x, w, **options)
    )
