"""deform_conv2d against the oracle: where samples fall, who shares them, what is refused."""

import functools
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, product

import deforming
import numpy as np
import pytest
from cases import ACTIVATIONS, CHANNELS, assert_same_bits, channels_id, check, images_nchw
from deforming import EXAMPLES, FAR, deform, layer_of, nchw, with_offsets
from guard import guarded
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")


def check_both(made):
    """Check an NHWC call; its NCHW twin gives the same bits."""
    got = made.run()
    check(made, got)
    assert_same_bits(nchw(made).run(), images_nchw(got))
    return got


# ------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
def test_channels(channels, data):
    check_both(deform((2, 4, 5, channels), outputs=5, padding=1, data=data))
    check_both(deform((1, 4, 5, 3), outputs=channels, padding=1, data=data))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (17, 40)], ids=str)
def test_image_size(size, data):
    for spread, mask in product((0.0, 0.3, 2.0, 20.0), (True, False)):
        check_both(deform((1, *size, 5), spread=spread, padding=2, mask=mask, data=data))


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 1), (2, 2), (3, 3), (5, 4)], ids=str)
def test_window(kernel, data):
    walks = product((1, 2, (3, 1)), (1, 2, (1, 3)))
    paddings = cycle(("same", ((0, 3), (2, 1)), 4, "valid"))
    for (stride, dilation), padding in zip(walks, paddings, strict=False):
        window = {"stride": stride, "dilation": dilation, "padding": padding}
        check_both(deform((1, 10, 13, 6), kernel=kernel, **window, data=data))


@pytest.mark.parametrize(
    ("channels", "groups", "offset_groups"),
    [
        (8, 2, 1),
        (8, 1, 2),
        (12, 2, 3),
        (12, 3, 2),
        (12, 12, 12),
        (12, 1, 12),
        (12, 12, 1),
        (40, 2, 5),
        (34, 2, 17),
        (48, 1, 3),
        (66, 2, 3),
        (64, 4, 8),
    ],
)
def test_groups(channels, groups, offset_groups, data):
    sharing = {"groups": groups, "offset_groups": offset_groups, "outputs": 3 * groups}
    for mask in (True, False):
        check_both(deform((2, 5, 6, channels), **sharing, mask=mask, padding=1, data=data))


@pytest.mark.parametrize(
    "x",
    [(0, 5, 6, 3), (1, 5, 6, 3), (3, 5, 6, 3), (5, 6, 3)],
    ids=["batch_0", "batch_1", "batch_3", "unbatched"],
)
def test_batch(x, data):
    check_both(deform(x, outputs=7, padding=1, data=data, residual=True))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_and_residual(activation, data):
    for residual in (True, False):
        made = {"activation": activation, "residual": residual, "bias": residual, "padding": 1}
        check_both(deform((1, 6, 5, 7), outputs=19, data=data, **made))


@pytest.mark.parametrize("offset_groups", [1, 67])
def test_ranges_of_terms(offset_groups, data):
    """More terms than a range of the GEMM holds, which end within a tap."""
    made = {"offset_groups": offset_groups, "residual": True, "activation": "relu6"}
    check_both(deform((1, 3, 5, 1541), outputs=3, padding=1, data=data, **made))


def test_more_taps_than_a_range_holds():
    """Of one channel each: no other call has as many offsets for a range of terms."""
    check_both(deform((1, 2, 3, 2), kernel=(65, 65), groups=2, outputs=4, padding=32))


@pytest.mark.parametrize(
    ("size", "stride"),
    [((77, 19), (2, 4)), ((2, 131), 1), ((200, 2), (3, 1))],
    ids=["rows", "part_of_a_row", "tall"],
)
def test_blocks(size, stride, data):
    """More pixels than a block of the GEMM holds; in NCHW more rows than the band."""
    for spread in (1.0, 30.0):
        made = {"kernel": (2, 2), "padding": 1, "stride": stride, "spread": spread}
        check_both(deform((2, *size, 97), outputs=5, data=data, **made))


@pytest.mark.parametrize(
    "window", [{"stride": (40, 1)}, {"dilation": (60, 1)}, {"stride": 7, "padding": 30}], ids=str
)
def test_rows_far_apart(window):
    """Blocks that reach over more rows than the band of an NCHW call holds."""
    for spread in (1.0, 100.0):
        check_both(deform((1, 500, 5, 97), outputs=3, spread=spread, **window))


def test_zero_offsets_are_the_plain_convolution(layout):
    made = deform((2, 9, 11, 37), outputs=33, padding=1, spread=0, mask=False, layout=layout)
    w = made.weights[1]
    want = ck.conv2d(made.x, w, *made.biases, padding=1, layout=layout)
    assert_same_bits(made.run(), want)


@pytest.mark.parametrize("shift", [(0, 1), (-2, 0), (3, -4)], ids=str)
def test_integer_offsets_shift_the_image(shift, layout):
    made = deform((1, 9, 11, 5), padding=1, mask=False, data="integers")
    offset = np.broadcast_to(np.tile(np.float32(shift), 9), made.weights[0].shape)
    rows, columns = (np.pad(made.x, ((0, 0), (9, 9), (9, 9), (0, 0))), 9)[0], 9
    top, left = columns - 1 + shift[0], columns - 1 + shift[1]
    moved = rows[:, top : top + 11, left : left + 13]
    want = ck.conv2d(moved, made.weights[1], *made.biases)
    made = replace(made, weights=(offset, made.weights[1]))
    got = made.run() if layout == "NHWC" else nchw(made).run()
    np.testing.assert_array_equal(got, want if layout == "NHWC" else images_nchw(want))


def sample(image, y, x, mask=None, dtype=np.float32, layout="NHWC"):
    """One sample of a (h, w) image, by a 1x1 kernel on the first pixel."""
    image = np.asarray(image, dtype)[..., None]
    offset = np.zeros((*image.shape[:2], 2), dtype)
    offset[0, 0] = y, x
    masks = None if mask is None else np.full(image.shape, mask, dtype)
    w = np.ones((1, 1, 1, 1), dtype)
    if layout == "NCHW":
        image, offset = images_nchw(image), images_nchw(offset)
        masks = masks if masks is None else images_nchw(masks)
    return ck.deform_conv2d(image, offset, w, mask=masks, layout=layout).flat[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges(dtype, layout):
    two = [[2.0]]
    tiny = np.finfo(dtype).eps / 2
    for at, want in (
        ((0, 0), 2),
        ((-0.5, 0), 1),
        ((0, -0.5), 1),
        ((0.5, 0.5), 0.5),
        ((-0.5, 0.25), 0.75),
        ((-1, 0), 0),
        ((1, 0), 0),
        ((0, -1), 0),
        ((0, 1), 0),
        ((1 - tiny, 0), 2 * tiny),
        ((-1 + tiny, 0), 2 * tiny),
        ((-(tiny**3), 0), 2),
        ((-0.0, -0.0), 2),
    ):
        assert sample(two, *at, dtype=dtype, layout=layout) == dtype(want), at
    grid = np.arange(12).reshape(3, 4)
    for y, x in np.ndindex(24, 32):
        at = y / 4 - 1.5, x / 4 - 1.5
        inside = -1 < at[0] < 3 and -1 < at[1] < 4
        padded = np.pad(grid, 4)
        (row, down), (column, right) = divmod(at[0] + 4, 1), divmod(at[1] + 4, 1)
        four = padded[int(row) : int(row) + 2, int(column) : int(column) + 2]
        want = np.array([1 - down, down]) @ four @ np.array([1 - right, right])
        assert sample(grid, *at, dtype=dtype, layout=layout) == (want if inside else 0), at


def test_fractions_keep_their_bits_far_from_the_origin():
    """Row 1000 plus a small fraction: their sum in float32 would be off by 3e-5."""
    image = np.zeros((1002, 1, 1), np.float32)
    image[1001] = 1
    offset = np.zeros((1002, 1, 2), np.float32)
    offset[1000, 0, 0] = fraction = np.float32(1e-6)
    y = ck.deform_conv2d(image, offset, np.ones((1, 1, 1, 1), np.float32))
    assert y[1000, 0, 0] == fraction


@pytest.mark.parametrize("far", [2**31, 2**40, 2**61], ids=str)
def test_taps_that_start_far_away(far):
    """Padding so wide that only an offset as wide brings a tap back."""
    x, w = np.full((1, 1, 1), 3, np.float32), np.ones((1, 1, 1, 1), np.float32)
    window = {"padding": ((far, 0), (far, 0)), "stride": far}
    offset = np.zeros((2, 2, 2), np.float32)
    np.testing.assert_array_equal(
        ck.deform_conv2d(x, offset, w, **window)[..., 0], [[0, 0], [0, 3]]
    )
    if far < 2**61:
        offset[0, 0] = far
        offset[1, 1] = -far
        y = ck.deform_conv2d(x, offset, w, **window)[..., 0]
        np.testing.assert_array_equal(y, [[3, 0], [0, 0]])


# ------------------------------------------------------------------------ NaN, infinities, far away


@pytest.mark.parametrize("value", [np.nan, *FAR], ids=str)
def test_special_offsets(value, layout):
    made = deform((2, 5, 6, 18), padding=1, offset_groups=2, layout=layout)
    offset, _ = made.weights
    rng = np.random.default_rng(1)
    for share in (0.01, 0.5, 1.0):
        moved = np.where(rng.random(offset.shape) < share, np.float32(value), offset)
        check(with_offsets(made, moved))
    got = made.with_(mask=None)
    got = with_offsets(got, np.full_like(offset, value)).run()
    bias = made.biases[0] if layout == "NHWC" else made.biases[0][:, None, None]
    np.testing.assert_array_equal(
        got, np.broadcast_to(bias + (value if value != value else 0), got.shape)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 2.0**31], ids=str)
def test_special_offset_in_every_position(value):
    padding = ((1, 0), (0, 1))
    made = deform((1, 2, 2, 6), kernel=(2, 2), offset_groups=2, padding=padding)
    offset, usual = made.weights[0], made.run()
    for position in np.ndindex(offset.shape):
        moved = offset.copy()
        moved[position] = value
        got = check_both(with_offsets(made, moved))
        got[position[:3]] = usual[position[:3]]
        np.testing.assert_array_equal(got, usual)  # all other pixels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_special_pixel_in_every_position(value, spread):
    """With offsets of 0 every neighbour but one has weight 0, and 0 * inf is NaN."""
    made = deform((2, 2, 3, 4), groups=2, offset_groups=2, padding=1, spread=spread)
    for position in np.ndindex(made.x.shape):
        x = made.x.copy()
        x[position] = value
        got = check_both(replace(made, x=x))
        assert np.isfinite(got[1 - position[0]]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -0.0], ids=str)
def test_special_masks_and_weights(value, layout):
    made = deform((1, 3, 4, 5), padding=1, layout=layout)
    rng = np.random.default_rng(1)
    for share in (0.02, 1.0):
        mask, w = made.options["mask"], made.weights[1]
        other = np.where(rng.random(mask.shape) < share, np.float32(value), mask)
        check(made.with_(mask=other))
        other = np.where(rng.random(w.shape) < share, np.float32(value), w)
        check(replace(made, weights=(made.weights[0], other)))
    x = made.x.copy()
    x[0, 1, 2, 0] = np.inf
    check(replace(made, x=x).with_(mask=np.full_like(mask, value)))


def test_denormals_are_zero():
    assert sample([[1e-40]], 0, 0) == 0
    assert sample([[2]], -1e-40, 0) == 2
    assert sample([[2]], 0, 0, mask=1e-40) == 0


# ------------------------------------------------------------------------------- arrays and memory


@pytest.fixture(params=EXAMPLES)
def example(request):
    """Make one call of each kind, with changes."""
    return functools.partial(deforming.example, request.param)


def arrays_of(made):
    return [*made.arrays, *(made.options.get(name) for name in ("mask", "residual"))]


def of_kind(made, kind):
    """Replace every array of a call by another view of the same numbers."""
    options = {k: kind(v) for k, v in made.options.items() if k in ("mask", "residual")}
    return replace(
        made,
        x=kind(made.x),
        weights=tuple(map(kind, made.weights)),
        biases=tuple(b if b is None else kind(b) for b in made.biases),
    ).with_(**options)


@pytest.mark.parametrize("end", ["before", "after"])
def test_guard_pages(example, end, layout):
    for changes in ({"residual": True}, {"bias": False}, {"data": "doubles"}, {"spread": 0.0}):
        made = example(layout=layout, **changes)
        want = made.run()
        out = guarded(np.full_like(want, -12345.678), end, writable=True)
        assert_same_bits(of_kind(made, lambda a: guarded(a, end)).run(out=out), want)


@pytest.mark.parametrize("end", ["before", "after"])
@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8, 15, 16, 17, 31, 33], ids=channels_id)
def test_guard_pages_channels(channels, end, layout):
    for size in ((1, 1), (2, 3), (1, 5), (4, 1)):
        for spread in (0.0, 0.7, 5.0):
            made = deform((1, *size, channels), spread=spread, padding=1, layout=layout)
            want = made.run()
            out = guarded(np.zeros_like(want), end, writable=True)
            assert_same_bits(of_kind(made, lambda a: guarded(a, end)).run(out=out), want)


def fortran(a):
    return np.asfortranarray(a)


def reversed_in_memory(a):
    backwards = (slice(None, None, -1),) * a.ndim
    return a[backwards].copy()[backwards]


def every_second(a):
    wide = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    view = wide[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def read_only(a):
    copy = a.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("kind", [fortran, reversed_in_memory, every_second, read_only, memoryview])
def test_input_kind(example, kind, layout):
    made = example(layout=layout, residual=True)
    copies = [a if a is None else a.copy() for a in arrays_of(made)]
    assert_same_bits(of_kind(made, kind).run(), made.run())
    for a, copy in zip(arrays_of(made), copies, strict=True):
        np.testing.assert_array_equal(a, copy)


@pytest.mark.parametrize("kind", [np.copy, fortran, reversed_in_memory, every_second])
def test_output(example, kind, layout):
    made = example(layout=layout, residual=True)
    want = made.run()
    out = kind(np.full_like(want, np.nan))
    assert made.run(out=out) is out
    assert_same_bits(out, want)
    residual = made.options["residual"].copy()
    assert made.run(residual=residual, out=residual) is residual
    assert_same_bits(residual, want)


@pytest.mark.parametrize("which", ["x", "offset", "mask"])
def test_out_overlaps_an_input(which, layout):
    """The result is as if it did not: 9 channels, 1x1, so that every array has one shape."""
    made = deform((2, 4, 5, 18), kernel=(3, 3), outputs=18, padding=1, layout=layout)
    want = made.run()
    memory = np.zeros(want.size + 7, np.float32)
    source = {"x": made.x, "offset": made.weights[0], "mask": made.options["mask"]}[which]
    view = memory[: source.size].reshape(source.shape)
    view[...] = source
    made = {
        "x": lambda: replace(made, x=view),
        "offset": lambda: with_offsets(made, view),
        "mask": lambda: made.with_(mask=view),
    }[which]()
    out = memory[7:].reshape(want.shape)
    assert_same_bits(made.run(out=out), want)


def test_layouts_agree(example):
    for changes in ({"residual": True, "activation": "silu"}, {"data": "doubles"}):
        made = example(**changes)
        assert_same_bits(nchw(made).run(), images_nchw(made.run()))


def test_batch_is_its_images(example, layout):
    made = example(layout=layout, activation="silu")
    y, (offset, w) = made.run(), made.weights
    mask = made.options.get("mask")
    for i, image in enumerate(y):
        one = replace(made, x=made.x[i], weights=(offset[i], w))
        assert_same_bits(one.with_(mask=None if mask is None else mask[i]).run(), image)


def test_threads_and_repeats_agree(example, layout):
    made = example(layout=layout)
    for threads in (None, 1, 2, 64):
        assert_same_bits(made.run(threads=threads), made.run())


# -------------------------------------------------------------------------------------- the layer


def test_layer_is_the_function(example, layout):
    made = example(layout=layout, residual=True, activation="hardswish")
    layer, want = layer_of(made), made.run()
    offset, mask = made.weights[0], made.options.get("mask")
    residual, out = made.options["residual"], np.empty_like(want)
    assert layer(made.x, offset, mask, out, 1, residual=residual) is out
    assert_same_bits(out, want)
    assert layer.out_shape(made.x.shape) == want.shape
    for again in (pickle.loads(pickle.dumps(layer)), layer):
        assert_same_bits(again(made.x, offset, mask, residual=residual), want)
    for w in (*made.weights, *made.biases):
        w[...] = np.nan
    assert "DeformConv2d" in repr(layer)
    with pytest.raises(AttributeError):
        layer.stride = 2


def test_layer_serves_any_number_of_groups_from_any_thread():
    made = [
        deform((1, 9, 9, 4 * groups), groups=groups, outputs=12, padding=1, offset_groups=og)
        for groups, og in ((1, 1), (2, 4), (3, 1), (12, 3))
    ]
    w = made[0].weights[1]
    made = [replace(m, weights=(m.weights[0], w), biases=made[0].biases) for m in made]
    layer, want = layer_of(made[0]), [m.run() for m in made]
    calls = list(range(len(made))) * 10

    def run(i):
        return layer(made[i].x, made[i].weights[0], made[i].options["mask"])

    with ThreadPoolExecutor(4) as pool:
        for i, y in zip(calls, pool.map(run, calls), strict=True):
            assert_same_bits(y, want[i])


def test_layer_keeps_its_isa(isa):
    made = deform((1, 9, 9, 33), padding=1)
    want, layer = made.run(), layer_of(made)
    assert layer.isa == isa
    for other in ck.available_isas():
        with ck.use_isa(other):
            assert_same_bits(layer(made.x, made.weights[0], made.options["mask"]), want)


# ---------------------------------------------------------------------------------------- the cost


@pytest.mark.parametrize("mask", [True, False])
def test_cost(example, mask, layout):
    made = example(layout=layout)
    offset, w = made.weights
    options = {k: v for k, v in made.options.items() if k != "mask"}
    got = ck.cost.deform_conv2d(made.x.shape, offset.shape, w.shape, True, mask=mask, **options)
    standard = dict(options)
    groups = made.x.shape[-1 if layout == "NHWC" else 1] // w.shape[2 if layout == "NHWC" else 1]
    plain_cost = ck.cost.conv2d(made.x.shape, w.shape, True, groups=groups, **standard)
    y = made.run()
    channels = -1 if layout == "NHWC" else 1
    taps = w.size // (w.shape[2] * w.shape[3] if layout == "NHWC" else w.shape[0] * w.shape[1])
    samples = y.size // y.shape[channels] * taps * made.x.shape[channels]
    assert got.macs == plain_cost.macs + (5 if mask else 4) * samples
    assert got.params == plain_cost.params
    assert got.bytes == plain_cost.bytes + offset.nbytes + mask * offset.nbytes // 2
    assert layer_of(made).cost(made.x.shape, offset.shape, mask) == got


def test_cost_refuses():
    shapes = (8, 8, 3), (8, 8, 18), (3, 3, 3, 4)
    for wrong in ((8, 8, 17), (8, 7, 18), (8, 8, 36), (1, 8, 8, 18)):
        with pytest.raises(ValueError, match="offset"):
            ck.cost.deform_conv2d(shapes[0], wrong, shapes[2], padding=1)
    with pytest.raises(TypeError, match="mask"):
        ck.cost.deform_conv2d(*shapes, padding=1, mask=1)
    with pytest.raises(TypeError, match="bias"):
        ck.cost.deform_conv2d(*shapes, 1, padding=1)


# --------------------------------------------------------------------------------------- bad inputs


def refuses(made, exception, *mentions, **options):
    """Assert that a call raises, with a message that mentions all it should."""
    with pytest.raises(exception) as raised:
        made.run(**options)
    for mention in ("deform_conv2d", *mentions):
        assert mention in str(raised.value), str(raised.value)


def like(a, axis, change):
    """Zeros of the shape of `a`, one axis longer or shorter."""
    return np.zeros([n + change * (i == axis) for i, n in enumerate(a.shape)], a.dtype)


def test_offset_of_the_wrong_shape(layout):
    made = deform((2, 8, 9, 6), padding=1, stride=2, layout=layout)
    offset, _ = made.weights
    for axis in range(4):
        for change in (-1, 1, -offset.shape[axis]):
            wrong = like(offset, axis, change)
            refuses(with_offsets(made, wrong), ValueError, "offset", str(wrong.shape))
    for wrong in (offset[0], offset[None], offset[0, 0], offset.ravel()):
        refuses(with_offsets(made, wrong), ValueError, "offset", str(wrong.shape))


def test_offset_as_large_as_the_image_at_stride_2(layout):
    """Case 30 of torchvision's history (vision#4899): read beyond the offsets once."""
    made = deform((1, 8, 8, 3), padding=1, layout=layout)
    refuses(made, ValueError, "offset", "(1, 4, 4" if layout == "NHWC" else "4, 4)", stride=2)


def test_seventeen_offset_channels(layout):
    made = deform((1, 8, 8, 3), padding=1, layout=layout)
    wrong = like(made.weights[0], 3 if layout == "NHWC" else 1, -1)
    refuses(with_offsets(made, wrong), ValueError, "offset", "17", "18", "3x3")


def test_offset_groups_that_do_not_divide(layout):
    made = deform((1, 8, 8, 6), padding=1, offset_groups=3, layout=layout)
    wrong = like(made.weights[0], 3 if layout == "NHWC" else 1, 18)  # 4 groups of 6 channels
    refuses(with_offsets(made, wrong), ValueError, "offset", "72", "6 channels")


def test_mask_of_the_wrong_shape(layout):
    made = deform((2, 8, 9, 6), padding=1, offset_groups=2, layout=layout)
    mask = made.options["mask"]
    for axis in range(4):
        for change in (-1, 1, -mask.shape[axis]):
            wrong = like(mask, axis, change)
            refuses(made, ValueError, "mask", str(wrong.shape), str(mask.shape), mask=wrong)
    for wrong in (mask[0], mask[None], made.weights[0]):
        refuses(made, ValueError, "mask", str(wrong.shape), mask=wrong)


def test_channels_that_do_not_fit(layout):
    made = deform((1, 8, 8, 6), outputs=8, groups=2, padding=1, layout=layout)
    channel = 3 if layout == "NHWC" else 1
    for change in (-1, 1, 2, -4):  # 5, 7 and 8 are no groups of 3; 2 are none at all
        x = like(made.x, channel, change)
        refuses(replace(made, x=x), ValueError, "x", "w", str(x.shape), str(made.weights[1].shape))
    x = like(made.x, channel, 3)  # 3 groups, 8 outputs
    refuses(replace(made, x=x), ValueError, "x", "w", "8 outputs")


def test_zero_sized_axes(layout):
    made = deform((1, 8, 8, 3), padding=1, layout=layout)
    for axis in range(4):
        if axis:
            wrong = like(made.x, axis, -made.x.shape[axis])
            refuses(replace(made, x=wrong), ValueError, "x", str(wrong.shape))
        w = like(made.weights[1], axis, -made.weights[1].shape[axis])
        refuses(replace(made, weights=(made.weights[0], w)), ValueError, "w", str(w.shape))


@pytest.mark.parametrize("value", [None, 1.0, "image", [[[[1.0]]]], object(), len], ids=type)
def test_not_an_array(value):
    made = deform((1, 8, 8, 3), padding=1)
    refuses(replace(made, x=value), TypeError, "x")
    refuses(with_offsets(made, value), TypeError, "offset")
    refuses(replace(made, weights=(made.weights[0], value)), TypeError, "w")
    if value is not None:
        for name in ("mask", "residual", "out"):
            refuses(made, TypeError, name, **{name: value})


@pytest.mark.parametrize("dtype", ["f2", "f8", "i4", "i8", "?", "c8", "O", ">f4"])
def test_dtype(dtype):
    made = deform((1, 8, 8, 3), padding=1)
    offset, w = made.weights
    y = made.run()
    refuses(replace(made, x=np.zeros(made.x.shape, dtype)), TypeError, "x")
    refuses(with_offsets(made, np.zeros(offset.shape, dtype)), TypeError, "offset")
    refuses(replace(made, weights=(offset, np.zeros(w.shape, dtype))), TypeError)
    refuses(made, TypeError, "mask", mask=np.zeros(made.options["mask"].shape, dtype))
    refuses(made, TypeError, "residual", residual=np.zeros(y.shape, dtype))
    refuses(made, TypeError, "out", out=np.zeros(y.shape, dtype))


@pytest.mark.parametrize(
    ("option", "value", "exception"),
    [
        ("stride", 0, ValueError),
        ("stride", (1, -1), ValueError),
        ("stride", 1.5, TypeError),
        ("dilation", 0, ValueError),
        ("dilation", "2", TypeError),
        ("dilation", 2**62, (ValueError, OverflowError)),
        ("padding", -1, ValueError),
        ("padding", "full", ValueError),
        ("padding", ((2**62, 2**62), (0, 0)), ValueError),
        ("padding", 2**20, MemoryError),
        ("activation", "gelu", ValueError),
        ("layout", "NHCW", ValueError),
        ("weight_layout", "IOHW", ValueError),
        ("threads", 0, ValueError),
    ],
)
def test_bad_option(option, value, exception):
    made = deform((1, 8, 8, 3))
    refuses(made, exception, *([] if exception is MemoryError else [option]), **{option: value})


def test_unknown_and_missing_arguments():
    made = deform((1, 8, 8, 3))
    with pytest.raises(TypeError, match="positional"):
        ck.deform_conv2d(*made.arrays, 1)
    with pytest.raises(TypeError, match="groups"):
        made.run(groups=1)
    with pytest.raises(TypeError, match="w"):
        ck.deform_conv2d(made.x, made.weights[0])
    with pytest.raises(TypeError, match="offset"):
        layer_of(made)(made.x)


def test_kernel_larger_than_the_padded_image(layout):
    made = deform((1, 5, 5, 3), layout=layout)
    refuses(made, ValueError, "kernel", "5x5", dilation=3)


def test_bad_bias_residual_and_out(layout):
    made = deform((1, 8, 8, 3), padding=1, layout=layout)
    y = made.run()
    for bias in (np.zeros(7, np.float32), np.zeros((1, 8), np.float32)):
        refuses(replace(made, biases=(bias,)), ValueError, "bias", str(bias.shape))
    for wrong in (y[0], y[None], like(y, 1, 1), like(y, 3, -1)):
        refuses(made, ValueError, "out", str(wrong.shape), out=wrong)
        refuses(made, ValueError, "residual", str(wrong.shape), residual=wrong)
    y.flags.writeable = False
    refuses(made, ValueError, "read-only", out=y)


def test_giants(layout):
    def giant(*shape):
        shape = shape if layout == "NHWC" else (shape[0], shape[3], *shape[1:3])
        return as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))

    w = np.ones((1, 1, 1, 1), np.float32)
    too_large = (MemoryError, ValueError, OverflowError)
    for shape in ((1, 2**30, 2**29, 1), (2**59, 1, 1, 1), (1, 2**40, 3, 1)):
        x, offset = giant(*shape), giant(*shape[:3], 2)
        with pytest.raises(too_large):
            ck.deform_conv2d(x, offset, w, layout=layout)
        with pytest.raises(too_large):
            ck.deform_conv2d(x, offset, w, layout=layout, stride=2**32)
    with pytest.raises(too_large):
        ck.deform_conv2d(giant(1, 1, 1, 2**50), giant(1, 1, 1, 2**51), w, layout=layout)


# ------------------------------------------------------------------------------- any call; others


def two(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def calls(draw):
    """Draw a valid call."""
    groups, offset_groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    unit = np.lcm(groups, offset_groups)
    size, kernel = (
        draw(st.tuples(*[st.integers(1, 12)] * 2)),
        draw(st.tuples(*[st.integers(1, 4)] * 2)),
    )
    window = {k: draw(st.tuples(*[st.integers(1, 3)] * 2)) for k in ("stride", "dilation")}
    window["padding"] = draw(st.tuples(*[st.tuples(*[st.integers(0, 4)] * 2)] * 2))
    for n, k, d, (before, after) in zip(
        size, kernel, window["dilation"], window["padding"], strict=True
    ):
        assume(n + before + after > (k - 1) * d)
    return deform(
        (
            *draw(st.sampled_from([(), (0,), (1,), (3,)])),
            *size,
            int(unit) * draw(st.integers(1, 9)),
        ),
        kernel=kernel,
        outputs=groups * draw(st.integers(1, 9)),
        groups=groups,
        offset_groups=offset_groups,
        spread=draw(st.sampled_from([0.0, 0.5, 3.0, 50.0])),
        mask=draw(st.booleans()),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        data=draw(st.sampled_from(["integers", "reals", "doubles"])),
        layout=draw(st.sampled_from(["NHWC", "NCHW"])),
        seed=draw(st.integers(0, 1000)),
        **window,
    )


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(calls())
def test_any_call(made):
    check(made)


@pytest.mark.parametrize("name", EXAMPLES)
def test_onnxruntime_agrees(name):
    """ONNX Runtime has DeformConv on the CPU since 1.31; it samples in float32 coordinates."""
    ort, helper = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx.helper")
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 31):
        pytest.skip("no DeformConv on the CPU")
    made = deforming.example(name, layout="NCHW")
    (offset, w), mask = made.weights, made.options.get("mask")
    feeds = {"x": made.x, "w": w, "offset": offset, "bias": made.biases[0]}
    feeds |= {} if mask is None else {"mask": mask}
    pair = {k: np.broadcast_to(made.options.get(k, 1), 2) for k in ("stride", "dilation")}
    node = helper.make_node(
        "DeformConv",
        list(feeds),
        ["y"],
        strides=pair["stride"].tolist(),
        dilations=pair["dilation"].tolist(),
        pads=[made.options.get("padding", 0)] * 4,
        group=made.x.shape[1] // w.shape[1],
        offset_group=offset.shape[1] // (2 * w.shape[2] * w.shape[3]),
    )
    inputs = [helper.make_tensor_value_info(k, 1, v.shape) for k, v in feeds.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), None, ["CPUExecutionProvider"])
    (want,) = session.run(None, feeds)
    np.testing.assert_allclose(made.run(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
