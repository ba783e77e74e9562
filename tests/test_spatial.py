"""spatially_separable_conv2d and separate_kernel, at the edges of shapes, windows and ranks.

What all convolutions have in common is in the tests that run over ``cases.OPS``: kinds of arrays,
places of results, guard pages, layers, wrong arguments.
"""

import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from cases import (
    ACTIVATIONS,
    CHANNELS,
    assert_same_bits,
    call,
    channels_id,
    check,
    example,
    images_nchw,
    nchw,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_properties import SETTINGS, fits, one_or_two, pads

import convkern as ck

OP = "spatially_separable_conv2d"
PADDINGS = [0, 3, (0, 2), ((0, 1), (1, 0)), ((3, 0), (0, 5)), ((0, 0), (7, 9)), "same_lower"]


def check_both(made):
    """Compare with the oracle, in both layouts, which must agree in every bit."""
    y = made.run()
    check(made, y)
    assert_same_bits(nchw(made).run(), images_nchw(y))


def outer(made):
    """Make the depthwise convolution that this one is."""
    column, row = made.weights
    w = column[:, None] * row[None]
    return replace(made, op="depthwise_conv2d", weights=(w,))


def one_kernel(made):
    """Give all channels the first one's column and row."""
    return replace(made, weights=tuple(w[:, 0].copy() for w in made.weights))


@pytest.mark.usefixtures("isa")
class TestAgainstTheOracle:
    @pytest.mark.parametrize("channels", [*CHANNELS, 128, 131], ids=channels_id)
    def test_channels(self, channels, data):
        for stride in (1, 2, 3):
            check_both(call(OP, (1, 5, 6, channels), padding=1, stride=stride, data=data))

    @pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 9, 16, 33], ids="width_{}".format)
    @pytest.mark.parametrize("height", [1, 3, 8], ids="height_{}".format)
    def test_image_size(self, height, width, data):
        for stride in (1, 2, 3):
            check_both(call(OP, (1, height, width, 17), padding=1, stride=stride, data=data))
            check_both(call(OP, (2, height, width, 3), padding="same", stride=stride, data=data))

    @pytest.mark.parametrize("kw", [1, 2, 3, 5, 7, 8, 9, 15], ids="kw_{}".format)
    @pytest.mark.parametrize("kh", [1, 2, 3, 5, 15], ids="kh_{}".format)
    def test_kernel(self, kh, kw, data):
        for stride, dilation in product((1, 2, 3), (1, 2)):
            window = {"kernel": (kh, kw), "stride": stride, "dilation": dilation, "data": data}
            check_both(call(OP, (1, 6, 7, 9), padding="same", **window))
            check_both(call(OP, (1, 29, 30, 3), padding="valid", **window))

    @pytest.mark.parametrize("stride", [(1, 2), (2, 1), (3, 1), (5, 7)], ids=str)
    @pytest.mark.parametrize("dilation", [1, (1, 2), (3, 1), (4, 5)], ids=str)
    def test_unequal_stride_and_dilation(self, stride, dilation, data):
        window = {"kernel": (3, 4), "padding": 7, "data": data}
        check_both(call(OP, (1, 9, 8, 21), stride=stride, dilation=dilation, **window))

    @pytest.mark.parametrize("padding", PADDINGS, ids=str)
    def test_padding(self, padding, data):
        for kernel, stride in product(((3, 3), (2, 4)), (1, 2, (2, 1), (1, 3))):
            window = {"kernel": kernel, "stride": stride, "padding": padding, "data": data}
            check_both(call(OP, (1, 5, 6, 18), **window))

    def test_padding_wider_than_the_image(self, data):
        for stride, dilation in product((1, 2, (1, 9)), (1, 2)):
            window = {"kernel": (5, 5), "stride": stride, "dilation": dilation, "data": data}
            check_both(call(OP, (1, 1, 1, 9), padding=6, **window))
            check_both(call(OP, (1, 2, 1, 9), padding=((0, 9), (9, 0)), **window))

    @pytest.mark.parametrize("x", [(0, 5, 6, 3), (3, 5, 6, 3), (5, 6, 3)], ids=str)
    def test_batch(self, x, data):
        check_both(call(OP, x, padding=1, data=data))

    @pytest.mark.parametrize(
        "x",
        [(2, 45, 37, 3), (1, 3, 1100, 3), (1, 2, 13, 901), (1, 3, 400, 40), (1, 90, 80, 2)],
        ids=["several_rows", "part_of_a_row", "part_of_channels", "parts_of_both", "part_of_plane"],
    )
    def test_blocks(self, x, data):
        """More pixels, or more channels, than a block holds."""
        for kernel, stride in product(((3, 5), (4, 2)), (1, 2)):
            window = {"kernel": kernel, "stride": stride, "padding": 2, "data": data}
            check_both(call(OP, x, residual=True, **window))

    @pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
    def test_bias_residual_and_activation(self, activation, data):
        for bias, residual in product((True, False), (True, False)):
            options = {"bias": bias, "residual": residual, "activation": activation, "data": data}
            check_both(example("spatial_5x3", **options))

    def test_sums_that_cancel(self):
        check_both(call(OP, (2, 9, 8, 37), kernel=(5, 7), padding=3, data="wide_range"))

    @pytest.mark.parametrize("channels", [1, 5, 16, 21], ids=channels_id)
    def test_one_column_and_row_for_all_channels(self, channels, data):
        for stride in (1, 2):
            window = {"kernel": (5, 3), "padding": 2, "stride": stride, "data": data}
            made = call(OP, (2, 6, 7, channels), **window)
            check_both(one_kernel(made))
            check_both(one_kernel(replace(made, biases=(None,))))
            column, row = made.weights
            check_both(replace(made, weights=(column[:, 0].copy(), row)))
            check_both(replace(made, weights=(column, row[:, 0].copy()), biases=(None,)))

    @pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
    def test_specials_stay_in_their_channel(self, special):
        made = example("spatial_5x3", data="integers")
        clean = made.run()
        for i, a in enumerate((made.x, *made.weights, *made.biases)):
            for spot in ((0,) * a.ndim, (-1,) * a.ndim):
                one = a.copy()
                one[spot] = special
                x, column, row, bias = (*made.arrays[:i], one, *made.arrays[i + 1 :])
                spoilt = replace(made, x=x, weights=(column, row), biases=(bias,))
                check_both(spoilt)
                others = np.arange(a.shape[-1]) != spot[-1] % a.shape[-1]
                assert_same_bits(spoilt.run()[..., others], clean[..., others])


@pytest.mark.usefixtures("isa")
@settings(SETTINGS, max_examples=150)
@given(st.data())
def test_is_the_depthwise_of_the_outer_product(data):
    """Exactly, on integers; and a layer and the textbook loops agree."""
    size, channels = data.draw(st.tuples(*[st.integers(1, 12)] * 2)), data.draw(st.integers(1, 35))
    kernel = data.draw(st.tuples(st.integers(1, 10), st.integers(1, 10)))
    options = {
        "stride": data.draw(one_or_two(4)),
        "dilation": data.draw(one_or_two(3)),
        "padding": data.draw(pads),
    }
    assume(fits(size, kernel, options))
    made = call(OP, (2, *size, channels), kernel=kernel, data="integers", **options)
    want = outer(made).run()
    for got in (made.run(), made.layer()(made.x), made.run(ck.naive)):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(nchw(made).run(), images_nchw(want))


def test_layer_of_one_kernel_takes_any_channels():
    made = one_kernel(call(OP, (1, 6, 7, 5), bias=False, data="integers"))
    layer = made.layer()
    for c in (1, 3, 16, 40):
        other = replace(made, x=np.resize(made.x, (2, 6, 7, c)))
        check(other, layer(other.x))
        check(other, pickle.loads(pickle.dumps(layer))(other.x))
        assert layer.out_shape(other.x.shape) == (2, 4, 5, c)
        assert layer.cost(other.x.shape).params == 6
    assert "any channels" in repr(layer)
    assert "5 -> 5" in repr(call(OP, (1, 6, 7, 5)).layer())


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("kw", [1, 2, 3, 6])
def test_cost_counts_the_columns_that_are_read(kw, stride, dilation):
    width = 12
    for padding in (0, 7):
        window = {"stride": (2, stride), "dilation": (1, dilation), "padding": (0, padding)}
        if dilation * (kw - 1) >= width + 2 * padding:
            continue
        cost = ck.cost.spatially_separable_conv2d((2, 9, width, 4), (3, 4), (kw, 4), True, **window)
        outputs = (width + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
        read = {x * stride + k * dilation for x in range(outputs) for k in range(kw)}
        assert cost.macs == 2 * 4 * 4 * (3 * len(read) + kw * outputs)
        assert cost.params == 4 * (3 + kw) + 4
        assert cost.bytes == 4 * (2 * 9 * width * 4 + cost.params + 2 * 4 * outputs * 4)


F = np.float32
X = np.zeros((1, 8, 8, 3), F)
WRONG_SHAPES = {
    "no_columns": (np.zeros((0, 3), F), np.zeros((3, 3), F), None, ("column", "(0, 3)")),
    "no_taps": (np.zeros(3, F), np.zeros(0, F), None, ("row", "(0,)")),
    "scalar": (F(1) + np.zeros((), F), np.zeros(3, F), None, ("column", "()", "(taps, C)")),
    "depthwise": (np.zeros((3, 1, 3), F), np.zeros(3, F), None, ("column", "(3, 1, 3)")),
    "channels_differ": (np.zeros((3, 3), F), np.zeros((3, 4), F), None, ("(3, 3)", "(3, 4)")),
    "one_channel": (np.zeros((3, 3), F), np.zeros((3, 1), F), None, ("column", "row", "(3, 1)")),
    "not_the_images": (np.zeros((3, 4), F), np.zeros(3, F), None, ("column", "x", "(1, 8, 8, 3)")),
    "row_not_the_images": (np.zeros(3, F), np.zeros((3, 4), F), None, ("row", "(3, 4)", "x")),
    "bias_not_the_images": (np.zeros(3, F), np.zeros(3, F), np.zeros(4, F), ("bias", "(4,)", "x")),
    "bias_2d": (np.zeros(3, F), np.zeros(3, F), np.zeros((3, 1), F), ("bias", "(3, 1)")),
    "bias_empty": (np.zeros(3, F), np.zeros(3, F), np.zeros(0, F), ("bias", "(0,)")),
    "too_large": (np.zeros(9, F), np.zeros(3, F), None, ("9x3", "8x8")),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_wrong_shapes(case):
    *arrays, mentions = WRONG_SHAPES[case]
    for function in (ck.spatially_separable_conv2d, ck.naive.spatially_separable_conv2d):
        with pytest.raises(ValueError, match=OP) as raised:
            function(X, *arrays)
        for mention in mentions:
            assert mention in str(raised.value), str(raised.value)


def test_wrong_kinds():
    column = np.zeros((3, 3), F)
    for row, name in ((column.astype("f8"), "row"), (column.tolist(), "row"), (None, "row")):
        with pytest.raises(TypeError, match=name):
            ck.spatially_separable_conv2d(X, column, row)
    with pytest.raises(TypeError, match="weight_layout"):
        ck.spatially_separable_conv2d(X, column, column, weight_layout="HWIO")
    giant = np.broadcast_to(F(0), 2**60)
    with pytest.raises((ValueError, MemoryError)):
        ck.spatially_separable_conv2d(X, giant, giant, padding="same")


# ---------------------------------------------------------------------------- separate_kernel

BINOMIAL, DERIVATIVE = np.array([1, 2, 1]), np.array([-1, 0, 1])


def check_split(k, column, row, error):
    """Assert that column times row is k, that both have its root, and the rule of signs."""
    assert (column.dtype, row.dtype) == (k.dtype, k.dtype)
    assert column.flags.c_contiguous
    assert row.flags.c_contiguous
    if k.ndim == 3:
        k, column, row = k.transpose(2, 0, 1), column.T, row.T
    k, column, row = (a.astype("g") for a in (k, column, row))
    kernels = k.reshape(-1, *k.shape[-2:])
    columns, rows = column.reshape(len(kernels), -1), row.reshape(len(kernels), -1)
    for one, c, r in zip(kernels, columns, rows, strict=True):
        norm = np.linalg.norm(one.astype(float))
        assert (np.abs(np.outer(c, r) - one) <= error * norm).all()
        for part in (c, r):
            assert np.linalg.norm(part.astype(float)) == pytest.approx(np.sqrt(norm), rel=1e-6)
        large = np.flatnonzero(np.abs(c) >= 0.999 * np.abs(c).max())
        assert c[large[0]] >= 0


finite = {"allow_nan": False, "allow_infinity": False, "allow_subnormal": False}


@settings(SETTINGS, max_examples=100)
@given(st.data(), st.sampled_from([F, np.float64]))
def test_outer_products_are_separated(data, dtype):
    width = 8 * np.dtype(dtype).itemsize
    numbers = st.floats(-(2.0**20), 2.0**20, width=width, **finite)
    numbers = numbers.map(lambda x: x if abs(x) > 2**-20 else 0.0)  # products do not underflow
    kh, kw, c = (data.draw(st.integers(1, n)) for n in (9, 9, 4))
    column = data.draw(arrays(dtype, (kh, c), elements=numbers))
    row = data.draw(arrays(dtype, (kw, c), elements=numbers))
    k = column[:, None] * row[None]
    error = 8 * float(np.finfo(dtype).eps)
    check_split(k, *ck.separate_kernel(k), error)
    check_split(k[..., 0], *ck.separate_kernel(k[..., 0]), error)
    oihw = np.ascontiguousarray(k.transpose(2, 0, 1)[:, None])
    check_split(oihw, *ck.separate_kernel(oihw), error)
    assert_same_bits(ck.separate_kernel(oihw)[0], np.ascontiguousarray(ck.separate_kernel(k)[0].T))


@pytest.mark.parametrize("dtype", [F, np.float64])
def test_filters_of_textbooks(dtype):
    for column, row in product((BINOMIAL, DERIVATIVE, BINOMIAL[:1]), repeat=2):
        k = np.outer(column, row).astype(dtype)
        got_column, got_row = ck.separate_kernel(k)
        sign = np.sign(column[0])
        np.testing.assert_allclose(got_column / abs(got_column[0]), sign * column, atol=1e-6)
        np.testing.assert_allclose(got_row / abs(got_row[-1]), sign * row, atol=1e-6)
    at = np.arange(-3, 4)
    gauss = np.exp(-(at[:, None] ** 2 + at**2) / 3).astype(dtype)
    x = np.random.default_rng(0).standard_normal((9, 9, 2)).astype(dtype)
    got = ck.spatially_separable_conv2d(x, *ck.separate_kernel(gauss / gauss.sum()))
    want = ck.depthwise_conv2d(x, np.repeat((gauss / gauss.sum())[..., None], 2, axis=2))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("exponent", [-1000, -300, 0, 300, 1020])
def test_any_magnitude(exponent):
    k = np.ldexp(np.outer(BINOMIAL, DERIVATIVE).astype(float), exponent)
    check_split(np.ldexp(k, -exponent), *ck.separate_kernel(np.ldexp(k, -exponent)), 1e-15)
    column, row = ck.separate_kernel(k)
    np.testing.assert_allclose(np.outer(column, row), k, rtol=1e-14)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2), (2, 1, 3, 5), (1, 1), (1, 7), (4, 1, 1, 1)])
def test_zeros_separate_into_zeros(shape):
    for part in ck.separate_kernel(np.zeros(shape, F)):
        assert not part.any()
        assert not np.signbit(part).any()


def test_ranks_above_1_are_refused():
    k = np.repeat(np.outer(BINOMIAL, DERIVATIVE)[..., None], 6, axis=2).astype(F)
    k[0, 0, 4] += 1
    values = np.linalg.svd(k[..., 4].astype(float), compute_uv=False)
    for array in (k, np.ascontiguousarray(k.transpose(2, 0, 1)[:, None])):
        with pytest.raises(ValueError, match=r"channel 4 .*singular values") as raised:
            ck.separate_kernel(array)
        for value in values:
            assert f"{value:.4g}" in str(raised.value) or value < 1e-6
    with pytest.raises(ValueError, match=r"k has singular values .*rank") as raised:
        ck.separate_kernel(k[..., 4])
    assert "channel" not in str(raised.value)
    column, row = ck.separate_kernel(k[..., 4], tol=values[1] / values[0] * 1.001)
    assert np.linalg.norm(np.outer(column, row) - k[..., 4], 2) == pytest.approx(
        values[1], rel=1e-5
    )
    with pytest.raises(ValueError, match="singular"):
        ck.separate_kernel(k[..., 4], tol=values[1] / values[0] * 0.999)
    ck.separate_kernel(np.eye(3), tol=1)


def test_default_tolerance_is_the_dtypes():
    k = np.outer(BINOMIAL, BINOMIAL) + 0.0
    k[0, 0] += 1e-9
    ck.separate_kernel(k.astype(F))
    with pytest.raises(ValueError, match="singular"):
        ck.separate_kernel(k)


ONES = np.ones((3, 3), F)
BAD_KERNELS = {
    "list": (TypeError, ([[1.0]],), "k"),
    "none": (TypeError, (None,), "k"),
    "integers": (TypeError, (np.ones((3, 3), int),), "int64"),
    "half": (TypeError, (ONES.astype("f2"),), "<f2"),
    "other_byte_order": (TypeError, (ONES.astype(ONES.dtype.newbyteorder()),), "f4"),
    "vector": (ValueError, (ONES[0],), r"\(3,\)"),
    "scalar": (ValueError, (ONES[0, 0] + np.zeros((), F),), r"\(\)"),
    "five_axes": (ValueError, (ONES[None, None, None],), "shape"),
    "multiplier": (ValueError, (np.ones((3, 3, 4, 2), F),), r"\(C, 1, kh, kw\)"),
    "no_rows": (ValueError, (np.ones((0, 3), F),), r"\(0, 3\)"),
    "no_channels": (ValueError, (np.ones((3, 3, 0), F),), r"\(3, 3, 0\)"),
    "nan": (ValueError, (ONES * np.nan,), "NaN"),
    "inf": (ValueError, (ONES * np.inf,), "finite"),
    "tol_text": (TypeError, (ONES, "0.1"), "tol"),
    "tol_bool": (TypeError, (ONES, True), "tol"),
    "tol_negative": (ValueError, (ONES, -1e-9), "tol"),
    "tol_nan": (ValueError, (ONES, float("nan")), "tol"),
    "tol_above_1": (ValueError, (ONES, 1.5), "tol"),
}


@pytest.mark.parametrize("case", BAD_KERNELS)
def test_bad_kernels(case):
    exception, arguments, mention = BAD_KERNELS[case]
    with pytest.raises(exception, match=mention) as raised:
        ck.separate_kernel(*arguments)
    assert str(raised.value).startswith("separate_kernel: ")
