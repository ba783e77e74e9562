"""What the peers are asked to run: a network of convolutions and poolings, in their own terms.

Everything is derived from convkern's layers, so a peer can be given whatever convkern runs: a
single operation or a whole network. Images are NCHW with a batch of one, weights OIHW.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

import convkern as ck
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
    """A convolution of samples at the array `offset`, times the array `mask`."""

    offset: str
    mask: str
    offset_groups: int

    @property
    def inputs(self) -> list[str]:
        return [self.x, self.offset, self.mask]


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
    """Nodes in the order in which they run.

    Attributes
    ----------
    inputs : dict of str to ndarray
        The arrays that no node makes, (1, C, H, W) float32.
    nodes : list of Node
        A node's array has the node's name.
    output : str
        The name of the array that is the result.
    """

    inputs: dict[str, np.ndarray]
    nodes: list[Node]
    output: str


def of_call(call, layer) -> Network:
    """Spell out an NCHW call of the tests, whose layer is given too."""
    arrays = {"x": call.x}
    if call.op == "deform_conv2d":
        arrays |= {"offset": call.weights[0], "mask": call.options["mask"]}
    nodes = of_layer(layer, "y", list(arrays), [array.shape for array in arrays.values()])
    return Network({name: array[None] for name, array in arrays.items()}, list(nodes), "y")


def of_graph(graph: ck.Graph, x: np.ndarray) -> Network:
    """Spell out a graph of NHWC layers; `x` is an image without a batch."""
    shapes = graph.out_shapes(x.shape)
    nodes = []
    for name, layer, inputs, residual in graph.nodes:
        read = [shapes[array] for array in inputs]
        *first, last = of_layer(layer, name, inputs, read)
        nodes += [*first, last if residual is None else replace(last, residual=residual)]
    return Network({graph.input: x.transpose(2, 0, 1)[None].copy()}, nodes, graph.output)


def of_layer(layer, name: str, inputs: Sequence[str], shapes: Sequence) -> Iterator[Node]:
    """Spell out a layer that reads arrays of these shapes; its own array is called `name`."""
    o, x = layer._operation, inputs[0]
    if isinstance(o, Pooling):
        yield _pool(o, name, x, shapes[0])
        return
    channels, height, width = _sizes(o.layouts.image, shapes[0])
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
        yield _deform(o, inputs, shapes, channels, window | last)
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


def _deform(o, inputs: Sequence[str], shapes: Sequence, channels: int, options) -> Deform:
    if len(inputs) < 3:
        raise NotImplementedError("deformable convolutions without a mask")
    (x, offset, mask), w = inputs, _oihw(o.w)
    offset_channels, _, _ = _sizes(o.layouts.image, shapes[1])
    offset_groups = offset_channels // (2 * w[0, 0].size)
    read = {"x": x, "offset": offset, "mask": mask, "offset_groups": offset_groups}
    return Deform(w=w, groups=channels // w.shape[1], **read, **options)


def _pool(o: Pooling, name: str, x: str, shape) -> Pool:
    if o.window is None:
        return Pool(name=name, x=x, kind=o.kind)
    if o.window.dilation != (1, 1) or o.window.ceil_mode or o.count_include_pad:
        raise NotImplementedError("poolings with dilation, ceil_mode or padding that counts")
    _, height, width = _sizes(o.layout, shape)
    top, bottom, left, right = o.window.padding_for(height, width)
    return Pool(
        name=name,
        x=x,
        kind=o.kind,
        kernel=o.window.kernel,
        stride=o.window.stride,
        pads=(top, left, bottom, right),
    )


def _sizes(layout: str, shape) -> tuple[int, int, int]:
    """Channels, height and width."""
    *_, a, b, c = shape
    return (a, b, c) if layout == "NCHW" else (c, a, b)


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
