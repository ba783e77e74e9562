"""separable_conv2d against the oracle, at the edges of shapes, windows and tiles."""

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

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")

OP = "separable_conv2d"


@pytest.mark.parametrize("stride", [1, 2], ids="stride_{}".format)
@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
def test_channels(channels, stride, data):
    check(call(OP, (1, 5, 6, channels), outputs=19, padding=1, stride=stride, data=data))


@pytest.mark.parametrize("outputs", [*CHANNELS, 95, 96, 97, 129], ids=channels_id)
def test_output_channels(outputs, data):
    check(call(OP, (1, 5, 4, 7), outputs=outputs, padding=1, data=data))


@pytest.mark.parametrize("channels", [127, 129, 256, 509, 512, 1031, 3109])
def test_long_sums(channels, data):
    for stride in (1, 2):
        check(call(OP, (1, 4, 5, channels), outputs=37, padding=1, stride=stride, data=data))


@pytest.mark.parametrize("width", range(1, 10), ids="width_{}".format)
@pytest.mark.parametrize("height", range(1, 10), ids="height_{}".format)
def test_image_size(height, width, data):
    for stride in (1, 2, 3):
        check(call(OP, (2, height, width, 9), outputs=17, padding=1, stride=stride, data=data))


@pytest.mark.parametrize("width", [13, 14, 15, 27, 28, 29, 64, 113], ids="width_{}".format)
def test_wide_image(width, data):
    for stride in (1, 2):
        check(call(OP, (1, 5, width, 17), outputs=33, padding="same", stride=stride, data=data))


@pytest.mark.parametrize("kw", range(1, 8), ids="kw_{}".format)
@pytest.mark.parametrize("kh", range(1, 8), ids="kh_{}".format)
def test_kernel(kh, kw, data):
    for stride, dilation in product((1, 2, 3), (1, 2)):
        window = {"kernel": (kh, kw), "stride": stride, "dilation": dilation, "data": data}
        check(call(OP, (1, 6, 7, 5), padding="same", **window))


@pytest.mark.parametrize(
    "padding",
    [
        0,
        1,
        3,
        (0, 2),
        ((0, 1), (1, 0)),
        ((3, 0), (0, 5)),
        ((0, 0), (7, 9)),
        "valid",
        "same",
        "same_lower",
    ],
    ids=str,
)
def test_padding(padding, data):
    for kernel, stride in product(((3, 3), (2, 4)), (1, 2, (2, 1), (3, 1))):
        check(call(OP, (1, 5, 6, 18), kernel=kernel, stride=stride, padding=padding, data=data))


@pytest.mark.parametrize("multiplier", [2, 3, 8], ids="multiplier_{}".format)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 17], ids=channels_id)
def test_multiplier(channels, multiplier, layout, data):
    for stride in (1, 2):
        check(
            call(
                OP,
                (2, 5, 6, channels),
                multiplier=multiplier,
                outputs=19,
                padding=1,
                stride=stride,
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
    check(call(OP, x, outputs=7, padding=1, layout=layout, data=data))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(
    "name", ["separable_3x3", "separable_3x3_stride_2", "separable_5x5_multiplier"]
)
def test_activation_between(name, activation, layout, data):
    check(example(name, dw_activation=activation, layout=layout, data=data))
    check(example(name, dw_activation=activation, activation="relu6", residual=True, data=data))


@pytest.mark.parametrize("activation", [None, "relu6", "silu"], ids=str)
def test_ranges_of_terms(activation, data):
    """More terms than a range of the GEMM holds: 40009 of them are 160 kB for each output."""
    made = {"outputs": 3, "residual": True, "activation": activation, "data": data}
    check(call(OP, (1, 2, 1, 40009), padding=1, dw_activation="relu", **made))


@pytest.mark.parametrize("size", [(21, 19), (2, 401)], ids=["several_rows", "part_of_a_row"])
def test_blocks(size, data):
    """More pixels than a block of the GEMM holds."""
    for stride in (1, 2):
        window = {"padding": 1, "stride": stride, "dw_activation": "silu", "data": data}
        check(call(OP, (1, *size, 901), outputs=5, residual=True, **window))


def test_no_bias(layout, data):
    check(call(OP, (2, 5, 6, 7), outputs=17, bias=False, padding=1, layout=layout, data=data))


def test_sums_that_cancel():
    check(call(OP, (2, 5, 6, 29), outputs=17, padding=1, data="wide_range"))


@pytest.mark.parametrize("name", ["separable_3x3", "separable_3x3_stride_2"])
def test_is_the_two_convolutions_in_turn(name):
    made = example(name, dw_activation="relu", data="integers")
    window = {k: v for k, v in made.options.items() if k in ("stride", "padding")}
    (dw, pw), (dw_bias, bias) = made.weights, made.biases
    between = ck.depthwise_conv2d(made.x, dw, dw_bias, activation="relu", **window)
    np.testing.assert_array_equal(made.run(), ck.pointwise_conv2d(between, pw, bias))


# The blocks of MobileNetV1, images cut down: (C, N, stride).
@pytest.mark.parametrize(
    ("channels", "outputs", "stride"),
    [
        (32, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (512, 512, 1),
    ],
)
def test_blocks_of_mobilenet(channels, outputs, stride, data):
    check(
        call(
            OP,
            (1, 14, 14, channels),
            outputs=outputs,
            stride=stride,
            padding="same",
            dw_activation="relu6",
            activation="relu6",
            data=data,
        )
    )


PLANES = {
    "blocks_do_not_divide": {"x": (1, 61, 29, 40), "outputs": 70},
    "part_of_a_row": {"x": (1, 3, 1301, 130), "outputs": 50},
    "width_19": {"x": (2, 7, 19, 96), "outputs": 49},
    "width_20": {"x": (2, 7, 20, 96), "outputs": 49},
    "height_1": {"x": (1, 1, 40, 48), "outputs": 64},
    "kernel_5x5": {"x": (1, 17, 23, 33), "kernel": (5, 5), "padding": 2},
    "kernel_1x3": {"x": (1, 9, 40, 33), "kernel": (1, 3), "padding": (0, 1)},
    "kernel_6x5": {"x": (1, 9, 40, 33), "kernel": (6, 5), "padding": 2},
    "dilated": {"x": (1, 17, 35, 33), "dilation": 2, "padding": 2},
    "multiplier": {"x": (1, 12, 37, 20), "multiplier": 3, "outputs": 65},
    "wide_padding": {"x": (1, 3, 21, 40), "padding": ((40, 3), (37, 50))},
    "two_images": {"x": (2, 45, 33, 64), "outputs": 64},
    "range_of_terms": {"x": (1, 9, 21, 5000), "outputs": 50},
    "few_channels": {"x": (1, 9, 40, 3), "outputs": 2},
}


@pytest.mark.parametrize("stride", [1, 2], ids="stride_{}".format)
@pytest.mark.parametrize("name", PLANES)
def test_planes_have_the_bits_of_pixels(name, stride):
    """Few enough channels for NCHW to multiply planes, where images are wide."""
    shape = {"outputs": 56, "padding": 1, "dw_activation": "silu", "residual": True} | PLANES[name]
    made = call(OP, stride=stride, activation="relu6", **shape)
    want = images_nchw(made.run())
    for threads in (1, 3):
        assert_same_bits(nchw(made).run(threads=threads), want)
