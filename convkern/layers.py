"""The operations of ops.py with their weights packed once: callables.

A layer is immutable and safe to call from several threads. It keeps the ISA that was in force when
it was made. It pickles as its weights and options, and is packed anew where it is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, cost, runtime
from ._deform import DeformOperation
from ._geometry import as_array, as_shape, check_memory
from ._operation import (
    Conv2dOperation,
    DepthwiseOperation,
    Operation,
    PointwiseOperation,
    SeparableOperation,
    SpatialOperation,
)
from ._pooling import AvgPooling, GlobalAvgPooling, MaxPooling, Pooling

__all__ = [
    "AvgPool2d",
    "Conv2d",
    "DeformConv2d",
    "DepthwiseConv2d",
    "GlobalAvgPool2d",
    "MaxPool2d",
    "PointwiseConv2d",
    "SeparableConv2d",
    "SpatiallySeparableConv2d",
]


def _own(layer: str, name: str, array: Any) -> np.ndarray | None:
    """A read-only copy: what the caller does to theirs later changes nothing here."""
    if array is None:
        return None
    seen = as_array(layer, name, array)
    check_memory(f"{layer}: {name}", seen.shape, seen.itemsize)
    copy = np.array(seen)
    copy.flags.writeable = False
    return copy


class _Immutable:
    """What every layer is; subclasses say which operation they do."""

    __slots__ = ("_arrays", "_operation", "_options", "_packed", "isa")

    _arrays: tuple[Any, ...]
    _operation: Any
    _options: dict[str, Any]
    _packed: Any
    isa: str

    def _make(self, operation: Any, arrays: dict[str, Any], options: dict[str, Any]) -> None:
        layer = type(self).__name__
        own = tuple(_own(layer, name, array) for name, array in arrays.items())
        made = operation(layer, *own, **options)
        for name, value in (
            ("_arrays", own),
            ("_options", options),
            ("_operation", made),
            ("isa", runtime.isa()),
            ("_packed", made.pack()),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._arrays, self._options)


class _Layer(_Immutable):
    """A convolution."""

    __slots__ = ()

    _operation: Operation
    _packed: _core.Op

    def __repr__(self) -> str:
        o = self._operation
        (kh, kw), (sh, sw) = o.window.kernel, o.window.stride
        channels = f"{o.in_channels} -> {o.out_channels}" if o.in_channels else "any channels"
        return (
            f"{type(self).__name__}({channels}, {kh}x{kw}, "
            f"stride {sh}x{sw}, {o.layouts.image}, {o.w.dtype}, {self.isa})"
        )

    def __call__(
        self,
        x: Any,
        out: np.ndarray | None = None,
        threads: int | None = None,
        *,
        residual: Any = None,
    ) -> np.ndarray:
        """The operation on x; see the function of the same name for every argument."""
        return self._operation.run(x, residual, out, threads, self._packed)

    def out_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for an image of this shape, or ValueError."""
        x_shape = as_shape(type(self).__name__, "x_shape", x_shape)
        _, result = self._operation.shapes(x_shape)
        return result.shape(self._operation.layouts.image)

    def cost(self, x_shape: tuple[int, ...]) -> cost.Cost:
        """Multiply-adds, parameters and bytes for an image of this shape; see `convkern.cost`."""
        biases = (self._operation.bias, self._operation.dw_bias)
        return cost.of_operation(
            self._operation, x_shape, sum(b.size for b in biases if b is not None)
        )


def _rebuild(layer: type[Any], arrays: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return layer(*arrays, **options)


class Conv2d(_Layer):
    """`conv2d` with its weights packed once.

    Parameters
    ----------
    w, bias, stride, padding, dilation, groups, activation, layout, weight_layout, precision
        As in `conv2d`.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> layer = ck.Conv2d(np.ones((3, 3, 2, 4), np.float32), stride=2, padding="same")
    >>> layer.out_shape((1, 7, 7, 2))
    (1, 4, 4, 4)
    >>> layer(np.ones((1, 7, 7, 2), np.float32))[0, 1, 1, 0]
    np.float32(18.0)
    """

    __slots__ = ()

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        activation: Any = None,
        layout: str = "NHWC",
        weight_layout: str | None = None,
        precision: str = "full",
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "activation": activation,
            "layout": layout,
            "weight_layout": weight_layout,
            "precision": precision,
        }
        self._make(Conv2dOperation, {"w": w, "bias": bias}, options)


class DepthwiseConv2d(_Layer):
    """`depthwise_conv2d` with its weights packed once.

    Parameters
    ----------
    w, bias, stride, padding, dilation, activation, layout, weight_layout
        As in `depthwise_conv2d`. Weights (C * multiplier, 1, kh, kw) do not say what the multiplier
        is: such a layer takes any image whose channels divide their first axis.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> layer = ck.DepthwiseConv2d(np.ones((3, 3, 8), np.float32), padding=1, activation="relu6")
    >>> layer(np.ones((5, 5, 8), np.float32))[0, 0, 0]
    np.float32(4.0)
    """

    __slots__ = ()

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        activation: Any = None,
        layout: str = "NHWC",
        weight_layout: str | None = None,
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "activation": activation,
            "layout": layout,
            "weight_layout": weight_layout,
        }
        self._make(DepthwiseOperation, {"w": w, "bias": bias}, options)


class SpatiallySeparableConv2d(_Layer):
    """`spatially_separable_conv2d` with its weights packed once.

    Parameters
    ----------
    column, row, bias, stride, padding, dilation, activation, layout
        As in `spatially_separable_conv2d`. A layer whose column and row are both 1-D, and which has
        no bias, takes images of any number of channels.

    Examples
    --------
    Sobel's horizontal derivative:

    >>> import numpy as np, convkern as ck
    >>> smooth, derive = np.array([1, 2, 1], np.float32), np.array([-1, 0, 1], np.float32)
    >>> sobel = ck.SpatiallySeparableConv2d(smooth, derive)
    >>> x = np.arange(25, dtype=np.float32).reshape(5, 5, 1)
    >>> sobel(x).shape, sobel(x)[0, 0, 0], sobel(np.repeat(x, 3, axis=2)).shape
    ((3, 3, 1), np.float32(8.0), (3, 3, 3))
    """

    __slots__ = ()

    def __init__(
        self,
        column: Any,
        row: Any,
        bias: Any = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        activation: Any = None,
        layout: str = "NHWC",
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "activation": activation,
            "layout": layout,
        }
        self._make(SpatialOperation, {"column": column, "row": row, "bias": bias}, options)


class PointwiseConv2d(_Layer):
    """`pointwise_conv2d` with its weights packed once.

    Parameters
    ----------
    w, bias, stride, activation, layout, weight_layout, precision
        As in `pointwise_conv2d`.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> layer = ck.PointwiseConv2d(np.ones((3, 5), np.float32), np.ones(5, np.float32))
    >>> layer(np.ones((2, 2, 3), np.float32))[0, 0]
    array([4., 4., 4., 4., 4.], dtype=float32)
    """

    __slots__ = ()

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        *,
        stride: Any = 1,
        activation: Any = None,
        layout: str = "NHWC",
        weight_layout: str | None = None,
        precision: str = "full",
    ) -> None:
        options = {
            "stride": stride,
            "activation": activation,
            "layout": layout,
            "weight_layout": weight_layout,
            "precision": precision,
        }
        self._make(PointwiseOperation, {"w": w, "bias": bias}, options)


class SeparableConv2d(_Layer):
    """`separable_conv2d` with its weights packed once.

    Parameters
    ----------
    dw, pw, dw_bias, bias, stride, padding, dilation, dw_activation, activation
        As in `separable_conv2d`; so are layout, weight_layout and precision.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> dw, pw = np.ones((3, 3, 4), np.float32), np.ones((4, 16), np.float32)
    >>> layer = ck.SeparableConv2d(dw, pw, padding="same", stride=2, dw_activation="relu6")
    >>> layer.out_shape((1, 8, 8, 4))
    (1, 4, 4, 16)
    """

    __slots__ = ()

    def __init__(
        self,
        dw: Any,
        pw: Any,
        dw_bias: Any = None,
        bias: Any = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        dw_activation: Any = None,
        activation: Any = None,
        layout: str = "NHWC",
        weight_layout: str | None = None,
        precision: str = "full",
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "dw_activation": dw_activation,
            "activation": activation,
            "layout": layout,
            "weight_layout": weight_layout,
            "precision": precision,
        }
        arrays = {"dw": dw, "pw": pw, "dw_bias": dw_bias, "bias": bias}
        self._make(SeparableOperation, arrays, options)


class DeformConv2d(_Layer):
    """`deform_conv2d` with its weights packed once.

    Only an image says how many groups there are, so they are packed at the first call.

    Parameters
    ----------
    w, bias, stride, padding, dilation, activation, layout, weight_layout, precision
        As in `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> layer = ck.DeformConv2d(np.ones((3, 3, 2, 4), np.float32), padding=1)
    >>> x, offset = np.ones((1, 7, 7, 2), np.float32), np.zeros((1, 7, 7, 18), np.float32)
    >>> layer(x, offset)[0, 3, 3, 0]
    np.float32(18.0)
    >>> mask = np.full((1, 7, 7, 9), 0.5, np.float32)
    >>> layer(x, offset, mask)[0, 3, 3, 0]
    np.float32(9.0)
    """

    __slots__ = ()

    _operation: DeformOperation
    _packed: Any

    def __init__(
        self,
        w: Any,
        bias: Any = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        activation: Any = None,
        layout: str = "NHWC",
        weight_layout: str | None = None,
        precision: str = "full",
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "activation": activation,
            "layout": layout,
            "weight_layout": weight_layout,
            "precision": precision,
        }
        self._make(DeformOperation, {"w": w, "bias": bias}, options)

    def __call__(  # type: ignore[override]  # there is no convolution without an offset
        self,
        x: Any,
        offset: Any,
        mask: Any = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
        *,
        residual: Any = None,
    ) -> np.ndarray:
        """The operation on x; see `deform_conv2d` for every argument."""
        return self._operation.run_at(x, offset, mask, residual, out, threads, self._packed)

    def cost(
        self,
        x_shape: tuple[int, ...],
        offset_shape: tuple[int, ...] | None = None,
        mask: bool = False,
    ) -> cost.Cost:
        """The cost for an image of this shape; see `convkern.cost.deform_conv2d`.

        Without an `offset_shape` there is one offset group.
        """
        return cost.of_deform(self._operation, x_shape, offset_shape, mask)


class _Pool(_Immutable):
    """A pooling: it has no weights, and takes images of either dtype."""

    __slots__ = ()

    _operation: Pooling
    _packed: int

    def __repr__(self) -> str:
        o = self._operation
        size = "whole image" if o.window is None else "{}x{}".format(*o.window.kernel)
        stride = "" if o.window is None else ", stride {}x{}".format(*o.window.stride)
        return f"{type(self).__name__}({size}{stride}, {o.layout}, {self.isa})"

    def __call__(
        self, x: Any, out: np.ndarray | None = None, threads: int | None = None
    ) -> np.ndarray:
        """The operation on x; see the function of the same name for every argument."""
        return self._operation.run(x, out, threads, self._packed)

    def out_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for an image of this shape, or ValueError."""
        return self._operation.out_shape(as_shape(type(self).__name__, "x_shape", x_shape))

    def cost(self, x_shape: tuple[int, ...], dtype: str = "float32") -> cost.Cost:
        """No multiply-adds, no parameters, and bytes for an image of this shape and dtype."""
        return cost.of_pooling(self._operation, x_shape, dtype)


class MaxPool2d(_Pool):
    """`max_pool2d` as a callable.

    Parameters
    ----------
    kernel, stride, padding, dilation, ceil_mode, layout
        As in `max_pool2d`.

    Examples
    --------
    >>> import convkern as ck
    >>> ck.MaxPool2d(3, stride=2, padding=1).out_shape((1, 112, 112, 64))
    (1, 56, 56, 64)
    """

    __slots__ = ()

    def __init__(
        self,
        kernel: Any,
        *,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        layout: str = "NHWC",
    ) -> None:
        options = {
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
            "layout": layout,
        }
        self._make(MaxPooling, {}, options)


class AvgPool2d(_Pool):
    """`avg_pool2d` as a callable.

    Parameters
    ----------
    kernel, stride, padding, dilation, ceil_mode, count_include_pad, layout
        As in `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> ck.AvgPool2d(2)(np.arange(4, dtype=np.float64).reshape(2, 2, 1)).item()
    1.5
    """

    __slots__ = ()

    def __init__(
        self,
        kernel: Any,
        *,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
        layout: str = "NHWC",
    ) -> None:
        options = {
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
            "layout": layout,
        }
        self._make(AvgPooling, {}, options)


class GlobalAvgPool2d(_Pool):
    """`global_avg_pool2d` as a callable.

    Parameters
    ----------
    keepdims, layout
        As in `global_avg_pool2d`.

    Examples
    --------
    >>> import convkern as ck
    >>> ck.GlobalAvgPool2d(layout="NCHW").out_shape((1, 1280, 7, 7))
    (1, 1280, 1, 1)
    """

    __slots__ = ()

    def __init__(self, *, keepdims: bool = True, layout: str = "NHWC") -> None:
        self._make(GlobalAvgPooling, {}, {"keepdims": keepdims, "layout": layout})
