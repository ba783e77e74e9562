"""float32 in three parts of bf16: where they are multiplied, and what has no such parts."""

import numpy as np
import pytest
import reference
from cases import assert_same_bits, assert_within, call, check, python

import convkern as ck

needs_amx = pytest.mark.skipif("amx" not in ck.available_isas(), reason="this CPU has no AMX")

TERMS, COLUMNS = 32, 48  # from so many on parts are multiplied, in images of
PIXELS = 16


@pytest.fixture
def amx():
    with ck.use_isa("amx"):
        yield


def pointwise(isa, x, w, bias=None, **options):
    with ck.use_isa(isa):
        return ck.pointwise_conv2d(x, w, bias, **options)


def normal(*shape, scale=1.0, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


@needs_amx
def test_sums_are_of_parts():
    """Otherwise all else here tests FMAs: the bits differ, and the errors are smaller."""
    x, w = normal(1, 14, 14, 512), normal(512, 64, seed=1)
    fma, parts = pointwise("avx512", x, w), pointwise("amx", x, w)
    exact = reference.pointwise_conv2d(x, w)
    assert not np.array_equal(fma, parts)
    assert np.abs(parts - exact).mean() < np.abs(fma - exact).mean()


@needs_amx
@pytest.mark.parametrize(
    ("size", "terms", "columns"),
    [((4, 4), TERMS - 1, COLUMNS), ((4, 4), TERMS, COLUMNS - 1), ((3, 5), TERMS, COLUMNS)],
    ids=["few_terms", "few_columns", "few_pixels"],
)
def test_small_sums_are_of_fmas(size, terms, columns):
    x, w = normal(1, *size, terms), normal(terms, columns, seed=1)
    assert_same_bits(pointwise("amx", x, w), pointwise("avx512", x, w))


@needs_amx
@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("pixels", [16, 17, 31, 32, 33, 49, 63, 64, 65], ids="pixels_{}".format)
@pytest.mark.parametrize("terms", [32, 33, 47, 48, 63, 64, 65, 100], ids="terms_{}".format)
def test_tiles(terms, pixels, data):
    for outputs in (48, 49, 64, 65, 80, 81, 96):
        made = {"outputs": outputs, "residual": True, "activation": "relu6", "data": data}
        check(call("pointwise_conv2d", (1, 1, pixels, terms), **made))


@needs_amx
@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("activation", [None, "relu6", "silu"], ids=str)
@pytest.mark.parametrize("terms", [4099, 20000], ids="terms_{}".format)
def test_ranges_of_terms(terms, activation, data):
    """More terms than a range of the GEMM holds: sums continue from what is in the output."""
    made = {"outputs": 72, "residual": True, "activation": activation, "data": data}
    check(call("pointwise_conv2d", (1, 3, 7, terms), **made))


@needs_amx
@pytest.mark.parametrize("terms", [64, 72, 5000], ids=["one_range", "last_terms", "ranges"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38], ids=str)
def test_what_has_no_parts(value, terms):
    """Comes out as in FMAs, and changes no bit of its neighbours."""
    x, w = normal(1, 5, 7, terms), normal(terms, 72, seed=1)
    before = pointwise("amx", x, w, activation="relu")
    x[0, 2, 3, terms - 1] = value
    after = pointwise("amx", x, w, activation="relu")
    assert_same_bits(after[0, 2, 3], pointwise("avx512", x, w, activation="relu")[0, 2, 3])
    after[0, 2, 3] = before[0, 2, 3]
    assert_same_bits(after, before)


@needs_amx
@pytest.mark.parametrize("terms", [64, 72, 5000], ids=["one_range", "last_terms", "ranges"])
def test_sums_near_the_largest_number(terms):
    """Those that overflow do, and those that do not are as exact as any."""
    x, w = normal(1, 1, 16, terms), normal(terms, 72, seed=1)
    x[0, 0, 3, terms - 1] = -3.39e38  # whose parts are finite
    got, want = pointwise("amx", x, w), reference.pointwise_conv2d(x, w)
    finite = np.abs(want) < np.finfo(np.float32).max
    np.testing.assert_array_equal(got[~finite], np.copysign(np.inf, want[~finite]))
    room = reference.bound(reference.pointwise_conv2d, x, w)
    assert_within(got[finite], want[finite], room[finite])


@needs_amx
@pytest.mark.parametrize("value", [np.inf, np.nan, 3.4e38], ids=str)
def test_weights_that_have_no_parts(value):
    x, w = normal(1, 5, 7, 64), normal(64, 72, seed=1)
    before = pointwise("amx", x, w)
    w[5, 50] = value
    after = pointwise("amx", x, w)
    assert_same_bits(after[..., 50], pointwise("avx512", x, w)[..., 50])
    after[..., 50] = before[..., 50]
    assert_same_bits(after, before)


@needs_amx
@pytest.mark.parametrize("image", [1.0, 1e-30, 1e-34, 1e-36, 1e20, 1e30])
@pytest.mark.parametrize("weights", [1.0, 1e-30, 1e-36, 1e7])
def test_scales(image, weights):
    """Where no product overflows or underflows the error stays within the bound."""
    if not 1e-32 < image * weights < 1e33:
        pytest.skip("products leave float32")
    x, w = normal(2, 4, 6, 96, scale=image), normal(96, 72, scale=weights, seed=1)
    x[0, 1] *= np.float32(1e5)  # rows of several sizes
    got = pointwise("amx", x, w)
    want = reference.pointwise_conv2d(x, w)
    # beside the bound, what underflow costs: denormal products and operands are zero
    room = 96 * 2.0**-126 * (1 + float(np.abs(w).max()) + float(np.abs(x).max()))
    assert_within(got, want, reference.bound(reference.pointwise_conv2d, x, w) + room)


@needs_amx
@pytest.mark.parametrize("terms", [64, 72], ids=["whole", "last_terms"])
def test_small_images_come_out_as_from_fmas(terms):
    """Numbers that all are too small for three parts, in rows of an image with others."""
    x, w = normal(1, 4, 6, terms, scale=1e-36), normal(terms, 72, seed=1)
    x[0, 2] = normal(6, terms, seed=2)
    got, fma = pointwise("amx", x, w), pointwise("avx512", x, w)
    # but for the sign of zero: a sum of FMAs that underflows has begun with the bias
    np.testing.assert_array_equal(got[0, [0, 1, 3]], fma[0, [0, 1, 3]])
    assert not np.array_equal(got[0, 2], fma[0, 2])


@needs_amx
@pytest.mark.usefixtures("amx")
def test_what_a_row_holds_does_not_depend_on_its_block():
    """One image of a batch has a NaN, an infinity, small numbers; each alone gives the same."""
    x, w = normal(4, 14, 14, 512), normal(512, 96, seed=1)
    x[1, 3, 4, 5], x[2, 3, 4, 5] = np.nan, np.inf
    x[3, :7] *= np.float32(1e-35)
    together = ck.pointwise_conv2d(x, w)
    for i in range(4):
        assert_same_bits(ck.pointwise_conv2d(x[i], w), together[i])
        assert_same_bits(ck.pointwise_conv2d(x[i, :2], w), together[i, :2])


@needs_amx
@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("terms", [32, 47, 100, 5000], ids="terms_{}".format)
@pytest.mark.parametrize("columns", [48, 63, 96, 200], ids="columns_{}".format)
def test_planes_come_out_as_pixels(columns, terms):
    """The operands change sides, the sums do not change: of any numbers."""
    x, w = normal(2, 7, 9, terms), normal(terms, columns, seed=1)
    bias, residual = normal(columns, seed=2), normal(2, 7, 9, columns, seed=3)
    x[0, 1, 2, 3], x[0, 1, 3, 4], x[1, 6, 8, 5] = np.inf, np.nan, 3.4e38
    x[1, 2] *= np.float32(1e-36)

    def planes(a):
        return np.ascontiguousarray(np.moveaxis(a, -1, 1))

    for activation in (None, "relu6", "silu"):
        options = {"activation": activation}
        want = ck.pointwise_conv2d(x, w, bias, residual=residual, **options)
        got = ck.pointwise_conv2d(
            planes(x), w.T, bias, residual=planes(residual), layout="NCHW", **options
        )
        np.testing.assert_array_equal(got, planes(want))


@needs_amx
@pytest.mark.usefixtures("amx")
def test_small_weights_are_not_multiplied_in_parts():
    """Those of a channel that died; in both layouts, also where others are large."""
    x, w = normal(1, 6, 6, 64), normal(64, 72, seed=1)
    w[:, 7] *= np.float32(1e-36)
    fma = pointwise("avx512", x, w)
    assert_same_bits(ck.pointwise_conv2d(x, w), fma)
    planes = ck.pointwise_conv2d(np.moveaxis(x, -1, 1), w.T, layout="NCHW")
    assert_same_bits(np.ascontiguousarray(np.moveaxis(planes, 1, -1)), fma)


def test_linux_may_refuse():
    """It does for a thread whose stack for signals has no room for the tiles: amx is not there."""
    program = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8192)
small = Stack(ctypes.addressof(room), 0, 8192)
done = ctypes.CDLL(None).sigaltstack(ctypes.byref(small), None)
import numpy as np, convkern as ck
x = np.ones((8, 8, 64), np.float32)
y = ck.pointwise_conv2d(x, np.ones((64, 64), np.float32))
print(done, "amx" in ck.available_isas(), ck.isa() == ck.available_isas()[-1], (y == 64).all())
"""
    done = python(program)
    assert done.stdout == "0 False True True\n", done.stderr
