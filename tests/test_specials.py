"""NaN and Inf at every position of small images and weights: they reach what the oracle says.

All data are integers, so every result that is a number is compared exactly.
"""

from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pooling
import pytest
from cases import BUNDLES, EXAMPLES, ISAS, call, example, images_nchw, nchw, using

SPECIALS = [np.nan, np.inf, -np.inf]


def check_both_layouts(made, twin):
    """Compare with one oracle on every ISA."""
    want = made.want().astype(np.float32)
    for isa in ISAS:
        with using(isa):
            np.testing.assert_array_equal(made.run(), want)
            np.testing.assert_array_equal(twin.run(), images_nchw(want) if want.ndim == 4 else want)


def one_spot_per_image(image, special):
    """Repeat an image as often as it has elements, plus once; each but the last has one special."""
    batch = np.repeat(image[None], image.size + 1, axis=0)
    every = np.arange(image.size)
    batch.reshape(len(batch), -1)[every, every] = special
    return batch


@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_pixels(name, special):
    made = example(name, data="integers")
    made = replace(made, x=one_spot_per_image(made.x[0], special))
    check_both_layouts(made, nchw(made))


@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize("outputs", [11, 22], ids="outputs_{}".format)
def test_pixels_that_share_a_vector(outputs, special):
    """Half a vector of outputs beside a whole one: of 8 lanes, of 16."""
    made = call("pointwise_conv2d", (1, 3, 5, 4), outputs=outputs, data="integers")
    made = replace(made, x=one_spot_per_image(made.x[0], special))
    check_both_layouts(made, nchw(made))


@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize(("groups", "terms", "outputs"), BUNDLES)
def test_pixels_of_groups_in_bundles(groups, terms, outputs, special):
    made = {"groups": groups, "outputs": groups * outputs, "kernel": (1, 1), "data": "integers"}
    made = call("conv2d", (1, 1, 3, groups * terms), residual=True, activation="relu6", **made)
    x = one_spot_per_image(made.x[0], special)
    made = replace(made, x=x).with_(residual=np.repeat(made.options["residual"], len(x), axis=0))
    check_both_layouts(made, nchw(made))


@pytest.mark.parametrize("special", SPECIALS, ids=str)
def test_windows_of_groups_in_bundles(special):
    made = {"groups": 2, "outputs": 6, "padding": 1, "stride": 2, "data": "integers"}
    made = call("conv2d", (1, 3, 3, 2 * 16), **made)
    made = replace(made, x=one_spot_per_image(made.x[0], special))
    check_both_layouts(made, nchw(made))


@pytest.mark.parametrize("special", SPECIALS, ids=str)
@pytest.mark.parametrize("name", pooling.EXAMPLES)
def test_pixels_of_pooling(name, special):
    made = pooling.example(name, data="integers")
    made = made.on(one_spot_per_image(made.x[0], special))
    check_both_layouts(made, pooling.nchw(made))


def with_weights(made, index, w):
    weights = list(made.weights)
    weights[index] = w.reshape(weights[index].shape)
    return replace(made, weights=tuple(weights))


@pytest.mark.parametrize("name", EXAMPLES)
def test_weights(name):
    """The same weight of every other filter; the filters between them stay as they are."""
    made = example(name, data="integers")
    last = made.weights[-1]
    depthwise = made.op == "depthwise_conv2d"
    filters = last.reshape(-1, last[0, 0].size if depthwise else last.shape[-1])
    for (spot, first), special in zip(product(range(len(filters)), (0, 1)), cycle(SPECIALS)):
        w = filters.copy()
        w[spot, first::2] = special
        odd = with_weights(made, -1, w)
        check_both_layouts(odd, nchw(odd))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("separable")])
def test_weights_before_a_pointwise(name):
    made = example(name, data="integers")
    for spot, special in zip(range(made.weights[0].size), cycle(SPECIALS)):
        dw = made.weights[0].copy()
        dw.reshape(-1)[spot] = special
        odd = with_weights(made, 0, dw)
        check_both_layouts(odd, nchw(odd))
