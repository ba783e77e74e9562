"""Calls of deform_conv2d: data for both the library and the oracle."""

from dataclasses import replace

import numpy as np
from cases import Call, images_nchw

import convkern as ck

WINDOW = ("stride", "padding", "dilation")
FAR = [1e3, -1e3, 2.0**30, -(2.0**31), 2.0**40, 1e18, -1e19, 1e30, -3e38, np.inf, -np.inf]

# One of each kind, with channels that no vector length divides: for what does not depend on shape.
EXAMPLES = {
    "v1": {"x": (2, 6, 7, 5), "outputs": 19, "padding": 1, "mask": False},
    "v2": {"x": (2, 6, 7, 16), "outputs": 32, "padding": 1},
    "offset_groups": {"x": (2, 5, 6, 38), "outputs": 7, "padding": 1, "offset_groups": 2},
    "grouped": {"x": (2, 5, 6, 12), "outputs": 6, "groups": 2, "offset_groups": 3, "stride": 2},
    "dilated": {"x": (1, 9, 8, 9), "outputs": 3, "kernel": (2, 3), "dilation": 2, "padding": 2},
    "far": {"x": (1, 40, 5, 9), "outputs": 3, "padding": 1, "spread": 20.0},
}


def deform(
    x,
    *,
    kernel=(3, 3),
    outputs=8,
    groups=1,
    offset_groups=1,
    spread=2.0,
    mask=True,
    data="reals",
    bias=True,
    residual=False,
    layout="NHWC",
    seed=0,
    **options,
):
    """Make up a call; `spread` is the size of the offsets, in pixels."""
    rng = np.random.default_rng(seed)
    dtype = np.float64 if data == "doubles" else np.float32

    def draw(shape, scale=1.0):
        if data == "integers":
            high = max(round(3 * scale), 1)
            return rng.integers(-high, high + 1, shape).astype(dtype)
        return (scale * rng.standard_normal(shape)).astype(dtype)

    channels, taps = x[-1], kernel[0] * kernel[1]
    image, w = draw(x), draw((*kernel, channels // groups, outputs))
    y_shape = plain(image, w, options).shape
    offset = draw((*y_shape[:-1], 2 * taps * offset_groups), spread)
    if mask:
        options["mask"] = draw((*y_shape[:-1], taps * offset_groups))
    if residual:
        options["residual"] = draw(y_shape)
    biases = (draw((outputs,)) if bias else None,)
    made = Call("deform_conv2d", image, (offset, w), biases, options)
    return made if layout == "NHWC" else nchw(made)


def plain(image, w, options):
    """The standard convolution through the same window."""
    window = {k: v for k, v in options.items() if k in WINDOW}
    return ck.conv2d(image, w, groups=image.shape[-1] // w.shape[2], **window)


def nchw(made):
    """Turn an NHWC call into its NCHW twin, every array contiguous."""
    offset, w = made.weights
    planar = {
        k: v if v is None else images_nchw(v)
        for k, v in made.options.items()
        if k in ("mask", "residual")
    }
    w = np.ascontiguousarray(w.transpose(3, 2, 0, 1))
    twin = replace(made, x=images_nchw(made.x), weights=(images_nchw(offset), w))
    return twin.with_(layout="NCHW", **planar)


def layer_of(made):
    options = {k: v for k, v in made.options.items() if k not in ("mask", "residual")}
    return ck.DeformConv2d(made.weights[1], *made.biases, **options)


def example(name, **changes):
    """Make up the call of this name in `EXAMPLES`, with changes."""
    return deform(**{**EXAMPLES[name], **changes})


def with_offsets(made, offset):
    return replace(made, weights=(offset, *made.weights[1:]))
