"""pointwise_conv2d against the oracle, at the edges of shapes and tiles."""

import pytest
from cases import CHANNELS, call, channels_id, check, example

pytestmark = pytest.mark.usefixtures("isa")

OP = "pointwise_conv2d"


@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
def test_input_channels(channels, data):
    check(call(OP, (1, 3, 5, channels), outputs=19, data=data))


@pytest.mark.parametrize("outputs", range(1, 100), ids="outputs_{}".format)
def test_output_channels(outputs, data):
    check(call(OP, (1, 3, 5, 7), outputs=outputs, data=data))


@pytest.mark.parametrize("pixels", range(1, 100), ids="pixels_{}".format)
def test_pixels_per_tile(pixels, data):
    check(call(OP, (1, 1, pixels, 5), outputs=37, data=data))


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "silu"], ids=str)
@pytest.mark.parametrize("pixels", range(1, 33), ids="pixels_{}".format)
def test_half_a_vector(pixels, activation, data):
    """One vector of outputs and half of one more, of 16, 8 and 4 lanes; in NCHW, of pixels."""
    for outputs in (17, 22, 24):
        made = {"outputs": outputs, "residual": True, "activation": activation, "data": data}
        check(call(OP, (1, 1, pixels, 9), **made))
        check(call(OP, (1, 1, outputs, 9), **made | {"outputs": pixels}, layout="NCHW"))


@pytest.mark.parametrize("outputs", [20, 36, 40, 68, 72, 136, 264], ids="outputs_{}".format)
def test_panels_of_a_vector_and_a_half(outputs, data):
    """As 40 outputs, which are 24 and 16 where a vector is 16."""
    for pixels in (1, 3, 29):
        made = {"outputs": outputs, "residual": True, "activation": "relu6", "data": data}
        check(call(OP, (1, 1, pixels, 70), **made))


@pytest.mark.parametrize("channels", [127, 129, 255, 256, 257, 511, 512, 513, 1024, 2048, 4099])
def test_long_sums(channels, data):
    for pixels, outputs in ((1, 33), (15, 8), (27, 24), (29, 65)):
        check(call(OP, (1, 1, pixels, channels), outputs=outputs, data=data))


@pytest.mark.parametrize("outputs", [255, 512, 1000, 1280])
def test_many_outputs(outputs, data):
    for channels in (1, 17, 300):
        check(call(OP, (1, 5, 3, channels), outputs=outputs, data=data))


@pytest.mark.parametrize("width", range(1, 10), ids="width_{}".format)
@pytest.mark.parametrize("height", range(1, 10), ids="height_{}".format)
def test_image_size(height, width, layout, data):
    check(call(OP, (2, height, width, 6), outputs=17, layout=layout, data=data))


@pytest.mark.parametrize("stride", [2, 3, (1, 2), (4, 1), 100], ids=str)
def test_stride(stride, layout, data):
    for channels in (1, 8, 19):
        check(call(OP, (2, 9, 8, channels), outputs=21, stride=stride, layout=layout, data=data))


@pytest.mark.parametrize(
    "x",
    [(0, 5, 6, 3), (1, 5, 6, 3), (3, 5, 6, 3), (5, 6, 3)],
    ids=["batch_0", "batch_1", "batch_3", "unbatched"],
)
def test_batch(x, layout, data):
    check(call(OP, x, outputs=7, layout=layout, data=data))


@pytest.mark.parametrize("activation", [None, "relu6", "silu"], ids=str)
def test_ranges_of_terms(activation, data):
    """More terms than a range of the GEMM holds: 40009 of them are 160 kB for each output."""
    made = {"outputs": 3, "residual": True, "activation": activation, "data": data}
    check(call(OP, (1, 1, 2, 40009), **made))
    check(call(OP, (1, 1, 5, 40009), **made | {"outputs": 23}))
    check(call(OP, (1, 1, 5, 40009), **made | {"outputs": 40}))


@pytest.mark.parametrize("size", [(21, 19), (2, 401)], ids=["several_rows", "part_of_a_row"])
def test_blocks(size, data):
    """More pixels than a block of the GEMM holds."""
    check(call(OP, (2, *size, 901), outputs=5, residual=True, data=data))


def test_no_bias(layout, data):
    check(call(OP, (2, 5, 6, 7), outputs=17, bias=False, layout=layout, data=data))


def test_sums_that_cancel():
    check(call(OP, (2, 5, 6, 211), outputs=37, data="wide_range"))


def test_four_axis_weights(layout):
    made = example("pointwise", layout=layout)
    (w,) = made.weights
    made = type(made)(
        made.op,
        made.x,
        (w[None, None] if layout == "NHWC" else w[..., None, None],),
        made.biases,
        made.options,
    )
    check(made)
