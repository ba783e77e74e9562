"""depthwise_conv2d against the oracle, at the edges of shapes and windows."""

from itertools import product

import numpy as np
import pytest
from cases import CHANNELS, assert_same_bits, call, channels_id, check, images_nchw, nchw

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")

OP = "depthwise_conv2d"


@pytest.mark.parametrize("stride", [1, 2, 3], ids="stride_{}".format)
@pytest.mark.parametrize("channels", [*CHANNELS, 128, 131], ids=channels_id)
def test_channels(channels, stride, data):
    check(call(OP, (1, 5, 6, channels), padding=1, stride=stride, data=data))
    check(call(OP, (1, 5, 6, channels), kernel=(5, 5), padding=2, stride=stride, data=data))


@pytest.mark.parametrize("width", range(1, 10), ids="width_{}".format)
@pytest.mark.parametrize("height", range(1, 10), ids="height_{}".format)
def test_image_size(height, width, data):
    for stride in (1, 2, 3):
        check(call(OP, (1, height, width, 17), padding=1, stride=stride, data=data))
        check(call(OP, (1, height, width, 3), padding="same", stride=stride, data=data))


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)], ids=str)
@pytest.mark.parametrize("width", [3, 4, 5, 6, 7, 11, 16, 29], ids="width_{}".format)
def test_without_padding(width, kernel, data):
    for height, stride in product((5, 6, 7), (1, 2)):
        if width >= kernel[1]:
            check(call(OP, (1, height, width, 9), kernel=kernel, stride=stride, data=data))


@pytest.mark.parametrize("kw", range(1, 8), ids="kw_{}".format)
@pytest.mark.parametrize("kh", range(1, 8), ids="kh_{}".format)
def test_kernel(kh, kw, data):
    for stride, dilation in product((1, 2, 3), (1, 2)):
        window = {"kernel": (kh, kw), "stride": stride, "dilation": dilation, "data": data}
        check(call(OP, (1, 6, 7, 9), padding="same", **window))
        check(call(OP, (1, 14, 15, 5), padding="valid", **window))


@pytest.mark.parametrize(
    "padding",
    [
        0,
        1,
        3,
        (0, 2),
        (2, 0),
        ((0, 1), (1, 0)),
        ((1, 0), (0, 1)),
        ((3, 0), (0, 5)),
        ((0, 0), (7, 9)),
        "valid",
        "same",
        "same_lower",
    ],
    ids=str,
)
def test_padding(padding, data):
    for kernel, stride in product(((3, 3), (2, 4)), (1, 2, (2, 1), (1, 2), (3, 1))):
        check(call(OP, (1, 5, 6, 18), kernel=kernel, stride=stride, padding=padding, data=data))


def test_padding_wider_than_the_image(data):
    for stride in (1, 2):
        check(call(OP, (1, 1, 1, 9), padding=6, stride=stride, data=data))
        check(call(OP, (1, 2, 1, 9), padding=((0, 7), (9, 0)), stride=stride, data=data))
        check(
            call(OP, (1, 2, 1, 9), kernel=(5, 5), padding=6, stride=stride, dilation=2, data=data)
        )


@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (3, 1), (5, 7)], ids=str)
@pytest.mark.parametrize("dilation", [1, (1, 2), (3, 1)], ids=str)
def test_unequal_stride_and_dilation(stride, dilation, data):
    check(call(OP, (1, 9, 8, 21), stride=stride, dilation=dilation, padding=2, data=data))


@pytest.mark.parametrize("multiplier", [2, 3, 4, 8, 17], ids="multiplier_{}".format)
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 15, 16, 17], ids=channels_id)
def test_multiplier(channels, multiplier, layout, data):
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        check(
            call(
                OP,
                (2, 5, 6, channels),
                multiplier=multiplier,
                padding=1,
                stride=stride,
                dilation=dilation,
                layout=layout,
                data=data,
            )
        )


@pytest.mark.parametrize(
    "x",
    [(0, 5, 6, 3), (1, 5, 6, 3), (3, 5, 6, 3), (5, 6, 3)],
    ids=["batch_0", "batch_1", "batch_3", "unbatched"],
)
def test_batch(x, layout, data):
    check(call(OP, x, padding=1, layout=layout, data=data))


@pytest.mark.parametrize("size", [(45, 37), (3, 1100)], ids=["several_rows", "part_of_a_row"])
def test_blocks(size, data):
    """More pixels than a block holds."""
    for kernel, stride in product(((3, 3), (2, 2)), (1, 2)):
        window = {"kernel": kernel, "stride": stride, "padding": 1, "data": data}
        check(call(OP, (2, *size, 3), residual=True, **window))


def test_no_bias(layout, data):
    check(call(OP, (2, 5, 6, 7), bias=False, padding=1, layout=layout, data=data))


def test_sums_that_cancel():
    check(call(OP, (2, 9, 8, 37), padding=1, data="wide_range"))


@pytest.mark.parametrize("stride", [1, 2], ids="stride_{}".format)
@pytest.mark.parametrize("size", [14, 15, 28, 33], ids="size_{}".format)
def test_layers_of_real_networks(size, stride, data):
    check(call(OP, (1, size, size, 32), padding="same", stride=stride, data=data))
    check(call(OP, (1, size, size, 24), kernel=(5, 5), padding="same", stride=stride, data=data))


@pytest.mark.parametrize("padding", [0, 2, ((11, 0), (0, 13)), ((0, 1), (19, 20))], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3], ids="stride_{}".format)
@pytest.mark.parametrize("width", [3, 5, 7, 9], ids="width_{}".format)
def test_image_in_place_and_staged(width, stride, padding, data):
    """Where 1024 channels lie side by side, rows are staged; few channels are read in place."""
    rng = np.random.default_rng(width)
    x = rng.standard_normal((2, 10, 17, 1024), np.float32)
    w = rng.standard_normal((4, width, 1024), np.float32)
    for dilation in (1, 2):
        window = {"stride": stride, "dilation": dilation, "padding": padding}
        y = ck.depthwise_conv2d(x, w, **window)
        for some in (slice(0, 16), slice(0, 56), slice(64, 83)):
            few = ck.depthwise_conv2d(x[..., some], w[..., some], **window)
            np.testing.assert_array_equal(few, y[..., some])
        check(call(OP, (2, 10, 17, 56), kernel=(4, width), residual=True, data=data, **window))


@pytest.mark.parametrize("stride", [1, (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("rows", [31, 32, 33, 65], ids="rows_{}".format)
def test_more_rows_than_go_together(rows, stride, data):
    """In place, with rows of padding above, below, and between those of a long dilation."""
    step = stride if isinstance(stride, int) else stride[0]
    for dilation, pad in ((1, 2), (5, 10)):
        window = {"kernel": (5, 5), "stride": stride, "dilation": dilation, "padding": pad}
        check(call(OP, (2, (rows - 1) * step + 1, 9, 37), residual=True, data=data, **window))


@pytest.mark.parametrize("multiplier", [1, 2], ids="multiplier_{}".format)
@pytest.mark.parametrize("dilation", [1, 2, 4], ids="dilation_{}".format)
@pytest.mark.parametrize("stride", [1, 2], ids="stride_{}".format)
def test_planes_whose_rows_share_input(stride, dilation, multiplier, data):
    """Fewer rows than are made at once, and more; a vector of columns, a part of one, and both."""
    for rows, cols in [(1, 33), (3, 17), (4, 14), (5, 18), (9, 16), (6, 5)]:
        size = (rows - 1) * stride + 1, (cols - 1) * stride + 1
        window = {"stride": stride, "dilation": dilation, "padding": dilation}
        made = call(OP, (2, *size, 9), multiplier=multiplier, residual=True, data=data, **window)
        y = nchw(made).run()
        check(nchw(made), y)
        assert_same_bits(y, images_nchw(made.run()))


@pytest.mark.parametrize(
    "padding", [0, 1, 2, ((1, 0), (0, 1)), ((0, 9), (37, 2)), "same"], ids="padding_{}".format
)
@pytest.mark.parametrize("stride", [1, 2], ids="stride_{}".format)
def test_narrow_planes(stride, padding, data):
    """Rows of outputs of up to half a vector, where channels go in pairs, of a vector, and more."""
    for width in (*range(3, 19), 28, 29, 30, 31, 32, 33, 35, 56, 62, 112, 241):
        for height, channels in ((3, 1), (4, 5), (8, 2), (16, 17)):
            shape = {"kernel": (3, 3), "padding": padding, "residual": height == 8}
            made = call(
                OP,
                (1, height, width, channels),
                stride=stride,
                activation="relu6",
                data=data,
                **shape,
            )
            y = nchw(made).run()
            check(nchw(made), y)
            assert_same_bits(y, images_nchw(made.run()))


@pytest.mark.parametrize("stride", [1, 2, 4], ids="stride_{}".format)
@pytest.mark.parametrize("size", [(70, 119), (3, 6500)], ids=["several_rows", "part_of_a_row"])
def test_blocks_of_planes(size, stride, data):
    """More pixels than are staged at once, with padding on some sides of a block, and rows that no
    window reads."""
    for dilation, padding in ((1, "same"), (2, ((0, 3), (4, 0))), (6, 6)):
        window = {"stride": stride, "dilation": dilation, "padding": padding}
        check(nchw(call(OP, (1, *size, 9), activation="relu6", data=data, **window)))
