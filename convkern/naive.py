"""The textbook loops: the baseline that the theory is measured on.

The same signatures as `convkern`'s functions, over plain scalar C loops in one style, which nobody
tunes. Activations and residuals are NumPy's. Use them to check results and predictions, not to
compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, runtime
from ._geometry import as_same_dtype, check_memory, usable
from ._operation import (
    IDENTITY,
    Activation,
    Conv2dOperation,
    DepthwiseOperation,
    Operation,
    PointwiseOperation,
    SeparableOperation,
    SpatialOperation,
    as_residual,
    check_out,
)

__all__ = [
    "conv2d",
    "depthwise_conv2d",
    "pointwise_conv2d",
    "separable_conv2d",
    "spatially_separable_conv2d",
]


_Window = tuple[int, int, int, int, int, int]


def _activate(y: np.ndarray, activation: Activation) -> np.ndarray:
    kind, low, high = activation
    names = {number: name for name, number in _core.ACTIVATIONS.items()}
    result: np.ndarray = y
    with np.errstate(over="ignore", invalid="ignore"):
        match names[kind]:
            case "clamp" if activation != IDENTITY:
                result = np.clip(y, low, high)
            case "hardsigmoid":
                result = np.clip(y + 3, 0, 6) / 6
            case "hardswish":
                result = y * (np.clip(y + 3, 0, 6) / 6)
            case "sigmoid":
                result = 1 / (1 + np.exp(-y))
            case "silu":
                result = y / (1 + np.exp(-y))
    return result


def _split(w: np.ndarray, in_channels: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Depthwise weights as (kh, kw, C, multiplier) for an image's C, and the channels of both."""
    kh, kw, channels, multiplier = w.shape
    out_channels = channels * multiplier
    multiplier = out_channels // in_channels
    view = w.reshape(kh, kw, in_channels, multiplier)
    return view, (in_channels, out_channels, 1, multiplier)


def _as_summed(w: np.ndarray) -> np.ndarray:
    """The weights of each output channel side by side in memory, in the order of its sum.

    Otherwise every term of a standard convolution's sum would be a cache miss, and the loops would
    measure that.
    """
    return np.ascontiguousarray(w.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)


def _one_axis(window: _Window, axis: int) -> _Window:
    """A window (kh, kw, sh, sw, dh, dw) along one axis: on the other a single tap, step by step."""
    kh, kw, sh, sw, dh, dw = (size if i % 2 == axis else 1 for i, size in enumerate(window))
    return kh, kw, sh, sw, dh, dw


def _for_all(w: np.ndarray, channels: int) -> np.ndarray:
    """Depthwise weights of all channels, which may have one kernel."""
    return np.broadcast_to(w, (*w.shape[:2], channels, 1))


def _column_sums(
    operation: Operation, x: np.ndarray, sizes: tuple[int, ...], height: int
) -> np.ndarray:
    """The column's step of a spatially separable convolution, over the columns of padding too."""
    batch, _, width, channels, _, _, left, right = sizes
    shape = (batch, height, width + left + right, channels)
    check_memory(operation.name, shape, x.itemsize)
    sums = np.empty(shape, x.dtype)
    assert operation.dw is not None
    column, same = _split(_for_all(operation.dw, channels), channels)
    window = _one_axis(operation.window.flat(), 0)
    _core.naive(operation.name, "depthwise", window, same, sizes, x, column, None, sums)
    return sums


def _run(
    operation: Operation, loops: str, x: Any, residual: Any, out: Any, threads: Any
) -> np.ndarray:
    """Checks, the loops (two of them where there is a depthwise half), and what follows them."""
    name = operation.name
    runtime.num_threads(name, threads)  # checked; the loops run on one
    x = as_same_dtype(name, "x", x, operation.w.dtype, operation.w_name)
    image, result = operation.shapes(x.shape)
    shape = result.shape(operation.layouts.image)
    if residual is not None:
        residual = as_residual(name, residual, shape, x.dtype)
    if out is not None:
        check_out(name, out, shape, x.dtype)
    check_memory(name, shape, x.itemsize)
    nchw = operation.layouts.image == "NCHW"
    seen = usable((x if x.ndim == 4 else x[None]).transpose(0, 2, 3, 1) if nchw else x)
    padding = operation.window.padding_for(image.height, image.width)
    sizes = (image.batch, image.height, image.width, image.channels, *padding)
    pixels = (result.batch, result.height, result.width)
    window = operation.window.flat()
    w, channels = _as_summed(operation.w), operation.channels
    if operation.kind == "spatial":
        seen = _column_sums(operation, seen, sizes, result.height)
        sizes, window = (*seen.shape, 0, 0, 0, 0), _one_axis(window, 1)
        w = _for_all(w, image.channels)
    elif operation.dw is not None:
        dw, middle = _split(operation.dw, image.channels)
        halfway = np.empty((*pixels, middle[1]), x.dtype)
        _core.naive(name, "depthwise", window, middle, sizes, seen, dw, operation.dw_bias, halfway)
        seen = _activate(halfway, operation.dw_activation)
        sizes, window = (*pixels, middle[1], 0, 0, 0, 0), (1, 1, 1, 1, 1, 1)
        channels = (middle[1], operation.out_channels, 1, 1)
    if loops == "depthwise":
        w, channels = _split(w, image.channels)
    y = np.empty((*pixels, result.channels), x.dtype)
    _core.naive(name, loops, window, channels, sizes, seen, w, operation.bias, y)
    y = (y.transpose(0, 3, 1, 2) if nchw else y).reshape(shape)
    if residual is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            y = y + residual
    y = _activate(y, operation.activation)
    if out is not None:
        out[...] = y
        y = out
    return y


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: Any = None,
    residual: Any = None,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    precision: str = "full",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """`convkern.conv2d` by seven nested loops; the same parameters, results and errors.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x, w = np.ones((5, 5, 2), np.float32), np.ones((3, 3, 2, 4), np.float32)
    >>> bool((ck.naive.conv2d(x, w, padding=1) == ck.conv2d(x, w, padding=1)).all())
    True
    """
    operation = Conv2dOperation(
        "naive.conv2d",
        w,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
        precision=precision,
    )
    return _run(operation, "conv2d", x, residual, out, threads)


def depthwise_conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    activation: Any = None,
    residual: Any = None,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """`convkern.depthwise_conv2d` by six nested loops; the same parameters, results and errors.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x, w = np.ones((5, 5, 2), np.float32), np.ones((3, 3, 2), np.float32)
    >>> float(ck.naive.depthwise_conv2d(x, w)[0, 0, 0])
    9.0
    """
    operation = DepthwiseOperation(
        "naive.depthwise_conv2d",
        w,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
    )
    return _run(operation, "depthwise", x, residual, out, threads)


def spatially_separable_conv2d(
    x: Any,
    column: Any,
    row: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    activation: Any = None,
    residual: Any = None,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """`convkern.spatially_separable_conv2d` by the depthwise loops of its two steps.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x, column, row = (np.ones(s, np.float32) for s in ((5, 5, 2), (3, 2), (2, 2)))
    >>> float(ck.naive.spatially_separable_conv2d(x, column, row)[0, 0, 0])
    6.0
    """
    operation = SpatialOperation(
        "naive.spatially_separable_conv2d",
        column,
        row,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        layout=layout,
    )
    return _run(operation, "depthwise", x, residual, out, threads)


def pointwise_conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    activation: Any = None,
    residual: Any = None,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    precision: str = "full",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """`convkern.pointwise_conv2d` by five nested loops; the same parameters, results and errors.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x, w = np.ones((5, 5, 2), np.float32), np.ones((2, 4), np.float32)
    >>> ck.naive.pointwise_conv2d(x, w).shape
    (5, 5, 4)
    """
    operation = PointwiseOperation(
        "naive.pointwise_conv2d",
        w,
        bias,
        stride=stride,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
        precision=precision,
    )
    return _run(operation, "pointwise", x, residual, out, threads)


def separable_conv2d(
    x: Any,
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
    residual: Any = None,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    precision: str = "full",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """`convkern.separable_conv2d` by the loops of its two halves, one after the other.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x, dw, pw = (np.ones(s, np.float32) for s in ((5, 5, 2), (3, 3, 2), (2, 4)))
    >>> float(ck.naive.separable_conv2d(x, dw, pw)[0, 0, 0])
    18.0
    """
    operation = SeparableOperation(
        "naive.separable_conv2d",
        dw,
        pw,
        dw_bias,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        dw_activation=dw_activation,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
        precision=precision,
    )
    return _run(operation, "pointwise", x, residual, out, threads)
