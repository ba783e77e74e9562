"""max_pool2d, avg_pool2d and global_avg_pool2d: results, memory, arrays, layers."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import reference
from cases import (
    CHANNELS,
    DATA,
    LAYOUTS,
    HasArray,
    HasDLPack,
    as_memoryview,
    assert_same_bits,
    channels_id,
    images_nchw,
    pairwise,
)
from guard import guarded
from hypothesis import assume, given
from hypothesis import strategies as st
from pooling import EXAMPLES, OPS, WINDOWED, Pool, check, example, nchw, pool, refuses
from test_arrays import STRIDED, read_only
from test_memory import CANARY, ENDS
from test_properties import SETTINGS, one_or_two, pads

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")

# ------------------------------------------------------------------------------- shapes and windows


@pytest.mark.parametrize("channels", [*CHANNELS, 128, 131, 200], ids=channels_id)
def test_channels(channels):
    for window in pairwise(op=WINDOWED, kernel=(1, 2, 3), stride=(1, 2, 3), data=DATA):
        check(pool(x=(2, 5, 7, channels), padding=window["kernel"] // 2, **window))


@pytest.mark.parametrize("height", range(1, 10), ids="height_{}".format)
def test_image_size(height):
    cases = pairwise(
        op=WINDOWED,
        kernel_and_padding=((3, 1), (2, "same")),
        stride=(1, 2, 3),
        channels=(3, 17),
        layout=LAYOUTS,
        data=DATA,
    )
    for width, case in product(range(1, 10), cases):
        window = dict(case)
        kernel, padding = window.pop("kernel_and_padding")
        x = (2, height, width, window.pop("channels"))
        check(pool(x=x, kernel=kernel, padding=padding, **window))
    for width, layout in product(range(1, 10), LAYOUTS):
        check(pool("global_avg_pool2d", (2, height, width, 5), layout=layout))


@pytest.mark.parametrize("width", [*range(10, 35), 47, 48, 49, 63, 64, 65, 130])
def test_width_of_planes(width):
    """Where the elements of a row fill the vectors."""
    for window in pairwise(op=WINDOWED, kernel=(2, 3, 5), stride=(1, 2, 3), data=DATA):
        check(pool(x=(1, 6, width, 7), layout="NCHW", padding=1, **window))
        check(pool(x=(1, 6, width, 1), padding=1, **window))


@pytest.mark.parametrize("kh", range(1, 8), ids="kh_{}".format)
def test_kernel(kh):
    windows = pairwise(
        op=WINDOWED,
        padding=("same", "valid"),
        stride=(None, 1, 2),
        dilation=(1, 2),
        layout=LAYOUTS,
        data=DATA,
    )
    for kw, window in product(range(1, 8), windows):
        x = (1, 6, 7, 9) if window["padding"] == "same" else (1, 14, 15, 5)
        check(pool(x=x, kernel=(kh, kw), **window))


@pytest.mark.parametrize(
    "padding",
    [
        0,
        1,
        3,
        (0, 2),
        (2, 0),
        ((0, 1), (1, 0)),
        ((3, 0), (0, 5)),
        ((0, 0), (7, 9)),
        "valid",
        "same",
        "same_lower",
    ],
    ids=str,
)
def test_padding(padding, layout):
    for window in pairwise(
        x=((1, 5, 6, 1), (1, 5, 6, 18)),
        kernel=(3, (2, 4)),
        stride=(1, 2, (2, 1), (1, 2), (3, 1), None),
        ceil_mode=(False, True),
        data=DATA,
    ):
        check(pool("max_pool2d", padding=padding, layout=layout, **window))
        for count_include_pad in (False, True):
            window["count_include_pad"] = count_include_pad
            check(pool("avg_pool2d", padding=padding, layout=layout, **window))


def test_unequal_stride_and_dilation(layout, data):
    for op, stride, dilation in product(WINDOWED, ((1, 2), (3, 1), (5, 7)), (1, (1, 2), (3, 1))):
        window = {"kernel": 3, "stride": stride, "dilation": dilation, "padding": 2, "data": data}
        check(pool(op, (1, 9, 8, 21), layout=layout, **window))


@pytest.mark.parametrize("name", EXAMPLES)
def test_batch(name, layout):
    channels = EXAMPLES[name]["x"][-1]
    for batch in ((0,), (1,), (3,), ()):
        made = example(name, x=(*batch, 9, 9, channels), layout=layout)
        check(made)
        assert made.layer()(made.x).shape == made.run().shape


@pytest.mark.parametrize(
    "size", [(5, 1500, 3), (5, 1500, 1), (3, 40, 700), (2, 9, 5000), (70, 5, 90)], ids=str
)
def test_blocks(size, layout):
    """More of a row than a block holds, of few channels and of many."""
    for window in pairwise(op=WINDOWED, kernel_and_stride=((3, 1), (3, 2), ((2, 5), 3)), data=DATA):
        kernel, stride = window.pop("kernel_and_stride")
        check(pool(x=size, kernel=kernel, stride=stride, padding=1, layout=layout, **window))
    check(pool("global_avg_pool2d", size, layout=layout))


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 17, 64, 300], ids=channels_id)
def test_global(channels, data):
    for pixels in [*range(1, 20), 31, 32, 33, 49, 64, 2500]:
        for size in ((1, pixels), (pixels, 1)):
            made = pool("global_avg_pool2d", (2, *size, channels), data=data)
            check(made)
            assert_same_bits(nchw(made).run(), images_nchw(made.run()))


def test_global_is_the_pooling_of_the_whole_image(layout):
    made = pool("global_avg_pool2d", (2, 6, 9, 21), layout=layout)
    assert_same_bits(ck.avg_pool2d(made.x, (6, 9), layout=layout), made.run())


def test_keepdims(layout):
    made = pool("global_avg_pool2d", (2, 3, 4, 5), layout=layout)
    want = made.run().reshape(2, 5)
    assert_same_bits(made.run(keepdims=False), want)
    assert_same_bits(made.on(made.x[0]).run(keepdims=np.False_), want[0])
    out = np.empty((2, 5), np.float32)
    assert made.run(keepdims=False, out=out) is out
    assert_same_bits(out, want)


def test_stride_is_the_kernel(layout):
    for op in WINDOWED:
        made = pool(op, (1, 12, 12, 3), kernel=(3, 2), layout=layout)
        assert_same_bits(made.run(), made.run(stride=(3, 2)))
        assert_same_bits(made.run(stride=None), made.run(stride=(3, 2)))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "outputs"),
    [
        (7, 3, 2, 0, (3, 3)),
        (8, 3, 2, 0, (3, 4)),
        (111, 3, 2, 0, (55, 55)),  # SqueezeNet
        (112, 3, 2, 0, (55, 56)),
        (4, 1, 3, 0, (2, 2)),
        (5, 1, 3, 0, (2, 2)),  # a window that would start at the end
        (2, 1, 2, 0, (1, 1)),
        (2, 3, 3, 1, (1, 1)),  # one that would start in the padding
        (3, 2, 2, 1, (2, 2)),
        (4, 2, 2, 1, (3, 3)),
        (1, 2, 2, 0, (None, 1)),  # a window that hangs over by less than its stride
        (1, 3, 2, 0, (None, None)),
        (1, 1, 1, 3, (7, 7)),
    ],
)
def test_ceil_mode(size, kernel, stride, padding, outputs, layout):
    for op, (ceil_mode, n) in product(WINDOWED, enumerate(outputs)):
        window = {"kernel": kernel, "stride": stride, "padding": padding}
        made = pool(op, (1, size, size, 5), ceil_mode=bool(ceil_mode), layout=layout, **window)
        if n is None:
            with pytest.raises(ValueError, match="kernel"):
                made.run()
        else:
            assert made.run().shape == ((1, n, n, 5) if layout == "NHWC" else (1, 5, n, n))
            check(made)


def taps_inside(size, kernel, stride, dilation, padding):
    """List which pixels are under each window along an axis, however far the window reaches."""
    outputs = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
    starts = [o * stride - padding for o in range(outputs)]
    taps = [[divmod(i - start, dilation) for i in range(size)] for start in starts]
    return [[i for i, (k, off) in enumerate(at) if off == 0 and 0 <= k < kernel] for at in taps]


@pytest.mark.parametrize(
    "window",
    [  # kernel, stride, dilation, padding
        (3, 1, 2**40, 2**40),
        (3, 2, 2**40 - 1, 2**40),
        (2**40, 2**39, 1, 2**40),
        (2**61, 2**60, 1, 2**61 - 1),
        (1, 2**62, 2**62, 0),
        (1, 2**60, 7, 2**61),
        (2, 2**60, 2**61 - 1, 2**61),
        (2**62, 1, 1, 2**61),
        (4, 2**40, 2, 2**42 - 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 20], ids=channels_id)
def test_enormous_windows(window, channels, layout):
    names = ("kernel", "stride", "dilation", "padding")
    made = pool("max_pool2d", (2, 3, 4, channels), **dict(zip(names, window, strict=True)))
    rows, columns = (taps_inside(n, *window) for n in (3, 4))
    under = [[made.x[:, r][:, :, c] for c in columns] for r in rows]
    nothing = {"axis": (1, 2), "initial": -np.inf}
    largest = np.array([[np.max(taps, **nothing) for taps in row] for row in under])
    with np.errstate(invalid="ignore"):
        mean = np.array(
            [[taps.sum((1, 2)) / np.float64(taps[0, ..., 0].size) for taps in row] for row in under]
        )
    y = made.run() if layout == "NHWC" else nchw(made).run().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(y, largest.transpose(2, 0, 1, 3))
    average = Pool("avg_pool2d", made.x, made.options)
    y = average.run() if layout == "NHWC" else nchw(average).run().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, mean.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------- NaN, infinities, zeros, denormals


@pytest.mark.parametrize("channels", [1, 3, 19], ids=channels_id)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_special_pixel(special, channels, layout):
    for case in pairwise(
        op=WINDOWED,
        kernel_and_stride=((2, 2), (3, 1), (3, 2), ((4, 2), 3)),
        row=(0, 2, 5),
        column=(0, 3, 6),
        image_and_channel=((0, 0), (0, channels - 1), (1, 0), (1, channels - 1)),
    ):
        kernel, stride = case["kernel_and_stride"]
        made = pool(case["op"], (2, 6, 7, channels), kernel=kernel, stride=stride, padding=1)
        image, channel = case["image_and_channel"]
        made.x[image, case["row"], case["column"], channel] = special
        check(made if layout == "NHWC" else nchw(made))


@pytest.mark.parametrize("channels", [1, 5, 40], ids=channels_id)
def test_special_pixel_of_a_global_average(channels, layout):
    made = pool("global_avg_pool2d", (2, 5, 7, channels))
    spots = [*range(0, made.x.size, made.x.size // 17), -1]
    for special, spot in product((np.nan, np.inf, -np.inf), spots):
        x = made.x.copy()
        x.reshape(-1)[spot] = special
        check(made.on(x) if layout == "NHWC" else nchw(made.on(x)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_whatever_comes_before_and_after(dtype, layout):
    """The larger of two numbers is found by an instruction that forgets one of its NaNs."""
    for values in product((np.nan, np.inf, -np.inf, 1, -1), repeat=4):
        x = np.tile(np.array(values, dtype).reshape(2, 2, 1), (1, 1, 20))
        x = x if layout == "NHWC" else images_nchw(x)
        y = ck.max_pool2d(x, 2, layout=layout)
        assert (y == np.max(values)).all() or (np.isnan(y).all() and np.isnan(values).any())


def test_windows_of_padding_alone(layout):
    for channels in (1, 20):
        x = pool("max_pool2d", (1, 2, 2, channels), layout=layout).x
        window = {"kernel": 1, "stride": 1, "padding": 2, "layout": layout}
        inside = (slice(2, 4), slice(2, 4))
        border = np.ones((6, 6), bool)
        border[inside] = False
        for y, nothing in (
            (ck.max_pool2d(x, **window), -np.inf),
            (ck.avg_pool2d(x, **window), np.nan),
            (ck.avg_pool2d(x, count_include_pad=True, **window), 0),
        ):
            planes = y if layout == "NCHW" else images_nchw(y)
            np.testing.assert_array_equal(planes[..., border], nothing)
            np.testing.assert_array_equal(
                planes[..., *inside], x if layout == "NCHW" else images_nchw(x)
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maxima_are_numbers_of_the_image(dtype, layout):
    tiny = np.finfo(dtype).smallest_subnormal
    for number in (-0.0, 0.0, tiny, -tiny, 7 * tiny, -np.inf, np.finfo(dtype).min):
        for channels, kernel, stride in product((1, 5, 40), (1, 2, 3), (1, 2, 3)):
            x = np.full((1, 4, 5, channels), number, dtype)
            made = Pool("max_pool2d", x, {"kernel": kernel, "stride": stride, "padding": 1})
            y = (made if layout == "NHWC" else nchw(made)).run()
            covered = y[np.isfinite(y)] if np.isfinite(number) else y
            assert_same_bits(covered, np.full_like(covered, number))


def test_denormals_are_ordered(layout):
    x = np.arange(-8, 8, dtype=np.float32).reshape(1, 4, 4, 1) * np.float32(1e-44)
    made = Pool("max_pool2d", np.tile(x, 20), {"kernel": 2})
    check(made if layout == "NHWC" else nchw(made))


def test_denormal_means_are_flushed(layout):
    for name in ("avg_2x2", "avg_ceil_few_channels", "global"):
        made = example(name, layout=layout)
        assert (made.on(np.full_like(made.x, 1e-40)).run() == 0).all()


def test_means_that_overflow(layout):
    made = pool("avg_pool2d", (1, 4, 4, 20), kernel=2, layout=layout)
    assert np.isposinf(made.on(np.full_like(made.x, 3e38)).run()).all()


def test_a_constant_is_its_mean(layout):
    """Sums of small integers are exact, and so is their quotient; a reciprocal's product is not."""
    for number, size in product((1, 3, 5, 7), (3, 5, 7, 9, 11, 13)):
        x = np.full((1, size, size, 20), number, np.float32)
        x = x if layout == "NHWC" else images_nchw(x)
        for y in (
            ck.global_avg_pool2d(x, layout=layout),
            ck.avg_pool2d(x, size, padding=size - 1, stride=1, layout=layout),
        ):
            assert (y == number).all()


# ----------------------------------------------------------------------------------------- memory


def check_guarded(made, end):
    """Run a call between an input in read-only pages and an output, each against a hole."""
    want = made.run()
    out = guarded(np.full_like(want, CANARY), end, writable=True)
    assert_same_bits(made.on(guarded(made.x, end)).run(out=out), want)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_guard_pages(name, end, layout):
    for changes in ({}, {"data": "doubles"}, {"x": EXAMPLES[name]["x"][1:]}):
        check_guarded(example(name, layout=layout, **changes), end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
def test_guard_pages_channels(channels, end):
    for window in pairwise(
        op=WINDOWED,
        kernel_and_stride=((1, 1), (2, 2), (3, 1), (3, 2), (2, 3)),
        padding=(0, 1),
        layout=LAYOUTS,
        data=("reals", "doubles"),
    ):
        kernel, stride = window.pop("kernel_and_stride")
        check_guarded(pool(x=(1, 4, 5, channels), kernel=kernel, stride=stride, **window), end)
    for layout in LAYOUTS:
        check_guarded(pool("global_avg_pool2d", (1, 3, 5, channels), layout=layout), end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("width", [*range(1, 20), 31, 32, 33, 65], ids="width_{}".format)
def test_guard_pages_image_size(width, end):
    for window in pairwise(
        op=WINDOWED,
        height=(1, 2, 5),
        stride=(1, 2, 3),
        batch_and_channels=((1, 3), (2, 17)),
        layout=LAYOUTS,
    ):
        batch, channels = window.pop("batch_and_channels")
        x = (batch, window.pop("height"), width, channels)
        check_guarded(pool(x=x, kernel=3, padding=1, **window), end)
    for height, layout in product(range(1, 6), LAYOUTS):
        check_guarded(pool("global_avg_pool2d", (1, height, width, 3), layout=layout), end)


@pytest.mark.parametrize("name", EXAMPLES)
def test_canaries_around_out(name, layout):
    made = example(name, layout=layout)
    want = made.run()
    row = np.full(want.size + 64, CANARY)  # contiguous, at every alignment of a cache line
    for start in range(17):
        row[:] = CANARY
        made.run(out=row[start : start + want.size].reshape(want.shape))
        assert_same_bits(row[start : start + want.size].reshape(want.shape), want)
        assert (row[:start] == CANARY).all()
        assert (row[start + want.size :] == CANARY).all()


# ----------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("name", EXAMPLES)
def test_input_kind(name, layout):
    made = example(name, layout=layout)
    want = made.run()
    for kind in (*STRIDED, read_only, as_memoryview, HasArray, HasDLPack):
        assert_same_bits(made.on(kind(made.x)).run(), want)


@pytest.mark.parametrize("name", EXAMPLES)
def test_layouts_agree(name, data):
    made = example(name, data=data)
    y = made.run()
    assert_same_bits(nchw(made).run(), images_nchw(y) if y.ndim == 4 else y)


@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
def test_layouts_agree_for_any_channels(channels):
    for op, (kernel, stride) in product(WINDOWED, ((2, 2), (3, 1), (3, 2), (5, 3))):
        made = pool(op, (2, 6, 9, channels), kernel=kernel, stride=stride, padding=2)
        assert_same_bits(nchw(made).run(), images_nchw(made.run()))


@pytest.mark.parametrize("name", EXAMPLES)
def test_batch_is_its_images(name, layout):
    made = example(name, layout=layout, x=(9, *EXAMPLES[name]["x"][1:]))
    y = made.run()
    for x, image in zip(made.x, y, strict=True):
        assert_same_bits(made.on(x[None]).run(), image[None])
        assert_same_bits(made.on(x).run(), image)


@pytest.mark.parametrize("name", EXAMPLES)
def test_result_is_fresh_and_inputs_are_unchanged(name, layout):
    made = example(name, layout=layout)
    x = made.x.copy()
    y = made.run()
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert not np.shares_memory(y, made.x)
    assert not np.shares_memory(y, made.run())
    assert_same_bits(made.x, x)


@pytest.mark.parametrize("name", EXAMPLES)
def test_threads_agree(name, layout):
    made = example(name, layout=layout)
    for threads in (1, 2, 64, np.int32(3)):
        assert_same_bits(made.run(threads=threads), made.run())


@pytest.mark.parametrize("name", EXAMPLES)
def test_out(name, layout):
    made = example(name, layout=layout)
    want = made.run()
    for kind in (np.array, *STRIDED):
        out = kind(np.full_like(want, np.nan))
        assert made.run(out=out) is out
        assert_same_bits(out, want)
    empty = made.on(made.x[:0])
    out = np.empty_like(empty.run())
    assert empty.run(out=out) is out


@pytest.mark.parametrize("name", EXAMPLES)
def test_out_overlaps_the_image(name, layout):
    made = example(name, layout=layout)
    want = made.run()
    for offset in (0, 1, 7, 64, 500):
        memory = np.zeros(made.x.size + want.size + offset, np.float32)
        x = memory[: made.x.size].reshape(made.x.shape)
        flat = memory[offset : offset + want.size]
        for out in (flat.reshape(want.shape), flat[::-1].reshape(want.shape)):
            x[...] = made.x
            assert_same_bits(made.on(x).run(out=out), want)


def test_out_is_the_image(layout):
    for op in WINDOWED:
        made = pool(op, (2, 5, 6, 18), kernel=3, stride=1, padding=1, layout=layout)
        want = made.run()
        assert made.run(out=made.x) is made.x
        assert_same_bits(made.x, want)


# ------------------------------------------------------------------------------- listed bad inputs


def test_listed_bad_inputs():
    """BAD-INPUTS 27 and 34 to 37, written for NCHW."""
    options = {"layout": "NCHW"}
    x = np.array([[1, np.nan], [2, 3]], np.float32).reshape(1, 1, 2, 2)
    y = ck.max_pool2d(x, 2, **options)
    assert np.isnan(y).all()
    assert y.shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="kernel"):
        ck.max_pool2d(x, (0, 2), **options)
    with pytest.raises(ValueError, match="stride"):
        ck.max_pool2d(x, 2, stride=(0, 0), **options)
    y = ck.avg_pool2d(np.ones((1, 1, 3, 3), np.float32), 3, stride=1, padding=1, **options)
    assert (y == 1).all()
    assert y.shape == (1, 1, 3, 3)
    x = np.random.default_rng(0).standard_normal((1, 1, 2, 2)).astype(np.float32)
    y = ck.max_pool2d(x, 3, stride=1, dilation=2, padding=2, **options)
    assert (y == x).all()


# ------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize("name", EXAMPLES)
def test_layer(name, layout, data):
    made = example(name, layout=layout, data=data)
    layer, want = made.layer(), made.run()
    assert_same_bits(layer(made.x), want)
    assert_same_bits(layer(made.x[0]), want[0])
    out = np.full_like(want, np.nan)
    assert layer(made.x, out, 1) is out
    assert_same_bits(out, want)
    for x in (made.x, made.x[0], made.x[:0]):
        assert layer.out_shape(x.shape) == layer(x).shape
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(layer, protocol))
        assert type(again) is type(layer)
        assert_same_bits(again(made.x), want)
    assert type(layer).__name__ in repr(layer)
    assert ck.isa() in repr(layer)


@pytest.mark.parametrize("name", EXAMPLES)
def test_layer_takes_images_of_any_size_from_any_thread(name):
    layer = example(name).layer()
    channels = EXAMPLES[name]["x"][-1]
    made = [example(name, x=(n, h, w, channels)) for n, h, w in ((1, 24, 24), (2, 13, 17))]
    made.append(example(name, x=(1, 12, 40, channels), data="doubles"))
    want = [m.run() for m in made]
    calls = list(range(len(made))) * 20
    with ThreadPoolExecutor(8) as threads:
        for i, y in zip(calls, threads.map(lambda i: layer(made[i].x), calls), strict=True):
            assert_same_bits(y, want[i])


def test_layer_outlives_its_isa():
    made = example("avg_3x3", data="integers")
    layers = []
    for isa in ck.available_isas():
        with ck.use_isa(isa):
            layers.append(made.layer())
            assert layers[-1].isa == isa
    for layer in layers:
        check(made, layer(made.x))


# ------------------------------------------------------------------------ any call; other libraries


@st.composite
def calls(draw):
    """Draw a valid call of any pooling function."""
    op = draw(st.sampled_from(OPS))
    x = (
        *draw(st.sampled_from([(), (0,), (1,), (3,)])),
        draw(st.integers(1, 14)),
        draw(st.one_of(st.integers(1, 14), st.integers(30, 70))),
        draw(st.one_of(st.integers(1, 35), st.integers(60, 140))),
    )
    options = {
        "layout": draw(st.sampled_from(LAYOUTS)),
        "data": draw(st.sampled_from(["integers", "reals", "doubles"])),
        "seed": draw(st.integers(0, 1000)),
    }
    if op == "global_avg_pool2d":
        return pool(op, x, keepdims=draw(st.booleans()), **options)
    options |= {
        "kernel": draw(one_or_two(6)),
        "stride": draw(st.one_of(st.none(), one_or_two(4))),
        "padding": draw(pads),
        "dilation": draw(one_or_two(3)),
        "ceil_mode": draw(st.booleans()),
    }
    if op == "avg_pool2d":
        options["count_include_pad"] = draw(st.booleans())
    made = pool(op, x, **options)
    assume(0 not in made.want().shape[-3:])
    return made


@SETTINGS
@given(calls())
def test_any_call(made):
    y = made.run()
    check(made, y)
    out = np.full((*y.shape[:-1], y.shape[-1] + 1), np.nan, y.dtype)
    made.run(out=out[..., :-1])
    assert_same_bits(out[..., :-1], y)
    assert np.isnan(out[..., -1]).all()
    assert_same_bits(made.layer()(made.x), y)
    if "layout" not in made.options and y.ndim > 2:
        assert_same_bits(nchw(made).run(), images_nchw(y))


def torch_calls():
    """Windows that torch takes: padding of at most half the kernel, the same on both sides."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        kernel, stride, dilation = rng.integers(1, (7, 4, 4), (2, 3)).T.tolist()
        padding = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        size = [int(n) for n in rng.integers(1, 30, 2)]
        channels, ceil_mode = int(rng.integers(1, 40)), bool(rng.integers(2))
        window = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        yield pool("max_pool2d", (2, *size, channels), dilation=dilation, layout="NCHW", **window)
        window |= {"count_include_pad": bool(rng.integers(2))}
        yield pool("avg_pool2d", (2, *size, channels), layout="NCHW", **window)


def test_torch():
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    agreed = 0
    for made in torch_calls():
        options = {k: v for k, v in made.options.items() if k != "layout"}
        kernel = options.pop("kernel")
        try:
            want = getattr(functional, made.op)(torch.from_numpy(made.x), kernel, **options)
        except RuntimeError:  # no output
            refuses(made, ValueError, "kernel")
        else:
            np.testing.assert_allclose(made.run(), want.numpy(), rtol=1e-5, atol=1e-6)
            agreed += 1
    assert agreed > 400


def test_oracle_of_global_averages():
    made = example("global")
    np.testing.assert_allclose(
        made.want(), reference.avg_pool2d(made.x, made.x.shape[1:3]), rtol=1e-12
    )
