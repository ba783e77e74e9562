"""One operation: its options checked, its weights packed, and its runs.

The functions of ops.py make one and use it once; the layers of layers.py keep one. Weights are seen
as one 4-D view whatever their layout, so there is one path below:

    standard   (kernel_h, kernel_w, in_channels / groups, out_channels)
    depthwise  (kernel_h, kernel_w, in_channels, multiplier)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from . import _core, runtime
from ._geometry import (
    FAST,
    FULL,
    LAYOUTS,
    PRECISIONS,
    WEIGHT_LAYOUTS,
    ImageShape,
    Window,
    as_array,
    as_choice,
    as_int,
    as_padding,
    as_pair,
    as_same_dtype,
    check_memory,
    is_sequence,
    overlaps_itself,
    usable,
)

Activation = tuple[int, float, float]
"""Kind, low and high, as C wants it."""

IDENTITY: Activation = (_core.ACTIVATIONS["clamp"], -math.inf, math.inf)
_NAMED: dict[str, Activation] = {
    "relu": (_core.ACTIVATIONS["clamp"], 0.0, math.inf),
    "relu6": (_core.ACTIVATIONS["clamp"], 0.0, 6.0),
    **{
        name: (_core.ACTIVATIONS[name], -math.inf, math.inf)
        for name in ("hardswish", "hardsigmoid", "sigmoid", "silu")
    },
}


def as_activation(op: str, name: str, value: Any) -> Activation:
    """None, a name, or (low, high) to clamp."""
    if value is None:
        return IDENTITY
    if isinstance(value, str):
        return _NAMED[as_choice(op, name, value, tuple(_NAMED))]
    rule = f"{op}: {name} must be None, one of {', '.join(_NAMED)}, or (low, high), not {value!r}"
    if not is_sequence(value):
        raise TypeError(rule)
    if len(value) != 2:
        raise ValueError(rule)
    if not all(isinstance(v, Real) and not isinstance(v, bool) for v in value):
        raise TypeError(rule)
    try:
        low, high = float(value[0]), float(value[1])
    except OverflowError:
        raise ValueError(rule) from None
    if not low <= high:
        raise ValueError(f"{op}: {name}=({low}, {high}) must have low <= high")
    return _core.ACTIVATIONS["clamp"], low, high


def _bias(op: str, name: str, bias: Any, channels: int, dtype: np.dtype) -> np.ndarray | None:
    if bias is None:
        return None
    array = as_same_dtype(op, name, bias, dtype, "the weights")
    if array.shape != (channels,):
        raise ValueError(
            f"{op}: {name} has shape {array.shape}; it must be ({channels},), one per output "
            f"channel"
        )
    return usable(array)


def _no_empty_axis(op: str, name: str, w: np.ndarray) -> None:
    if 0 in w.shape:
        raise ValueError(f"{op}: {name} has shape {w.shape}; no axis of weights may be 0")


def _strided(w: np.ndarray) -> np.ndarray:
    """C reads weights at any stride that is a whole number of elements."""
    flags = w.flags
    whole = flags.c_contiguous or math.gcd(*w.strides) % w.itemsize == 0
    return w if whole and flags.aligned else usable(w)


def conv_view(op: str, name: str, array: np.ndarray, weight_layout: str) -> np.ndarray:
    """(kh, kw, C / groups, N) in either order of axes."""
    if array.ndim != 4:
        order = "(kh, kw, C/groups, N)" if weight_layout == "HWIO" else "(N, C/groups, kh, kw)"
        raise ValueError(
            f"{op}: {name} has shape {array.shape}; {weight_layout} weights are 4-D, {order}"
        )
    _no_empty_axis(op, name, array)
    return _strided(array if weight_layout == "HWIO" else array.transpose(2, 3, 1, 0))


def depthwise_view(op: str, name: str, array: np.ndarray, weight_layout: str) -> np.ndarray:
    """(kh, kw, C, multiplier) in either order of axes.

    OIHW weights do not say what the multiplier is: they are seen as (kh, kw, C * multiplier, 1),
    and the image decides.
    """
    hwio = weight_layout == "HWIO"
    if hwio and array.ndim not in (3, 4):
        raise ValueError(
            f"{op}: {name} has shape {array.shape}; HWIO depthwise weights are (kh, kw, C) or "
            f"(kh, kw, C, multiplier)"
        )
    if not hwio and (array.ndim != 4 or array.shape[1] != 1):
        raise ValueError(
            f"{op}: {name} has shape {array.shape}; OIHW depthwise weights are "
            f"(C * multiplier, 1, kh, kw)"
        )
    _no_empty_axis(op, name, array)
    if not hwio:
        return _strided(array.transpose(2, 3, 0, 1))
    return _strided(array if array.ndim == 4 else array[..., None])


def pointwise_view(op: str, name: str, array: np.ndarray, weight_layout: str) -> np.ndarray:
    """(1, 1, C, N) from 2-D or 4-D weights in either order of axes."""
    spatial = array.shape[:2] if weight_layout == "HWIO" else array.shape[2:]
    if array.ndim == 2:
        view = array if weight_layout == "HWIO" else array.T
        view = view[None, None]
    elif array.ndim == 4 and spatial == (1, 1):
        view = array if weight_layout == "HWIO" else array.transpose(2, 3, 1, 0)
    else:
        order = "(C, N) or (1, 1, C, N)" if weight_layout == "HWIO" else "(N, C) or (N, C, 1, 1)"
        raise ValueError(
            f"{op}: {name} has shape {array.shape}; {weight_layout} pointwise weights are {order}"
        )
    _no_empty_axis(op, name, array)
    return _strided(view)


class Layouts(NamedTuple):
    image: str
    weights: str

    @classmethod
    def of(cls, op: str, layout: Any, weight_layout: Any) -> Layouts:
        image = as_choice(op, "layout", layout, LAYOUTS)
        if weight_layout is None:
            return _USUAL[image]
        return cls(image, as_choice(op, "weight_layout", weight_layout, WEIGHT_LAYOUTS))


_USUAL = {"NHWC": Layouts("NHWC", "HWIO"), "NCHW": Layouts("NCHW", "OIHW")}


def as_window(
    op: str, kernel: tuple[int, int], stride: Any, padding: Any = 0, dilation: Any = 1
) -> Window:
    return Window(
        kernel,
        as_pair(op, "stride", stride, 1),
        as_pair(op, "dilation", dilation, 1),
        as_padding(op, padding),
    )


class Plan(NamedTuple):
    """What a run needs to know of its shapes."""

    inputs: tuple[Any, ...]  # the shape of x; of a deformable one's offset and mask (or None), too
    shape: tuple[int, ...]  # of the result, in its layout
    sizes: tuple[int, ...]  # batch, height, width, channels, top, bottom, left, right
    image: ImageShape
    result: ImageShape
    groups: int = 1  # of a deformable one, which only its inputs say
    offset_groups: int = 1


MOST_PLANS = 64
_plans: dict[tuple[Any, ...], Any] = {}


def recall(form: tuple[Any, ...], inputs: tuple[Any, ...], make: Callable[..., Any]) -> Any:
    """The plan made before for such an operation and inputs of these shapes, or a new one.

    Functions make an operation for every call, most often of sizes that were there before.
    """
    key = (form, inputs)
    plan = _plans.get(key)
    if plan is None:
        plan = make(*inputs)
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


class Operation:
    """Options and weights of one convolution, checked.

    Subclasses set `kind` and `channels` (in, out, groups, multiplier) from their weights.
    """

    name: str
    kind: str
    layouts: Layouts
    w_name: str = "w"
    w_shape: tuple[int, ...]  # of the weights that meet the image, as they were given
    window: Window
    channels: tuple[int, int, int, int]
    w: np.ndarray
    bias: np.ndarray | None
    dw: np.ndarray | None = None
    dw_bias: np.ndarray | None = None
    activation: Activation
    dw_activation: Activation = IDENTITY
    precision: str = FULL
    _last_plan: Plan | None = None

    @property
    def in_channels(self) -> int:
        return self.channels[0]

    @property
    def out_channels(self) -> int:
        in_channels, out_channels, _, multiplier = self.channels
        return in_channels * multiplier if self.kind == "depthwise" else out_channels

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(math.prod(w.shape) for w in (self.w, self.dw) if w is not None)

    def macs(self, result: ImageShape) -> int:
        """Multiply-adds: every weight is used once per output pixel, in a depthwise half too."""
        return result.batch * result.height * result.width * self.weights

    def pack(self) -> _core.Op:
        """Weights packed for the ISA in use."""
        for w in (self.w, self.dw):
            if w is not None:
                check_memory(self.name, w.shape, w.itemsize, ": packing weights")
        return _core.Op(
            self.name,
            self.kind,
            runtime.isa_number(),
            self.layouts.image,
            self.window.flat(),
            self.channels,
            self.w,
            self.bias,
            self.activation,
            self.dw,
            self.dw_bias,
            self.dw_activation,
            self.precision == FAST,
        )

    def _fits(self, image_channels: int) -> bool:
        if self.kind != "conv2d" and self.layouts.weights == "OIHW":
            return self.in_channels % image_channels == 0  # the rest is the multiplier
        return self.in_channels == image_channels

    def shapes(self, x_shape: Any) -> tuple[ImageShape, ImageShape]:
        """The input and the output, or ValueError where x does not fit."""
        image = ImageShape.of(self.name, x_shape, self.layouts.image)
        if not self._fits(image.channels):
            raise ValueError(
                f"{self.name}: x has shape {tuple(x_shape)} ({self.layouts.image}), "
                f"{image.channels} channels, but {self.w_name} has shape {self.w_shape} "
                f"({self.layouts.weights}), which is for {self.in_channels}"
                + (f" in {self.channels[2]} groups" if self.channels[2] > 1 else "")
            )
        height, width = self.window.out_size(self.name, image.height, image.width)
        channels = self.out_channels or image.channels  # 0: as many as there are
        out = ImageShape(image.batch, height, width, channels, image.batched)
        return image, out

    def run(
        self, x: Any, residual: Any, out: Any, threads: Any, packed: _core.Op | None = None
    ) -> np.ndarray:
        """The operation on x: every check, then one call of C. Packs unless given `packed`."""
        threads = runtime.num_threads(self.name, threads)
        x = as_same_dtype(self.name, "x", x, self.w.dtype, self.w_name)
        plan = self.plan(x.shape)
        if residual is not None:
            residual = as_residual(self.name, residual, plan.shape, x.dtype)
        if out is not None:
            check_out(self.name, out, plan.shape, x.dtype)
        packed = self.pack() if packed is None else packed
        return packed.run(plan.sizes, plan.shape, x, residual, out, threads)

    def plan(self, *inputs: Any) -> Plan:
        """What follows from the shapes of the inputs; a layer keeps its last one at hand."""
        plan = self._last_plan
        if plan is None or plan.inputs != inputs:
            form = (self.kind, self.layouts, self.window, self.channels, self.w.itemsize)
            self._last_plan = plan = recall(form, inputs, self._plan)
        return plan

    def _plan(self, x_shape: tuple[int, ...], *where: Any) -> Plan:
        image, result = self.shapes(x_shape)
        shape = result.shape(self.layouts.image)
        check_memory(self.name, shape, self.w.itemsize)
        padding = self.window.padding_for(image.height, image.width)
        sizes = (image.batch, image.height, image.width, image.channels, *padding)
        return Plan((x_shape, *where), shape, sizes, image, result)


def as_residual(op: str, residual: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = as_same_dtype(op, "residual", residual, dtype)
    if array.shape != shape:
        raise ValueError(
            f"{op}: residual has shape {array.shape}; it must have the output's, {shape}"
        )
    return array


def check_out(op: str, out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{op}: out must be an ndarray, not {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"{op}: out has dtype {out.dtype.str}; it must be {dtype}, as x is")
    if out.shape != shape:
        raise ValueError(f"{op}: out has shape {out.shape}; it must have the output's, {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{op}: out is read-only")
    if not out.flags.c_contiguous and out.size and overlaps_itself(out):
        raise ValueError(f"{op}: out has strides {out.strides}; its elements must not overlap")


class Conv2dOperation(Operation):
    kind = "conv2d"

    def __init__(
        self, name: str, w: Any, bias: Any, *, stride: Any, padding: Any, dilation: Any,
        groups: Any, activation: Any, layout: Any, weight_layout: Any, precision: Any = FULL,
    ) -> None:  # fmt: skip
        self.name = name
        self.layouts = Layouts.of(name, layout, weight_layout)
        w = as_array(name, "w", w)
        self.w = conv_view(name, "w", w, self.layouts.weights)
        self.w_shape = w.shape
        kh, kw, group_channels, out_channels = self.w.shape
        self.window = as_window(name, (kh, kw), stride, padding, dilation)
        groups = as_int(name, "groups", groups, 1)
        if out_channels % groups:
            raise ValueError(
                f"{name}: w has shape {w.shape} ({self.layouts.weights}), {out_channels} "
                f"output channels, which groups={groups} must divide"
            )
        self.channels = (group_channels * groups, out_channels, groups, 1)
        self.bias = _bias(name, "bias", bias, out_channels, self.w.dtype)
        self.activation = as_activation(name, "activation", activation)
        self.precision = as_choice(name, "precision", precision, PRECISIONS)


class DepthwiseOperation(Operation):
    kind = "depthwise"

    def __init__(
        self, name: str, w: Any, bias: Any, *, stride: Any, padding: Any, dilation: Any,
        activation: Any, layout: Any, weight_layout: Any,
    ) -> None:  # fmt: skip
        self.name = name
        self.layouts = Layouts.of(name, layout, weight_layout)
        w = as_array(name, "w", w)
        self.w = depthwise_view(name, "w", w, self.layouts.weights)
        self.w_shape = w.shape
        kh, kw, channels, multiplier = self.w.shape
        self.window = as_window(name, (kh, kw), stride, padding, dilation)
        self.channels = (channels, channels * multiplier, 1, multiplier)
        self.bias = _bias(name, "bias", bias, channels * multiplier, self.w.dtype)
        self.activation = as_activation(name, "activation", activation)


class PointwiseOperation(Operation):
    kind = "conv2d"

    def __init__(
        self, name: str, w: Any, bias: Any, *, stride: Any, activation: Any, layout: Any,
        weight_layout: Any, precision: Any = FULL,
    ) -> None:  # fmt: skip
        self.name = name
        self.layouts = Layouts.of(name, layout, weight_layout)
        w = as_array(name, "w", w)
        self.w = pointwise_view(name, "w", w, self.layouts.weights)
        self.w_shape = w.shape
        in_channels, out_channels = self.w.shape[2:]
        self.window = as_window(name, (1, 1), stride)
        self.channels = (in_channels, out_channels, 1, 1)
        self.bias = _bias(name, "bias", bias, out_channels, self.w.dtype)
        self.activation = as_activation(name, "activation", activation)
        self.precision = as_choice(name, "precision", precision, PRECISIONS)


class SeparableOperation(Operation):
    kind = "separable"
    w_name = "dw"

    def __init__(
        self, name: str, dw: Any, pw: Any, dw_bias: Any, bias: Any, *, stride: Any, padding: Any,
        dilation: Any, dw_activation: Any, activation: Any, layout: Any,
        weight_layout: Any, precision: Any = FULL,
    ) -> None:  # fmt: skip
        self.name = name
        self.layouts = Layouts.of(name, layout, weight_layout)
        dw = as_array(name, "dw", dw)
        self.dw = depthwise_view(name, "dw", dw, self.layouts.weights)
        pw = as_same_dtype(name, "pw", pw, dw.dtype, "dw")
        self.w = pointwise_view(name, "pw", pw, self.layouts.weights)
        self.w_shape = dw.shape
        kh, kw, channels, multiplier = self.dw.shape
        middle, out_channels = self.w.shape[2:]
        if middle != channels * multiplier:
            raise ValueError(
                f"{name}: dw has shape {dw.shape}, {channels * multiplier} output channels, "
                f"but pw has shape {pw.shape} ({self.layouts.weights}) and takes {middle}"
            )
        self.window = as_window(name, (kh, kw), stride, padding, dilation)
        self.channels = (channels, out_channels, 1, multiplier)
        self.dw_bias = _bias(name, "dw_bias", dw_bias, middle, self.w.dtype)
        self.bias = _bias(name, "bias", bias, out_channels, self.w.dtype)
        self.dw_activation = as_activation(name, "dw_activation", dw_activation)
        self.activation = as_activation(name, "activation", activation)
        self.precision = as_choice(name, "precision", precision, PRECISIONS)


def axis_view(op: str, name: str, array: np.ndarray, layout: str) -> np.ndarray:
    """(taps, C) from such weights, or from (C, taps) for NCHW; (taps, 1) from 1-D ones."""
    if array.ndim not in (1, 2):
        order = "(taps, C)" if layout == "NHWC" else "(C, taps)"
        raise ValueError(
            f"{op}: {name} has shape {array.shape}; it must be {order} for {layout}, or (taps,) "
            f"for all channels alike"
        )
    _no_empty_axis(op, name, array)
    if array.ndim == 1:
        return array[:, None]
    return array if layout == "NHWC" else array.T


def _for_channels(taps: np.ndarray, channels: int) -> np.ndarray:
    """(taps, C) of (taps, C), or of (taps, 1), which is right where no one says what C is."""
    if taps.shape[1] == channels or channels == 0:
        return taps
    return np.broadcast_to(taps, (len(taps), channels))


class SpatialOperation(Operation):
    """`dw` is the column, (kh, 1, C, 1), and `w` the row, (1, kw, C, 1).

    Where nothing says what C is, both have one channel, and `channels` says 0: any number.
    """

    kind = "spatial"
    _weights: int

    def __init__(
        self, name: str, column: Any, row: Any, bias: Any, *, stride: Any, padding: Any,
        dilation: Any, activation: Any, layout: Any,
    ) -> None:  # fmt: skip
        self.name = name
        layout = as_choice(name, "layout", layout, LAYOUTS)
        self.layouts = Layouts(layout, layout)
        column = as_array(name, "column", column)
        row = as_same_dtype(name, "row", row, column.dtype, "column")
        given = {"column": column, "row": row}
        tall = axis_view(name, "column", column, layout)
        wide = axis_view(name, "row", row, layout)
        known = [key for key, array in given.items() if array.ndim == 2]
        if len(known) == 2 and tall.shape[1] != wide.shape[1]:
            raise ValueError(
                f"{name}: column has shape {column.shape} and row has shape {row.shape} "
                f"({layout}); they must have as many channels"
            )
        if not known and bias is not None:
            given["bias"] = as_same_dtype(name, "bias", bias, column.dtype, "column")
            _no_empty_axis(name, "bias", given["bias"])
            known = ["bias"]
        self.w_name = known[0] if known else "column"
        self.w_shape = given[self.w_name].shape
        sizes = {"column": tall.shape[1], "row": wide.shape[1], "bias": given.get("bias", row).size}
        channels = sizes[known[0]] if known else 0
        self.dw = _strided(_for_channels(tall, channels)[:, None, :, None])
        self.w = _strided(_for_channels(wide, channels)[None, :, :, None])
        self._weights = column.size + row.size
        self.window = as_window(name, (len(tall), len(wide)), stride, padding, dilation)
        self.channels = (channels, channels, 1, 1)
        self.bias = _bias(name, "bias", bias, channels, self.w.dtype)
        self.activation = as_activation(name, "activation", activation)

    def _fits(self, image_channels: int) -> bool:
        return self.in_channels in (0, image_channels)

    @property
    def weights(self) -> int:
        return self._weights

    def macs(self, result: ImageShape) -> int:
        """Each step's taps: the column's for the columns that the row reads, then the row's.

        Tap k of output x reads column x s + k d, which with s' = s / gcd(s, d) and d' = d / gcd is
        also that of tap k - s' of output x + d', where both exist.
        """
        (kh, kw), (_, stride) = self.window.kernel, self.window.stride
        dilation = self.window.dilation[1]
        divisor = math.gcd(stride, dilation)
        again = max(result.width - dilation // divisor, 0) * max(kw - stride // divisor, 0)
        columns = result.width * kw - again
        rows = result.batch * result.height * result.channels
        return rows * (columns * kh + result.width * kw)
