"""What the peers are asked to run: a network of convolutions and poolings, in their own terms.

Everything is derived from convkern's layers, so a peer can be given whatever convkern runs: a
single operation or a whole network. Images are NCHW with a batch of one, weights OIHW.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from convkern import _core
from convkern._pooling import Pooling

Activation = str | tuple[float, float] | None
"""A name of `convkern._core.ACTIVATIONS`, or (low, high) to clamp."""

_ACTIVATIONS = {number: name for name, number in _core.ACTIVATIONS.items()}
Pads = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution of the array `x` with OIHW weights; an array `residual` is added after it."""

    name: str
    x: str
    w: np.ndarray
    bias: np.ndarray
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    activation: Activation = None
    residual: str | None = None

    @property
    def kernel(self) -> tuple[int, int]:
        return self.w.shape[2:]

    @property
    def inputs(self) -> list[str]:
        return [self.x] if self.residual is None else [self.x, self.residual]


@dataclass(frozen=True, kw_only=True)
class Deform(Conv):
    """A convolution of samples at the array "offset", times the array "mask"."""

    offset_groups: int

    @property
    def inputs(self) -> list[str]:
        return [self.x, "offset", "mask"]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pooling; a global one has no kernel. Averages do not count the padding."""

    name: str
    x: str
    kind: str  # "max" or "average"
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    pads: Pads = (0, 0, 0, 0)

    @property
    def inputs(self) -> list[str]:
        return [self.x]


Node = Conv | Deform | Pool


@dataclass(frozen=True)
class Network:
    """Nodes in the order in which they run; the last one's array is the result.

    Attributes
    ----------
    inputs : dict of str to ndarray
        The arrays that no node makes, (1, C, H, W) float32.
    nodes : list of Node
        A node's array has the node's name.
    """

    inputs: dict[str, np.ndarray]
    nodes: list[Node]

    @property
    def output(self) -> str:
        return self.nodes[-1].name


def of_call(call, layer) -> Network:
    """Spell out an NCHW call of the tests, whose layer is given too."""
    arrays = {"x": call.x}
    if call.op == "deform_conv2d":
        arrays |= {"offset": call.weights[0], "mask": call.options["mask"]}
    inputs = {name: array[None] for name, array in arrays.items()}
    offset_channels = len(arrays["offset"]) if "offset" in arrays else 0
    return Network(inputs, list(of_layer(layer, "y", "x", call.x.shape, offset_channels)))


def of_network(net, x: np.ndarray) -> Network:
    """Spell out a network of the zoo; `x` is an NHWC image."""
    chain = getattr(net, "_chain", None) or net._features
    nodes, name, before, shape = [], "x", None, x.shape
    for i, step in enumerate(chain.steps):
        *first, last = of_layer(step.layer, f"layer{i}", name, shape)
        nodes += [*first, replace(last, residual=before if step.residual else None)]
        before, name, shape = name, last.name, step.layer.out_shape(shape)
    if hasattr(net, "_classifier"):
        nodes.append(Pool(name="pooled", x=name, kind="average"))
        nodes += of_layer(net._classifier, "logits", "pooled", (1, 1, shape[-1]))
    return Network({"x": np.ascontiguousarray(x.transpose(2, 0, 1))[None]}, nodes)


def of_layer(layer, name: str, x: str, shape, offset_channels: int = 0) -> Iterator[Node]:
    """Spell out a layer of convkern on images of this shape; its result is called `name`."""
    o = layer._operation
    if isinstance(o, Pooling):
        yield _pool(o, name, x, shape)
        return
    nchw = o.layouts.image == "NCHW"
    channels, height, width = shape[-3:] if nchw else (shape[-1], *shape[-3:-1])
    top, bottom, left, right = o.window.padding_for(height, width)
    window = {
        "stride": o.window.stride,
        "dilation": o.window.dilation,
        "pads": (top, left, bottom, right),
    }
    last = {"name": name, "bias": _bias(o.bias, o.out_channels or channels)}
    last["activation"] = _activation(o.activation)
    if o.kind == "spatial":
        yield from _column_and_row(o, x, channels, window, last)
    elif o.kind == "deform":
        w = _oihw(o.w)
        groups = channels // w.shape[1]
        offset_groups = offset_channels // (2 * w[0, 0].size)
        yield Deform(x=x, w=w, groups=groups, offset_groups=offset_groups, **window, **last)
    elif o.kind == "depthwise":
        yield Conv(x=x, w=_depthwise(o.w), groups=channels, **window, **last)
    elif o.kind == "separable":
        dw = _depthwise(o.dw)
        middle = f"{name}.dw"
        yield Conv(
            name=middle,
            x=x,
            w=dw,
            bias=_bias(o.dw_bias, len(dw)),
            groups=channels,
            activation=_activation(o.dw_activation),
            **window,
        )
        yield Conv(x=middle, w=_oihw(o.w), **last)
    else:
        yield Conv(x=x, w=_oihw(o.w), groups=o.channels[2], **window, **last)


def _column_and_row(o, x: str, channels: int, window, last) -> Iterator[Conv]:
    """Spell two depthwise convolutions out; the image is padded on all sides before the first."""
    (sh, sw), (dh, dw) = window["stride"], window["dilation"]
    column, row = (np.repeat(_depthwise(w), channels // w.shape[2], 0) for w in (o.dw, o.w))
    middle = f"{last['name']}.column"
    down = {"stride": (sh, 1), "dilation": (dh, 1), "pads": window["pads"]}
    nothing = np.zeros(channels, column.dtype)
    yield Conv(name=middle, x=x, w=column, bias=nothing, groups=channels, **down)
    yield Conv(x=middle, w=row, groups=channels, stride=(1, sw), dilation=(1, dw), **last)


def _pool(o: Pooling, name: str, x: str, shape) -> Pool:
    if o.window is None:
        return Pool(name=name, x=x, kind=o.kind)
    if o.window.dilation != (1, 1) or o.window.ceil_mode or o.count_include_pad:
        raise NotImplementedError("poolings with dilation, ceil_mode or padding that counts")
    height, width = shape[-2:] if o.layout == "NCHW" else shape[-3:-1]
    top, bottom, left, right = o.window.padding_for(height, width)
    return Pool(
        name=name,
        x=x,
        kind=o.kind,
        kernel=o.window.kernel,
        stride=o.window.stride,
        pads=(top, left, bottom, right),
    )


def _activation(spec) -> Activation:
    kind, low, high = spec
    if _ACTIVATIONS[kind] != "clamp":
        return _ACTIVATIONS[kind]
    return None if (low, high) == (-math.inf, math.inf) else (low, high)


def _bias(bias: np.ndarray | None, channels: int) -> np.ndarray:
    return np.zeros(channels, np.float32) if bias is None else bias


def _oihw(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(w.transpose(3, 2, 0, 1))


def _depthwise(w: np.ndarray) -> np.ndarray:
    """Turn (kh, kw, C, multiplier) into (C * multiplier, 1, kh, kw)."""
    kh, kw, *_ = w.shape
    return np.ascontiguousarray(w.transpose(2, 3, 0, 1).reshape(-1, 1, kh, kw))
