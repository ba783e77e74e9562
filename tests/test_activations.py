"""Fused bias, residual and activation; NaN, Inf and signed zeros through them."""

from dataclasses import replace

import numpy as np
import pytest
import reference
from cases import ACTIVATIONS, EXAMPLES, assert_within, call, check, example

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")

SPECIALS = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_activation(name, activation, data):
    check(example(name, activation=activation, data=data))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("activation", [None, "relu6", "hardswish"], ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_residual_is_added_before_the_activation(name, activation, bias, layout, data):
    check(example(name, activation=activation, bias=bias, residual=True, layout=layout, data=data))


@pytest.mark.parametrize("x", [(0, 4, 5, 7), (4, 5, 7)], ids=["batch_0", "unbatched"])
def test_residual_batch(x, layout):
    check(call("conv2d", x, padding=1, residual=True, layout=layout))


@pytest.mark.parametrize(
    "clamp", [(0, 6), (-1, 1), (0.5, 0.5), (-np.inf, 2), (0, np.inf), (-3, -1)], ids=str
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_clamp(name, clamp, data):
    check(example(name, activation=clamp, data=data))


def identity(values, activation, dtype=np.float32):
    """Pass values through a 1x1 depthwise convolution by one, which changes none of them."""
    x = np.asarray(values, dtype).reshape(1, 1, -1, 1)
    return ck.depthwise_conv2d(x, np.ones((1, 1, 1), dtype), activation=activation).ravel()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if isinstance(a, str)])
def test_activation_over_its_whole_range(activation, dtype):
    huge = np.geomspace(1e-30, 1e30, 2001)
    z = np.concatenate([np.linspace(-800, 800, 20001), np.linspace(-9, 9, 20001), huge, -huge])
    z = z.astype(dtype)
    exact = z.astype(np.longdouble)
    # The identity is exact, so all of the error is the activation's own.
    own = reference.activation_error(exact, 0 * exact, activation, dtype)
    assert_within(identity(z, activation, dtype), reference.activate(exact, activation), own)


def test_clip_of_specials_keeps_nan():
    y = identity([np.nan, np.inf, -np.inf, -0.0], (0, 6))
    assert np.isnan(y[0])
    assert y[1:].tolist() == [6, 0, 0]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_special_pixel_reaches_its_windows_only(name, special, activation):
    made = example(name, activation=activation, data="integers")
    spots = [(0, 0, 0, 0), (-1, -1, -1, -1), (0, 3, 2, made.x.shape[-1] // 2)]
    for spot in spots:
        x = made.x.copy()
        x[spot] = special
        check(replace(made, x=x))


@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_special_bias_and_residual(name, special):
    made = example(name, data="integers", residual=True)
    bias = made.biases[-1].copy()
    bias[-1] = special
    check(replace(made, biases=(*made.biases[:-1], bias)))
    residual = made.options["residual"].copy()
    residual[0, 1, 1, 1] = special
    check(made.with_(residual=residual))


def test_nan_pixel_under_ones(layout):
    x = np.ones((1, 8, 8, 3), np.float32)
    x[0, 4, 4, 1] = np.nan
    w = np.ones((3, 3, 3, 4), np.float32)
    if layout == "NCHW":
        x, w = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    y = np.isnan(ck.conv2d(x, w, padding=1, layout=layout))
    y = y[..., 0] if layout == "NHWC" else y[:, 0]
    assert y.sum() == 9
    assert y[0, 3:6, 3:6].all()


@pytest.mark.filterwarnings("error")
def test_overflow_is_infinity_without_a_warning():
    x, w = np.full((1, 2, 2, 1), 3e38, np.float32), np.full((1, 1, 1, 1), 10, np.float32)
    with np.errstate(all="raise"):
        assert np.isposinf(ck.conv2d(x, w)).all()
        assert np.isposinf(ck.depthwise_conv2d(x, w[..., 0])).all()
        assert np.isposinf(ck.pointwise_conv2d(x, w)).all()
        assert np.isposinf(ck.separable_conv2d(x, w[..., 0], w)).all()
        assert np.isneginf(ck.conv2d(x, -w)).all()
