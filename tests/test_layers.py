"""Layers: the functions' results with weights packed once."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from cases import (
    ACTIVATIONS,
    CHANNELS,
    EXAMPLES,
    OPS,
    HasArray,
    HasDLPack,
    as_memoryview,
    assert_same_bits,
    call,
    channels_id,
    check,
    example,
)

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_layer_is_the_function(name, activation, layout):
    for bias in (True, False):
        made = example(name, activation=activation, layout=layout, bias=bias)
        layer = made.layer()
        assert_same_bits(layer(made.x), made.run())
        assert_same_bits(layer(made.x[0]), made.run()[0])
        assert_same_bits(layer(made.x[:0]), made.run()[:0])


@pytest.mark.parametrize("channels", CHANNELS, ids=channels_id)
@pytest.mark.parametrize("op", OPS)
def test_channels(op, channels, data):
    for made in (
        call(op, (2, 3, 4, channels), kernel=(2, 2), outputs=7, data=data),
        call(op, (2, 3, 4, 5), kernel=(2, 2), outputs=channels, data=data),
    ):
        check(made, made.layer()(made.x))


@pytest.mark.parametrize("name", EXAMPLES)
def test_out_and_residual(name, layout):
    made = example(name, residual=True, layout=layout, activation="relu6")
    want, layer = made.run(), made.layer()
    residual = made.options["residual"]
    out = np.full_like(want, np.nan)
    assert layer(made.x, out, 1, residual=residual) is out
    assert_same_bits(out, want)
    assert_same_bits(layer(made.x, threads=2, residual=residual), want)
    assert layer(made.x, residual=residual, out=residual) is residual
    assert_same_bits(residual, want)


@pytest.mark.parametrize("name", EXAMPLES)
def test_layer_serves_every_size_of_image(name):
    made = example(name)
    layer = made.layer()
    for size in ((1, 12, 12), (3, 9, 15), (1, 40, 9)):
        other = replace(made, x=example(name, x=(*size, made.x.shape[-1])).x)
        check(other, layer(other.x))


@pytest.mark.parametrize("name", EXAMPLES)
def test_pickle_and_copy(name, layout):
    made = example(name, activation="hardswish", layout=layout)
    layer, want = made.layer(), made.run()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(layer, protocol))
        assert type(again) is type(layer)
        assert_same_bits(again(made.x), want)
    for again in (copy.copy(layer), copy.deepcopy(layer)):
        assert_same_bits(again(made.x), want)


@pytest.mark.parametrize("name", EXAMPLES)
def test_pickle_travels_to_another_isa(name):
    made = example(name)
    pickled = pickle.dumps(made.layer())
    for isa in ck.available_isas():
        with ck.use_isa(isa):
            check(made, pickle.loads(pickled)(made.x))


@pytest.mark.parametrize("name", EXAMPLES)
def test_immutable(name):
    made = example(name)
    layer, want = made.layer(), made.run()
    for a in (*made.weights, *made.biases):
        a[...] = np.nan
    assert_same_bits(layer(made.x), want)
    with pytest.raises(AttributeError):
        layer.stride = 2
    with pytest.raises(AttributeError):
        layer.anything = 2
    with pytest.raises(AttributeError):
        del layer.stride
    assert_same_bits(layer(made.x), want)


@pytest.mark.parametrize("kind", [as_memoryview, HasArray, HasDLPack])
@pytest.mark.parametrize("name", EXAMPLES)
def test_weights_of_any_kind_are_copied(name, kind):
    made = example(name)
    views = replace(
        made, weights=tuple(map(kind, made.weights)), biases=tuple(map(kind, made.biases))
    )
    layer, want = views.layer(), made.run()
    for a in (*made.weights, *made.biases):
        a[...] = np.nan
    assert_same_bits(layer(made.x), want)
    assert_same_bits(pickle.loads(pickle.dumps(layer))(made.x), want)


@pytest.mark.parametrize("name", EXAMPLES)
def test_concurrent_calls(name):
    channels = EXAMPLES[name]["x"][-1]
    sizes = [(1, 24, 24), (2, 13, 17), (1, 12, 40)]
    made = [example(name, x=(*size, channels), activation="silu") for size in sizes]
    layer, want = made[0].layer(), [m.run() for m in made]
    calls = list(range(len(made))) * 20
    with ThreadPoolExecutor(8) as pool:
        for i, y in zip(calls, pool.map(lambda i: layer(made[i].x), calls), strict=True):
            assert_same_bits(y, want[i])
        for i, y in zip(calls, pool.map(lambda i: made[i].run(), calls), strict=True):
            assert_same_bits(y, want[i])


@pytest.mark.parametrize("name", EXAMPLES)
def test_out_shape(name, layout):
    made = example(name, layout=layout)
    layer = made.layer()
    for x in (made.x, made.x[0], made.x[:0]):
        shape = layer.out_shape(x.shape)
        assert shape == layer(x).shape
        assert type(shape) is tuple


@pytest.mark.parametrize("op", OPS)
def test_out_shape_refuses(op, layout):
    layer = call(op, (1, 8, 8, 3), layout=layout).layer()
    for shape in ((8, 8), (1, 8, 8, 4), (1, 4, 8, 8), (1, 1, 8, 8, 3), (1, 0, 8, 3), (1, -8, 8, 3)):
        with pytest.raises(ValueError, match="x"):
            layer.out_shape(shape)
    for shape in (None, 8, "1883", (1, 8.0, 8, 3)):
        with pytest.raises((TypeError, ValueError)):
            layer.out_shape(shape)


@pytest.mark.parametrize("name", EXAMPLES)
def test_cost(name, layout):
    made = example(name, layout=layout)
    layer, y = made.layer(), made.run()
    cost = layer.cost(made.x.shape)
    assert isinstance(cost, ck.cost.Cost)
    channel = -1 if layout == "NHWC" else 1
    pixels = y.size // y.shape[channel]
    if made.op != "spatially_separable_conv2d":  # its column is used for other pixels
        assert cost.macs == pixels * sum(w.size for w in made.weights)
    assert cost.params == sum(a.size for a in (*made.weights, *made.biases))
    assert cost.bytes >= 4 * (made.x.size + y.size + cost.params)
    assert layer.cost(made.x[:1].shape).macs * made.x.shape[0] == cost.macs


@pytest.mark.parametrize("op", OPS)
def test_wrong_calls(op, layout):
    made = call(op, (1, 8, 8, 3), layout=layout, outputs=4)
    layer, y = made.layer(), made.run()
    twice = np.repeat(made.x, 2, axis=-1 if layout == "NHWC" else 1)
    for x, exception in (
        (twice, ValueError),
        (made.x[0, 0], ValueError),
        (made.x.astype("f8"), TypeError),
        (made.x.tolist(), TypeError),
        (None, TypeError),
        (made.x[:, :0], ValueError),
    ):
        with pytest.raises(exception, match="x"):
            layer(x)
    for out, exception in (
        (y[None], ValueError),
        (y[:, :1], ValueError),
        (y[0], ValueError),
        (y.astype("f8"), TypeError),
        (y.tolist(), TypeError),
    ):
        with pytest.raises(exception, match="out"):
            layer(made.x, out)
        with pytest.raises(exception, match="residual"):
            layer(made.x, residual=out)
    for threads in (0, -1, 1.5, "2"):
        with pytest.raises((ValueError, TypeError), match="threads"):
            layer(made.x, threads=threads)
    with pytest.raises(TypeError):
        layer(made.x, y, 1, y)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stride", 0),
        ("stride", 1.5),
        ("padding", -1),
        ("dilation", 0),
        ("groups", 0),
        ("groups", 5),
        ("activation", "gelu"),
        ("activation", (2, 1)),
        ("layout", "NHCW"),
        ("weight_layout", "IOHW"),
        ("threads", 1),
        ("out", None),
        ("residual", None),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_wrong_options(op, option, value):
    made = call(op, (1, 8, 8, 3))
    with pytest.raises((ValueError, TypeError), match=option):
        made.with_(**{option: value}).layer() if option != "residual" else ck.Conv2d(
            np.ones((3, 3, 3, 4), np.float32), residual=None
        )


@pytest.mark.parametrize("op", OPS)
def test_wrong_weights(op):
    made = call(op, (1, 8, 8, 3))
    w = made.weights[0]
    for wrong, exception in (
        (w.astype("f8"), TypeError),
        (w.tolist(), TypeError),
        (None, TypeError),
        (w[..., None, None, None], ValueError),
        (w[..., :0], ValueError),
        (w.ravel()[:, None, None], ValueError),
    ):
        with pytest.raises(exception):
            replace(made, weights=(wrong, *made.weights[1:])).layer()
    bias = made.biases[-1]
    for wrong, exception in (
        (bias[1:], ValueError),
        (bias[None], ValueError),
        (bias.astype("f8"), TypeError),
        (bias.tolist(), TypeError),
    ):
        with pytest.raises(exception, match="bias"):
            replace(made, biases=(*made.biases[:-1], wrong)).layer()


@pytest.mark.parametrize("name", EXAMPLES)
def test_repr_names_the_operation(name):
    layer = example(name).layer()
    assert type(layer).__name__ in repr(layer)


@pytest.mark.parametrize("name", ["conv2d_3x3", "depthwise_3x3", "depthwise_multiplier"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_fold_batchnorm(name, layout):
    made = example(name, layout=layout)
    (w,), (bias,) = made.weights, made.biases
    rng = np.random.default_rng(1)
    gamma, beta, mean = rng.standard_normal((3, bias.size)).astype(np.float32)
    var = rng.uniform(0.1, 2, bias.size).astype(np.float32)
    per_channel = (-1,) if layout == "NHWC" else (-1, 1, 1)
    weight_layout = "HWIO" if layout == "NHWC" else "OIHW"
    for b in (bias, None):
        scale = (gamma / np.sqrt(var.astype(np.float64) + 1e-3)).reshape(per_channel)
        shift = beta.astype(np.float64).reshape(per_channel) - mean.reshape(per_channel) * scale
        folded, folded_bias = ck.fold_batchnorm(
            w, b, gamma, beta, mean, var, 1e-3, weight_layout=weight_layout
        )
        assert folded.dtype == folded_bias.dtype == np.float32
        assert (folded.shape, folded_bias.shape) == (w.shape, bias.shape)
        got = replace(made, weights=(folded,), biases=(folded_bias,)).want()
        want = replace(made, biases=(b,)).want() * scale + shift
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_fold_batchnorm_refuses():
    w, n = np.ones((3, 3, 3, 4), np.float32), np.ones(4, np.float32)
    for index, name in enumerate(("gamma", "beta", "mean", "var")):
        for wrong, exception in (
            (n[1:], ValueError),
            (n[None], ValueError),
            (n.tolist(), TypeError),
            (n.astype(int), TypeError),
            (n.astype(np.float64), TypeError),
        ):
            statistics = [n] * 4
            statistics[index] = wrong
            with pytest.raises(exception, match=name):
                ck.fold_batchnorm(w, None, *statistics, 1e-3)
    with pytest.raises(TypeError, match="w"):
        ck.fold_batchnorm(w.tolist(), None, n, n, n, n, 1e-3)
    with pytest.raises(ValueError, match="bias"):
        ck.fold_batchnorm(w, n[1:], n, n, n, n, 1e-3)
    with pytest.raises(ValueError, match="var"):
        ck.fold_batchnorm(w, None, n, n, n, -n, 1e-3)
    for eps in (-1.0, -2.0, float("nan")):
        with pytest.raises(ValueError, match="eps"):
            ck.fold_batchnorm(w, None, n, n, n, n, eps)
    with pytest.raises(ValueError, match="weight_layout"):
        ck.fold_batchnorm(w, None, n, n, n, n, 1e-3, weight_layout="NHWC")
