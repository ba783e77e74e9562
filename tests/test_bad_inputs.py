"""Wrong arguments: the right exception, before any work, naming the argument and the shapes."""

import numpy as np
import pytest
from cases import LAYOUTS, OPS, assert_same_bits, call, example
from numpy.lib.stride_tricks import as_strided

import convkern as ck

ALL = tuple(OPS)
WINDOWED = tuple(op for op in OPS if op != "pointwise_conv2d")
HAVE_WEIGHT_LAYOUT = tuple(op for op in OPS if op != "spatially_separable_conv2d")
MULTIPLIES = tuple(op for op in HAVE_WEIGHT_LAYOUT if op != "depthwise_conv2d")
NAMES = {
    "conv2d": ("x", "w", "bias"),
    "depthwise_conv2d": ("x", "w", "bias"),
    "pointwise_conv2d": ("x", "w", "bias"),
    "separable_conv2d": ("x", "dw", "pw", "dw_bias", "bias"),
    "spatially_separable_conv2d": ("x", "column", "row", "bias"),
}


def valid(op, layout, x=(1, 8, 8, 3)):
    """Keyword arguments of a call that is fine: 3 channels in, 4 out (3 for depthwise)."""
    made = call(op, x, outputs=4, layout=layout, data="integers")
    return dict(zip(NAMES[op], made.arrays, strict=True)) | made.options


def refuses(op, kwargs, exception, *mentions):
    """Assert that a call raises, with a message that mentions all it should."""
    with pytest.raises(exception) as raised:
        getattr(ck, op)(**kwargs)
    for mention in mentions:
        assert mention in str(raised.value), str(raised.value)


def images(layout, *shape, dtype=np.float32):
    """Zeros for (B, H, W, C) or (H, W, C)."""
    a = np.zeros(shape, dtype)
    return a if layout == "NHWC" else np.moveaxis(a, -1, -3)


def filters(layout, kh, kw, c, n):
    """Zeros for (kh, kw, C, N)."""
    return np.zeros((kh, kw, c, n) if layout == "NHWC" else (n, c, kh, kw), np.float32)


def dw_filters(layout, kh, kw, c):
    return np.zeros((kh, kw, c) if layout == "NHWC" else (c, 1, kh, kw), np.float32)


def pw_filters(layout, c, n):
    return np.zeros((c, n) if layout == "NHWC" else (n, c), np.float32)


def giant(*shape):
    """One float that claims to be as many as its strides of 0 allow."""
    return as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))


def overlapping_themselves(shape):
    """Writable arrays in which some memory is that of several elements."""
    memory, steps = np.zeros(10**4, np.float32), np.empty(shape, np.float32).strides
    yield as_strided(memory, shape, (0,) * len(shape))
    yield as_strided(memory, shape, (4,) * len(shape))
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
        if size > 1 and step > 4:
            yield as_strided(memory, shape, (*steps[:axis], step - 4, *steps[axis + 1 :]))
            yield as_strided(memory[5000:], shape, (*steps[:axis], 4 - step, *steps[axis + 1 :]))


NOT_INTEGERS = [1.5, (1.5, 1), "2", None, 1j, float("nan"), float("inf"), np.float32(1), [1, "1"]]
NOT_INTEGERS += [{1: 2}, b"1", object(), np.array([1.0, 1.0]), True, np.True_, (1, False)]
NOT_PAIRS = [(), (1,), (1, 1, 1), np.ones((2, 2), int)]
NEGATIVE = [-1, (-1, -1), (1, -1), -(2**62)]
BEYOND_64_BITS = [2**64, -(2**64), 10**40]
BAD_CLAMPS = [(2, 1), (np.nan, 1), (0, np.nan), (np.nan, np.nan)]

WRONG = (TypeError, ValueError)  # where either says what is wrong
TOO_LARGE = (MemoryError, ValueError, OverflowError)

# (option, operations that have it, exception, values that no operation takes)
BAD_OPTIONS = [
    ("stride", ALL, TypeError, NOT_INTEGERS),
    ("stride", ALL, ValueError, [0, (0, 1), (1, 0), *NEGATIVE]),
    ("stride", ALL, WRONG, NOT_PAIRS),
    ("stride", ALL, TOO_LARGE, BEYOND_64_BITS),
    ("dilation", WINDOWED, TypeError, NOT_INTEGERS),
    ("dilation", WINDOWED, ValueError, [0, (0, 0), (1, 0), *NEGATIVE]),
    ("dilation", WINDOWED, WRONG, NOT_PAIRS),
    ("dilation", WINDOWED, TOO_LARGE, [2**31, 2**62, 2**63 - 1, *BEYOND_64_BITS]),
    ("padding", WINDOWED, TypeError, [v for v in NOT_INTEGERS if not isinstance(v, str | list)]),
    ("padding", WINDOWED, ValueError, [((-1, 0), (0, 0)), ((0, 0), (0, -1)), *NEGATIVE]),
    ("padding", WINDOWED, ValueError, ["SAME", "full", "", ((2**62, 2**62), (0, 0))]),
    ("padding", WINDOWED, WRONG, [(), (1,), (1, 1, 1), ((1, 1),), ((1, 1), (1, 1), (1, 1))]),
    ("padding", WINDOWED, WRONG, [((1, 1, 1), (1, 1)), ("same", "same"), (1, None), [[1, 1], [1]]]),
    ("padding", WINDOWED, TOO_LARGE, BEYOND_64_BITS),
    ("groups", ("conv2d",), TypeError, [*NOT_INTEGERS, (1, 1)]),
    ("groups", ("conv2d",), ValueError, [0, -1, 2, 4, 2**31, -(2**62)]),
    ("groups", ("conv2d",), TOO_LARGE, BEYOND_64_BITS),
    ("activation", ALL, ValueError, ["gelu", "ReLU", "", *BAD_CLAMPS]),
    ("activation", ALL, WRONG, [1, True, b"relu", (), (1,), (0, 1, 2), ("0", "6"), (None, 6), 6.0]),
    ("activation", ALL, WRONG, [[[0, 6]], (0, 6j), {"relu"}, np.zeros((2, 2)), np.zeros(3), len]),
    ("activation", ALL, (*WRONG, OverflowError), [(10**400, 10**401)]),
    ("dw_activation", ("separable_conv2d",), WRONG, ["gelu", 1, *BAD_CLAMPS]),
    ("layout", ALL, WRONG, ["nhwc", "NHCW", "", None, 1, b"NHWC", "CHWN", ["NHWC"]]),
    ("weight_layout", HAVE_WEIGHT_LAYOUT, WRONG, ["hwio", "NHWC", "", 1, b"HWIO", ["OIHW"]]),
    (
        "precision",
        MULTIPLIES,
        WRONG,
        ["FAST", "", "exact", None, 1, True, b"fast", ["fast"], 2**64],
    ),
    ("threads", ALL, WRONG, [0, -1, 1.5, "2", (1, 1)]),
    ("threads", ALL, (*WRONG, OverflowError), BEYOND_64_BITS),
]


def name_of(value):
    """Show a value in a test's name, without the address that some have."""
    return type(value).__name__ if " at 0x" in repr(value) else f"{value!r:.30}"


@pytest.mark.parametrize(
    ("option", "op", "exception", "value"),
    [
        pytest.param(option, op, exception, value, id=f"{option}-{op}-{name_of(value)}")
        for option, ops, exception, values in BAD_OPTIONS
        for op in ops
        for value in values
    ],
)
def test_bad_option(option, op, value, exception, layout):
    refuses(op, valid(op, layout) | {option: value}, exception, option)


NOT_ARRAYS = [None, 1.0, "image", b"image", [[[[1.0]]]], ((((1.0,),),),), {}, object(), len, 1j]


@pytest.mark.parametrize("value", NOT_ARRAYS, ids=name_of)
@pytest.mark.parametrize("op", OPS)
def test_not_an_array(op, value):
    for name in NAMES[op]:
        if value is not None or "bias" not in name:
            refuses(op, valid(op, "NHWC") | {name: value}, TypeError, name)
    if value is not None:
        refuses(op, valid(op, "NHWC") | {"residual": value}, TypeError, "residual")
        refuses(op, valid(op, "NHWC") | {"out": value}, TypeError, "out")


@pytest.mark.parametrize(
    "dtype",
    [
        "f2",
        "f8",
        "g",
        "i1",
        "i4",
        "i8",
        "u1",
        "?",
        "c8",
        "O",
        "S4",
        "U1",
        "M8[s]",
        "m8[s]",
        "V4",
        [("r", "f4")],
        ">f4" if np.little_endian else "<f4",
    ],
    ids=str,
)
@pytest.mark.parametrize("op", OPS)
def test_dtype(op, dtype):
    kwargs = valid(op, "NHWC")
    y = getattr(ck, op)(**kwargs)
    for name, like in {**{k: kwargs[k] for k in NAMES[op]}, "residual": y, "out": y}.items():
        refuses(op, kwargs | {name: np.zeros(like.shape, dtype)}, TypeError, name)


@pytest.mark.parametrize("op", OPS)
def test_rank(op, layout):
    kwargs = valid(op, layout)
    for shape in ((), (3,), (8, 3), (8, 8), (1, 1, 8, 8, 3), (1,) * 32):
        refuses(op, kwargs | {"x": np.zeros(shape, np.float32)}, ValueError, "x", str(shape))
    for name in NAMES[op][1:]:
        for shape in ((), (3,), (2, 3, 3, 3, 3), (1,) * 32):
            if len(shape) == 1 and ("bias" in name or name in ("column", "row")):
                shape = (1, 3, 1)
            refuses(op, kwargs | {name: np.zeros(shape, np.float32)}, ValueError, name, str(shape))


@pytest.mark.parametrize("op", OPS)
def test_channels_mismatch(op, layout):
    kwargs = valid(op, layout)
    few, many = images(layout, 1, 8, 8, 2), images(layout, 1, 8, 8, 4)
    w = NAMES[op][1]
    for x in (few, many):
        refuses(op, kwargs | {"x": x}, ValueError, "x", w, str(x.shape), str(kwargs[w].shape))


def test_conv2d_filters_mismatch(layout):
    kwargs = valid("conv2d", layout)
    for w in (
        filters(layout, 3, 3, 4, 4),
        filters(layout, 3, 3, 1, 4),
        filters(layout, 3, 4, 2, 4),
    ):
        refuses("conv2d", kwargs | {"w": w}, ValueError, "w", str(w.shape), str(kwargs["x"].shape))
    x, w = images(layout, 1, 8, 8, 4), filters(layout, 3, 3, 4, 4)
    refuses("conv2d", kwargs | {"x": x, "w": w, "groups": 3}, ValueError, "groups", "4", "3")
    w = filters(layout, 3, 3, 2, 3)  # 3 filters in 2 groups
    refuses("conv2d", kwargs | {"x": x, "w": w, "bias": None, "groups": 2}, ValueError, "groups")


def test_pointwise_filters_mismatch(layout):
    kwargs = valid("pointwise_conv2d", layout)
    for w in (pw_filters(layout, 4, 4), filters(layout, 1, 1, 2, 4)):
        refuses("pointwise_conv2d", kwargs | {"w": w}, ValueError, "w", str(w.shape))
    for w in (filters(layout, 3, 3, 3, 4), filters(layout, 1, 2, 3, 4)):
        refuses("pointwise_conv2d", kwargs | {"w": w}, ValueError, "w", str(w.shape))


def test_separable_filters_mismatch(layout):
    kwargs = valid("separable_conv2d", layout)
    dw, pw = dw_filters(layout, 3, 3, 2), pw_filters(layout, 2, 4)
    refuses("separable_conv2d", kwargs | {"dw": dw}, ValueError, "dw", str(dw.shape))
    refuses("separable_conv2d", kwargs | {"pw": pw}, ValueError, "pw", str(pw.shape))
    doubled = filters("NHWC", 3, 3, 3, 2) if layout == "NHWC" else filters(layout, 3, 3, 1, 6)
    refuses(
        "separable_conv2d",
        kwargs | {"dw": doubled, "dw_bias": None},
        ValueError,
        "pw",
        str(kwargs["pw"].shape),
    )


def test_depthwise_oihw_filters_mismatch():
    kwargs = valid("depthwise_conv2d", "NCHW") | {"bias": None}
    for shape in ((4, 1, 3, 3), (3, 3, 3, 3), (3, 2, 3, 3), (2, 1, 3, 3), (3, 3, 3)):
        w = np.zeros(shape, np.float32)
        refuses("depthwise_conv2d", kwargs | {"w": w}, ValueError, "w", str(shape))


@pytest.mark.parametrize("op", OPS)
def test_bias_length(op, layout):
    kwargs = valid(op, layout)
    for name in NAMES[op]:
        if "bias" in name:
            n = kwargs[name].size
            for shape in ((n + 1,), (n - 1,), (1,), (0,), (n, 1), (1, n)):
                bias = np.zeros(shape, np.float32)
                refuses(op, kwargs | {name: bias}, ValueError, name, str(shape))


@pytest.mark.parametrize("op", OPS)
def test_zero_sized_axes(op, layout):
    kwargs = valid(op, layout)
    for shape in ((1, 0, 8, 3), (1, 8, 0, 3), (1, 8, 8, 0), (0, 8, 8, 0), (0, 8, 3), (0, 0, 0, 0)):
        x = images(layout, *shape)
        refuses(op, kwargs | {"x": x}, ValueError, "x", str(x.shape))
    for name in NAMES[op][1:]:
        for axis in range(kwargs[name].ndim):
            shape = list(kwargs[name].shape)
            shape[axis] = 0
            empty = np.zeros(shape, np.float32)
            refuses(op, kwargs | {name: empty}, ValueError, name, str(tuple(shape)))


def test_zero_channels_everywhere(layout):
    nothing, x = images(layout, 1, 8, 8, 0), images(layout, 1, 8, 8, 3)
    for op, image, w in (
        ("conv2d", nothing, filters(layout, 3, 3, 0, 4)),
        ("conv2d", x, filters(layout, 3, 3, 3, 0)),
        ("depthwise_conv2d", nothing, dw_filters(layout, 3, 3, 0)),
        ("pointwise_conv2d", nothing, pw_filters(layout, 0, 4)),
        ("pointwise_conv2d", x, pw_filters(layout, 3, 0)),
    ):
        refuses(op, {"x": image, "w": w, "layout": layout}, ValueError, "shape", " 0")


@pytest.mark.parametrize("op", WINDOWED)
def test_kernel_larger_than_the_padded_image(op, layout):
    kwargs = valid(op, layout)
    for shape, padding, dilation, padded in (
        ((1, 2, 8, 3), 0, 1, "2x8"),
        ((1, 8, 2, 3), 0, 1, "8x2"),
        ((0, 2, 8, 3), 0, 1, "2x8"),
        ((1, 2, 1, 3), ((0, 0), (1, 1)), 1, "2x3"),
        ((1, 4, 4, 3), 0, 2, "4x4"),
        ((1, 1, 1, 3), "valid", 1, "1x1"),
        ((1, 8, 8, 3), 0, 4, "8x8"),
    ):
        options = {"x": images(layout, *shape), "padding": padding, "dilation": dilation}
        refuses(op, kwargs | options, ValueError, "kernel", "image", padded)
    x, w = images(layout, 1, 3, 3, 3), filters(layout, 5, 5, 3, 4)
    refuses("conv2d", {"x": x, "w": w, "layout": layout}, ValueError, "5x5", "3x3")


def test_result_too_large_for_memory(layout):
    x, w = images(layout, 1, 1, 1, 3), filters(layout, 3, 3, 3, 4)
    refuses("conv2d", {"x": x, "w": w, "padding": 2**20, "layout": layout}, MemoryError)
    dw, pw = dw_filters(layout, 3, 3, 3), pw_filters(layout, 3, 4)
    refuses("depthwise_conv2d", {"x": x, "w": dw, "padding": 2**20, "layout": layout}, MemoryError)
    refuses(
        "separable_conv2d",
        {"x": x, "dw": dw, "pw": pw, "padding": 2**20, "layout": layout},
        MemoryError,
    )


@pytest.mark.parametrize(
    "shape",
    [
        (2**15, 2**15, 2**15, 2**15),
        (2**60, 1, 1, 1),
        (1, 2**60, 1, 1),
        (1, 1, 2**60, 1),
        (2**20, 2**20, 2**20, 1),
        (2**31, 2**29, 1, 1),
        (1, 2**31 - 1, 2**29, 1),
        (2**40, 3, 3, 2**15),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_giant_images(shape, layout):
    x = giant(*shape)
    channels = shape[-1] if layout == "NHWC" else shape[1]
    one = channels if channels <= 2**20 else 1  # too many channels: let the shapes contradict
    w, dw, pw = (
        f(layout, *s)
        for f, s in ((filters, (1, 1, one, 1)), (dw_filters, (1, 1, one)), (pw_filters, (one, 1)))
    )
    options = {"x": x, "layout": layout}
    refuses("conv2d", options | {"w": w}, TOO_LARGE)
    refuses("conv2d", options | {"w": w, "padding": 2**40}, TOO_LARGE)
    refuses("conv2d", options | {"w": w, "padding": 2**61, "stride": 2**40}, TOO_LARGE)
    refuses("depthwise_conv2d", options | {"w": dw}, TOO_LARGE)
    refuses("pointwise_conv2d", options | {"w": pw}, TOO_LARGE)
    refuses("separable_conv2d", options | {"dw": dw, "pw": pw}, TOO_LARGE)


def test_empty_batch_of_a_giant_result(layout):
    """No memory, but NumPy would not have an array of this shape."""
    x = giant(0, 2**30, 2**30, 1) if layout == "NHWC" else giant(0, 1, 2**30, 2**30)
    refuses("conv2d", {"x": x, "w": filters(layout, 1, 1, 1, 64), "layout": layout}, TOO_LARGE)
    w = pw_filters(layout, 1, 64)
    refuses("pointwise_conv2d", {"x": x, "w": w, "layout": layout}, TOO_LARGE, "pointwise_conv2d")
    options = {"x": x, "w": dw_filters(layout, 1, 1, 1), "layout": layout}
    refuses("depthwise_conv2d", options | {"padding": 2**40}, TOO_LARGE, "depthwise_conv2d")
    assert ck.depthwise_conv2d(**options).shape == x.shape


def test_giant_weights():
    x = np.zeros((1, 2, 2, 1), np.float32)
    refuses("conv2d", {"x": x, "w": giant(1, 1, 1, 2**60)}, TOO_LARGE)
    refuses("conv2d", {"x": x, "w": giant(2**30, 2**30, 1, 1)}, TOO_LARGE)
    refuses("conv2d", {"x": x, "w": giant(2**30, 2**30, 1, 1), "padding": 2**29}, TOO_LARGE)
    refuses("conv2d", {"x": x, "w": giant(2**30, 2**30, 1, 1), "padding": "same"}, TOO_LARGE)
    refuses("depthwise_conv2d", {"x": x, "w": giant(1, 1, 1, 2**60)}, TOO_LARGE)
    refuses("depthwise_conv2d", {"x": x, "w": giant(2**30, 2**30, 1), "padding": "same"}, TOO_LARGE)
    refuses("pointwise_conv2d", {"x": x, "w": giant(1, 2**60)}, TOO_LARGE)
    refuses("separable_conv2d", {"x": x, "dw": giant(1, 1, 1), "pw": giant(1, 2**60)}, TOO_LARGE)
    refuses(
        "separable_conv2d", {"x": x, "dw": giant(1, 1, 1, 2**60), "pw": giant(2**60, 1)}, TOO_LARGE
    )
    refuses("conv2d", {"x": giant(1, 2, 2, 2**58), "w": giant(1, 1, 2**58, 1)}, TOO_LARGE)
    refuses("pointwise_conv2d", {"x": giant(1, 1, 1, 2**60), "w": giant(2**60, 1)}, TOO_LARGE)
    refuses("pointwise_conv2d", {"x": giant(1, 1, 1, 2**30), "w": giant(2**30, 2**30)}, TOO_LARGE)


@pytest.mark.parametrize("op", OPS)
def test_bad_out(op, layout):
    kwargs = valid(op, layout)
    y = getattr(ck, op)(**kwargs)
    shapes = [y.shape[1:], (1, *y.shape), (2, *y.shape[1:]), (y.size,), ()]
    shapes += [tuple(n - (i == axis) for i, n in enumerate(y.shape)) for axis in range(4)]
    shapes += [tuple(n + (i == axis) for i, n in enumerate(y.shape)) for axis in range(4)]
    for shape in shapes:
        out = np.zeros(shape, np.float32)
        refuses(op, kwargs | {"out": out}, ValueError, "out", str(shape), str(y.shape))
        assert not out.any()
    refuses(op, kwargs | {"out": np.zeros(y.shape, np.float64)}, TypeError, "out", "float32")
    out = np.zeros(y.shape, np.float32)
    out.flags.writeable = False
    refuses(op, kwargs | {"out": out}, ValueError, "out", "read-only")
    refuses(op, kwargs | {"out": out.tolist()}, TypeError, "out")
    refuses(op, kwargs | {"out": np.broadcast_to(out[..., :1], y.shape)}, ValueError, "out")
    for out in overlapping_themselves(y.shape):
        refuses(op, kwargs | {"out": out}, ValueError, "out", str(out.strides), "overlap")
        assert not out.any()


@pytest.mark.parametrize("op", OPS)
def test_bad_out_of_unbatched_and_empty_calls(op, layout):
    kwargs = valid(op, layout)
    unbatched = kwargs | {"x": kwargs["x"][0]}
    y = getattr(ck, op)(**unbatched)
    refuses(op, unbatched | {"out": y[None]}, ValueError, "out", str(y.shape))
    empty = kwargs | {"x": kwargs["x"][:0]}
    refuses(op, empty | {"out": y[None]}, ValueError, "out")


@pytest.mark.parametrize("op", OPS)
def test_bad_residual(op, layout):
    kwargs = valid(op, layout)
    y = getattr(ck, op)(**kwargs)
    for shape in (
        y.shape[1:],
        y.shape[:-1],
        (1, 1, 1, 1),
        (*y.shape[:-1], 1),
        (2, *y.shape[1:]),
        (),
    ):
        residual = np.zeros(shape, np.float32)
        refuses(
            op, kwargs | {"residual": residual}, ValueError, "residual", str(shape), str(y.shape)
        )


@pytest.mark.parametrize("op", OPS)
def test_options_are_keyword_only(op):
    kwargs = valid(op, "NHWC")
    arrays = [kwargs[name] for name in NAMES[op]]
    with pytest.raises(TypeError, match="positional"):
        getattr(ck, op)(*arrays, 1)
    with pytest.raises(TypeError, match="positional"):
        getattr(ck.naive, op)(*arrays, 1)


@pytest.mark.parametrize("op", OPS)
def test_unknown_and_missing_arguments(op):
    kwargs = valid(op, "NHWC")
    refuses(op, kwargs | {"strides": 1}, TypeError, "strides")
    for name in NAMES[op]:
        if "bias" not in name:
            refuses(op, {k: v for k, v in kwargs.items() if k != name}, TypeError, name)
    if op == "pointwise_conv2d":
        refuses(op, kwargs | {"padding": 1}, TypeError, "padding")
    if op != "conv2d":
        refuses(op, kwargs | {"groups": 1}, TypeError, "groups")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("module", [ck, ck.naive], ids=["fast", "naive"])
def test_empty_batch(op, module, layout):
    kwargs = valid(op, layout, x=(0, 8, 8, 3))
    y = getattr(module, op)(**kwargs)
    full = getattr(module, op)(**valid(op, layout))
    assert y.shape == (0, *full.shape[1:])
    assert y.dtype == np.float32


@pytest.mark.parametrize("op", OPS)
def test_naive_checks_alike(op, layout):
    for option, value, exception in (
        ("stride", 0, ValueError),
        ("stride", 1.5, TypeError),
        ("activation", "gelu", ValueError),
        ("x", images(layout, 1, 8, 8, 4), ValueError),
        ("x", images(layout, 1, 8, 8, 3, dtype="f8"), TypeError),
        ("out", np.zeros((1, 2, 3, 4), np.float32), ValueError),
    ):
        with pytest.raises(exception, match=option):
            getattr(ck.naive, op)(**valid(op, layout) | {option: value})


@pytest.mark.parametrize("groups", [1, 2])
def test_out_is_the_image(groups):
    made = example("conv2d_1x1", x=(2, 5, 5, 8), outputs=8, groups=groups)
    want = made.run()
    assert made.run(out=made.x) is made.x
    assert_same_bits(made.x, want)


class RaisingArray:
    """An array protocol that fails on its own."""

    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError("mine")


class Gpu:
    """A DLPack capsule that is not in this computer's memory."""

    def __dlpack__(self, **options):
        raise BufferError("not on a CPU")

    def __dlpack_device__(self):
        return (2, 0)


@pytest.mark.parametrize("op", OPS)
def test_array_protocols_that_fail(op):
    refuses(op, valid(op, "NHWC") | {"x": RaisingArray()}, TypeError, "x", "mine")
    refuses(op, valid(op, "NHWC") | {"x": Gpu()}, (TypeError, BufferError), "x", "CPU")
