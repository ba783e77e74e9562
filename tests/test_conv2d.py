"""conv2d against the oracle, at the edges of shapes and windows."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from cases import (
    BUNDLES,
    CHANNELS,
    assert_same_bits,
    call,
    channels_id,
    check,
    images_nchw,
    nchw,
)

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
def test_input_channels(channels, data):
    check(call("conv2d", (1, 4, 5, channels), outputs=5, padding=1, data=data))
    check(call("conv2d", (1, 4, 5, channels), kernel=(1, 1), outputs=5, data=data))


@pytest.mark.parametrize("outputs", CHANNELS, ids=channels_id)
def test_output_channels(outputs, data):
    check(call("conv2d", (1, 4, 5, 3), outputs=outputs, padding=1, data=data))
    check(call("conv2d", (1, 4, 5, 3), kernel=(1, 1), outputs=outputs, data=data))


@pytest.mark.parametrize("channels", [127, 129, 256, 509, 512, 1031])
def test_long_sums(channels, data):
    check(call("conv2d", (1, 3, 4, channels), outputs=33, padding=1, data=data))


@pytest.mark.parametrize("width", range(1, 10), ids="width_{}".format)
@pytest.mark.parametrize("height", range(1, 10), ids="height_{}".format)
def test_image_size(height, width, data):
    for stride in (1, 2, 3):
        check(call("conv2d", (1, height, width, 5), padding=1, stride=stride, data=data))


@pytest.mark.parametrize("pixels", range(1, 65))
def test_pixels_per_tile(pixels, data):
    check(call("conv2d", (1, 1, pixels, 3), outputs=17, padding=1, data=data))


@pytest.mark.parametrize("kw", range(1, 8), ids="kw_{}".format)
@pytest.mark.parametrize("kh", range(1, 8), ids="kh_{}".format)
def test_kernel(kh, kw, data):
    for stride, dilation in product((1, 2, 3), (1, 2)):
        window = {"kernel": (kh, kw), "stride": stride, "dilation": dilation, "data": data}
        check(call("conv2d", (1, 6, 7, 3), padding="same", **window))
        check(call("conv2d", (1, 14, 15, 2), padding="valid", **window))


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
    for kernel, stride in product(((3, 3), (2, 4)), (1, 2, (3, 1))):
        check(
            call("conv2d", (1, 5, 6, 4), kernel=kernel, stride=stride, padding=padding, data=data)
        )


def test_padding_wider_than_the_image(data):
    check(call("conv2d", (1, 1, 1, 3), kernel=(3, 3), padding=6, data=data))
    check(call("conv2d", (1, 2, 1, 3), kernel=(5, 5), padding=6, stride=3, dilation=2, data=data))


@pytest.mark.parametrize("stride", [(1, 2), (3, 1), (5, 7)], ids=str)
@pytest.mark.parametrize("dilation", [(1, 2), (3, 1)], ids=str)
def test_unequal_stride_and_dilation(stride, dilation, data):
    check(call("conv2d", (1, 9, 8, 5), stride=stride, dilation=dilation, padding=2, data=data))


@pytest.mark.parametrize(
    "x",
    [(0, 5, 6, 3), (1, 5, 6, 3), (3, 5, 6, 3), (5, 6, 3)],
    ids=["batch_0", "batch_1", "batch_3", "unbatched"],
)
def test_batch(x, layout, data):
    check(call("conv2d", x, outputs=7, padding=1, layout=layout, data=data))


@pytest.mark.parametrize("dilation", [2, 3, (1, 2), (2, 1)], ids="dilation_{}".format)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 7), (7, 1), (2, 4)], ids="{0[0]}x{0[1]}".format)
def test_dilated_rows(kernel, dilation, layout, data):
    """Of few channels, whose windows are multiplied where their rows lie."""
    for channels, outputs, stride in product((1, 3, 8), (5, 24, 33), (1, 2)):
        made = {"kernel": kernel, "outputs": outputs, "padding": 6, "layout": layout, "data": data}
        made |= {"dilation": dilation, "stride": stride}
        check(call("conv2d", (2, 9, 31, channels), **made))


@pytest.mark.parametrize(
    ("groups", "terms", "outputs"),
    [
        (2, 1, 1),
        (2, 4, 3),
        (3, 5, 7),
        (4, 8, 8),
        (5, 1, 2),
        (7, 16, 16),
        (8, 2, 1),
        (16, 1, 1),
        (17, 1, 1),
        (2, 33, 17),
    ],
)
def test_groups(groups, terms, outputs, layout, data):
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        check(
            call(
                "conv2d",
                (2, 5, 6, groups * terms),
                groups=groups,
                outputs=groups * outputs,
                padding=1,
                stride=stride,
                dilation=dilation,
                layout=layout,
                data=data,
            )
        )


@pytest.mark.parametrize(
    ("groups", "terms", "outputs"),
    [(16, 6, 6), (7, 3, 5), (9, 2, 2), (5, 4, 4), (3, 7, 7), (8, 5, 2), (16, 1, 2), (5, 1, 4)],
)
def test_pointwise_groups(groups, terms, outputs, layout, data):
    """Groups that begin and end anywhere in a vector; without padding nothing is staged."""
    for stride, padding in ((1, 0), (2, 0), (1, 1), (3, ((0, 2), (1, 0)))):
        made = {"groups": groups, "outputs": groups * outputs, "kernel": (1, 1), "data": data}
        made |= {"stride": stride, "padding": padding, "layout": layout, "residual": True}
        check(call("conv2d", (2, 5, 6, groups * terms), activation="relu6", **made))


@pytest.mark.parametrize("outputs", [2, 4, 8], ids="outputs_{}".format)
@pytest.mark.parametrize("groups", [2, 3], ids="groups_{}".format)
def test_pointwise_groups_of_half_a_vector(groups, outputs, layout, data):
    """Two go together, or the last alone; numbers of terms that pairs of elements are made of."""
    for terms in (4, 5, 8, 11, 16, 32, 33):
        made = {"groups": groups, "outputs": groups * outputs, "kernel": (1, 1), "data": data}
        made |= {"layout": layout, "residual": True, "activation": "relu6"}
        for size in ((1, 1), (3, 7)):
            check(call("conv2d", (2, *size, groups * terms), **made))


def one_group(made, groups, g):
    """Cut group g out of an NHWC call without a residual."""
    (w,), (bias,) = made.weights, made.biases
    terms, outputs = w.shape[2], w.shape[3] // groups
    some = slice(g * outputs, (g + 1) * outputs)
    x = made.x[..., g * terms : (g + 1) * terms]
    return replace(made, x=x, weights=(w[..., some],), biases=(bias[some],)).with_(groups=1)


@pytest.mark.parametrize(("groups", "terms", "outputs"), BUNDLES)
def test_pointwise_groups_in_bundles(groups, terms, outputs, data):
    """Every group has the bits that it has alone."""
    made = {"groups": groups, "outputs": groups * outputs, "kernel": (1, 1), "data": data}
    for stride, padding in ((1, 0), (2, 0), (1, 1)):
        made |= {"stride": stride, "padding": padding}
        pixels = call("conv2d", (2, 9, 7, groups * terms), **made)
        planes = nchw(pixels)
        check(pixels)
        check(planes)
        alone = [one_group(pixels, groups, g) for g in range(groups)]
        want = np.concatenate([one.run() for one in alone], axis=-1)
        np.testing.assert_array_equal(pixels.run(), want)
        want = np.concatenate([nchw(one).run() for one in alone], axis=1)
        np.testing.assert_array_equal(planes.run(), want)


@pytest.mark.parametrize(
    ("groups", "terms", "outputs"), [(2, 12, 3), (3, 16, 4), (5, 20, 2), (2, 33, 8)]
)
def test_groups_in_bundles(groups, terms, outputs, layout, data):
    """So many channels that to stage their windows would take longer."""
    made = {"groups": groups, "outputs": groups * outputs, "layout": layout, "data": data}
    made |= {"padding": 1, "residual": True, "activation": "relu6"}
    for stride in (1, 2):
        check(call("conv2d", (2, 5, 9, groups * terms), stride=stride, **made))


@pytest.mark.parametrize("activation", [None, "relu6", "silu"], ids=str)
def test_ranges_of_terms(activation, data):
    """More terms than a range of the GEMM holds: 40009 of them are 160 kB for each output."""
    made = {"outputs": 3, "residual": True, "activation": activation, "data": data}
    check(call("conv2d", (1, 5, 6, 1601), kernel=(5, 5), **made))


@pytest.mark.parametrize("size", [(21, 19), (2, 401)], ids=["several_rows", "part_of_a_row"])
def test_blocks(size, data):
    """More pixels than a block of the GEMM holds."""
    check(call("conv2d", (2, *size, 97), outputs=5, padding=1, data=data))


PLANES = {  # NCHW: of an image this wide, the GEMM multiplies planes that are staged for it
    "3x3": {},
    "3x3_s2": {"stride": 2},
    "5x5_s3": {"kernel": (5, 5), "stride": 3},
    "3x3_d2": {"dilation": 2},
    "4x2_s21_d13": {"kernel": (4, 2), "stride": (2, 1), "dilation": (1, 3)},
    "1x7": {"kernel": (1, 7), "padding": ((0, 0), (6, 0))},
    "7x1_s2": {"kernel": (7, 1), "padding": ((0, 6), (0, 0)), "stride": 2},
    "7x7": {"kernel": (7, 7), "padding": 9},
}


@pytest.mark.parametrize(
    ("groups", "activation"),
    [(1, "silu"), (2, "relu6"), (5, None)],
    ids=["dense", "groups_2", "groups_5"],
)
@pytest.mark.parametrize("window", PLANES.values(), ids=PLANES)
def test_staged_planes(window, groups, activation, data):
    """In several blocks, by one thread or more: the bits of NHWC."""
    options = {"padding": 1, "residual": True, "activation": activation, "data": data, **window}
    made = call("conv2d", (1, 30, 233, 10), outputs=20, groups=groups, **options)
    y = made.run()
    check(made, y)
    for threads in (1, 3):
        assert_same_bits(nchw(made).run(threads=threads), images_nchw(y))


@pytest.mark.parametrize("pixels", range(1, 70, 3))
def test_rows_of_staged_planes(pixels, data):
    """The last vectors of a row are full, or, where it has no more, parts of one."""
    made = call("conv2d", (1, 20, pixels, 4), outputs=7, padding=1, residual=True, data=data)
    check(nchw(made))


def test_ranges_of_staged_planes(data):
    """More terms than a range of the GEMM holds: 18432 for 12 outputs."""
    made = {"kernel": (12, 12), "outputs": 12, "padding": 6, "residual": True, "data": data}
    check(nchw(call("conv2d", (1, 15, 20, 128), **made)))


@pytest.mark.parametrize("outputs", [1, 15, 48, 49], ids="outputs_{}".format)
@pytest.mark.parametrize("channels", [1, 3, 32, 33, 64, 128], ids="channels_{}".format)
def test_pointwise_planes(channels, outputs, data):
    """Few channels are multiplied where they lie, whose blocks end in parts of vectors; many, and
    those whose planes fall into one set of L1, are copied first."""
    for size in ((1, 9), (5, 51), (32, 32), (41, 43)):
        made = {"kernel": (1, 1), "outputs": outputs, "residual": True, "data": data}
        check(nchw(call("conv2d", (2, *size, channels), **made)))


def test_no_bias(layout, data):
    check(call("conv2d", (2, 5, 6, 7), outputs=17, bias=False, padding=1, layout=layout, data=data))


def test_sums_that_cancel():
    check(call("conv2d", (2, 5, 6, 29), outputs=17, padding=1, data="wide_range"))


# Kinds of layers in real networks, images cut down: (C, N, kernel, stride, padding, dilation).
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "padding", "dilation"),
    [
        (3, 32, (3, 3), 2, "same", 1),
        (3, 64, (7, 7), 2, 3, 1),
        (3, 96, (11, 11), 4, 2, 1),
        (64, 64, (1, 7), 1, (0, 3), 1),
        (64, 64, (7, 1), 1, (3, 0), 1),
        (128, 128, (3, 3), 1, 1, 1),
        (64, 64, (3, 3), 1, 6, 6),
    ],
    ids=[
        "mobilenet_conv1",
        "resnet_conv1",
        "alexnet_conv1",
        "inception_1x7",
        "inception_7x1",
        "vgg_conv",
        "atrous",
    ],
)
def test_layers_of_real_networks(channels, outputs, kernel, stride, padding, dilation, data):
    check(
        call(
            "conv2d",
            (1, 17, 16, channels),
            kernel=kernel,
            outputs=outputs,
            stride=stride,
            padding=padding,
            dilation=dilation,
            data=data,
        )
    )


@pytest.mark.parametrize("op", ["conv2d", "depthwise_conv2d", "separable_conv2d"])
def test_rows_and_columns_of_padding_alone(op, layout, data):
    """Windows above, below and beside the image; at a stride of 99 there are no others."""
    for kernel, stride in product(((1, 1), (2, 2)), ((3, 1), (1, 3), (99, 1), (1, 99))):
        for size in ((1, 1), (2, 5), (5, 2)):
            window = {"kernel": kernel, "stride": stride, "padding": 7, "bias": False}
            for channels in (1, 21):
                check(call(op, (2, *size, channels), layout=layout, data=data, **window))
