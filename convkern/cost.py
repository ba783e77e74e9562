"""What a convolution costs, from shapes alone: multiply-adds, parameters, bytes.

The functions mirror the operations of the same names, with shapes where those take arrays and flags
where those take biases; they make the same checks. Nothing is computed or allocated, and the
numbers are Python integers, which do not overflow.

>>> image = (14, 14, 512)
>>> standard = conv2d(image, (3, 3, 512, 512), padding="same")
>>> separable = separable_conv2d(image, (3, 3, 512), (512, 512), padding="same")
>>> standard.macs, separable.macs
(462422016, 52283392)
>>> round(standard.macs / separable.macs, 3), round(speedup(n=512, k=3), 3)
(8.845, 8.845)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._deform import DeformOperation
from ._geometry import DTYPES, as_int, as_shape
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
    "Cost",
    "avg_pool2d",
    "conv2d",
    "deform_conv2d",
    "depthwise_conv2d",
    "global_avg_pool2d",
    "max_pool2d",
    "pointwise_conv2d",
    "separable_conv2d",
    "spatially_separable_conv2d",
    "speedup",
]


@dataclass(frozen=True)
class Cost:
    """The cost of an operation, or with ``+`` of several.

    Attributes
    ----------
    macs : int
        Multiply-adds. Taps that fall on the padding count, as they do in the literature; biases,
        activations and pooling, which multiplies nothing, do not.
    params : int
        Weights and biases.
    bytes : int
        Input, weights, biases and output, each counted once: what must cross the memory bus when
        every cache starts cold and nothing is read twice. What an operation fuses, such as the
        depthwise half's output in a separable convolution, is not counted.

    Examples
    --------
    >>> Cost(macs=10, params=2, bytes=64) + Cost(macs=1, params=1, bytes=8)
    Cost(macs=11, params=3, bytes=72)
    >>> sum([Cost(1, 2, 3), Cost(4, 5, 6)], Cost())
    Cost(macs=5, params=7, bytes=9)
    """

    macs: int = 0
    params: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.macs + other.macs, self.params + other.params, self.bytes + other.bytes)


def speedup(n: int, k: int) -> float:
    """Predict how many times cheaper a separable convolution is than the standard one.

    A k x k convolution from any M channels to `n`, split into a depthwise and a pointwise one,
    takes 1/n + 1/k² of the multiply-adds, at every image size, stride and M.

    Parameters
    ----------
    n : int
        Output channels.
    k : int
        Height and width of the kernel.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If `n` or `k` is not an integer.
    ValueError
        If `n` or `k` is below 1.

    References
    ----------
    Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications", arXiv 1704.04861, 2017, section 3.1.

    Examples
    --------
    >>> round(1 / speedup(n=1024, k=3), 3)
    0.112
    """
    n, k = as_int("cost.speedup", "n", n, 1), as_int("cost.speedup", "k", k, 1)
    return 1 / (1 / n + 1 / k**2)


def conv2d(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    bias: bool = False,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    dtype: str = "float32",
) -> Cost:
    """Cost of a standard or grouped convolution.

    Parameters
    ----------
    x_shape : tuple of int
        (B, H, W, C) or (H, W, C); with ``layout="NCHW"``, (B, C, H, W) or (C, H, W).
    w_shape : tuple of int
        (kh, kw, C / groups, N), or (N, C / groups, kh, kw) where the weight layout is "OIHW".
    bias : bool, optional
        Whether there is a bias: N more parameters.
    stride, padding, dilation, groups, layout, weight_layout
        As for `convkern.conv2d`.
    dtype : {"float32", "float64"}, optional
        Type of every array, which `Cost.bytes` depends on.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, such as a stride of 1.5.
    ValueError
        If the shapes do not fit each other, or a value is out of range.

    Examples
    --------
    The standard convolution of table 3 of Howard et al., arXiv 1704.04861:

    >>> conv2d((14, 14, 512), (3, 3, 512, 512), padding=1)
    Cost(macs=462422016, params=2359296, bytes=10240000)

    Two 3x3 convolutions see what one 5x5 does, and save 28 % (Szegedy et al., arXiv 1512.00567,
    section 3.1):

    >>> image = (28, 28, 64)
    >>> five = conv2d(image, (5, 5, 64, 64), padding="same")
    >>> three = conv2d(image, (3, 3, 64, 64), padding="same")
    >>> 1 - (three + three).macs / five.macs, 1 - (three + three).params / five.params
    (0.28, 0.28)

    28x28x64 numbers, each a 5x5 window of 128 channels, take 160 million multiplications; from 32
    channels, to which a 1x1 convolution brings the 128 down, less than 44 million, that convolution
    included (Szegedy et al., arXiv 1409.4842, section 4):

    >>> image = (28, 28, 128)
    >>> conv2d(image, (5, 5, 128, 64), padding="same").macs
    160563200
    >>> bottleneck = pointwise_conv2d(image, (128, 32))
    >>> (bottleneck + conv2d((28, 28, 32), (5, 5, 32, 64), padding="same")).macs
    43352064
    """
    operation = Conv2dOperation(
        "cost.conv2d",
        _stand_in("cost.conv2d", "w", w_shape, dtype),
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=None,
        layout=layout,
        weight_layout=weight_layout,
    )
    return of_operation(operation, x_shape, _bias(operation, "bias", bias))


def depthwise_conv2d(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    bias: bool = False,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    dtype: str = "float32",
) -> Cost:
    """Cost of a depthwise convolution.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    w_shape : tuple of int
        (kh, kw, C) or (kh, kw, C, multiplier), or (C * multiplier, 1, kh, kw) where the weight
        layout is "OIHW".
    bias, stride, padding, dilation, layout, weight_layout, dtype
        As for `conv2d`; the bias has C * multiplier elements.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    >>> depthwise_conv2d((14, 14, 512), (3, 3, 512), padding=1)
    Cost(macs=903168, params=4608, bytes=821248)
    """
    operation = DepthwiseOperation(
        "cost.depthwise_conv2d",
        _stand_in("cost.depthwise_conv2d", "w", w_shape, dtype),
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=None,
        layout=layout,
        weight_layout=weight_layout,
    )
    return of_operation(operation, x_shape, _bias(operation, "bias", bias))


def spatially_separable_conv2d(
    x_shape: tuple[int, ...],
    column_shape: tuple[int, ...],
    row_shape: tuple[int, ...],
    bias: bool = False,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    layout: str = "NHWC",
    dtype: str = "float32",
) -> Cost:
    """Cost of a depthwise convolution by a column and then a row.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    column_shape, row_shape : tuple of int
        (kh, C) and (kw, C), or with ``layout="NCHW"`` (C, kh) and (C, kw), or (kh,) and (kw,).
    bias, stride, padding, dilation, layout, dtype
        As for `conv2d`; the bias has C elements.

    Returns
    -------
    Cost
        With an output of H' x W' the column's kh taps are multiplied for H' rows of those columns
        that the row reads, padding among them: W' + kw - 1 of them without stride and dilation. The
        row's kw taps are multiplied for each output. What the column makes never leaves the cache
        and does not count as bytes.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    A 5x5 kernel takes 25 multiplications for each output, and factored a little over 10:

    >>> spatially_separable_conv2d((56, 56, 128), (5, 128), (5, 128), padding=2)
    Cost(macs=4157440, params=1280, bytes=3216384)
    >>> depthwise_conv2d((56, 56, 128), (5, 5, 128), padding=2).macs
    10035200
    """
    name = "cost.spatially_separable_conv2d"
    operation = SpatialOperation(
        name,
        _stand_in(name, "column", column_shape, dtype),
        _stand_in(name, "row", row_shape, dtype),
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=None,
        layout=layout,
    )
    _, result = operation.shapes(as_shape(name, "x_shape", x_shape))
    return of_operation(operation, x_shape, _bias(operation, "bias", bias, result.channels))


def pointwise_conv2d(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    bias: bool = False,
    *,
    stride: Any = 1,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    dtype: str = "float32",
) -> Cost:
    """Cost of a pointwise (1x1) convolution.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    w_shape : tuple of int
        (C, N) or (1, 1, C, N), or (N, C) or (N, C, 1, 1) where the weight layout is "OIHW".
    bias, stride, layout, weight_layout, dtype
        As for `conv2d`.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    >>> pointwise_conv2d((14, 14, 512), (512, 512))
    Cost(macs=51380224, params=262144, bytes=1851392)
    """
    operation = PointwiseOperation(
        "cost.pointwise_conv2d",
        _stand_in("cost.pointwise_conv2d", "w", w_shape, dtype),
        None,
        stride=stride,
        activation=None,
        layout=layout,
        weight_layout=weight_layout,
    )
    return of_operation(operation, x_shape, _bias(operation, "bias", bias))


def separable_conv2d(
    x_shape: tuple[int, ...],
    dw_shape: tuple[int, ...],
    pw_shape: tuple[int, ...],
    dw_bias: bool = False,
    bias: bool = False,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    dtype: str = "float32",
) -> Cost:
    """Cost of a depthwise convolution fused with the pointwise one that follows it.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    dw_shape, pw_shape : tuple of int
        As for `depthwise_conv2d` and `pointwise_conv2d`.
    dw_bias, bias : bool, optional
        Whether either half has a bias.
    stride, padding, dilation, layout, weight_layout, dtype
        As for `conv2d`; stride, padding and dilation are the depthwise half's.

    Returns
    -------
    Cost
        The array between the halves does not count as bytes: it never leaves the cache.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    The separable convolution of table 3 of Howard et al., arXiv 1704.04861:

    >>> separable_conv2d((14, 14, 512), (3, 3, 512), (512, 512), padding=1)
    Cost(macs=52283392, params=266752, bytes=1869824)
    """
    name = "cost.separable_conv2d"
    operation = SeparableOperation(
        name,
        _stand_in(name, "dw", dw_shape, dtype),
        _stand_in(name, "pw", pw_shape, dtype),
        None,
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        dw_activation=None,
        activation=None,
        layout=layout,
        weight_layout=weight_layout,
    )
    middle = operation.w.shape[2]
    biases = _bias(operation, "bias", bias) + _bias(operation, "dw_bias", dw_bias, middle)
    return of_operation(operation, x_shape, biases)


def deform_conv2d(
    x_shape: tuple[int, ...],
    offset_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    bias: bool = False,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: bool = False,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    dtype: str = "float32",
) -> Cost:
    """Cost of a deformable convolution.

    Parameters
    ----------
    x_shape, w_shape : tuple of int
        As for `conv2d`.
    offset_shape : tuple of int
        As `convkern.deform_conv2d` takes it.
    mask : bool, optional
        Whether there is one: a second version's factor for each sample.
    bias, stride, padding, dilation, layout, weight_layout, dtype
        As for `conv2d`.

    Returns
    -------
    Cost
        The multiply-adds are the standard convolution's, 4 for every value that is sampled (one
        per neighbour) and 1 more where there is a mask: 5 is what InternImage's authors count for
        a modulated sample. The offsets and the mask count as bytes; where they come from, usually
        a convolution of its own, is not part of this operation.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    References
    ----------
    Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
    Convolutions", arXiv 2211.05778, 2023.

    Examples
    --------
    Sampling is 4 / N of the multiplications of N output channels:

    >>> deform_conv2d((28, 28, 128), (28, 28, 18), (3, 3, 128, 128), padding=1)
    Cost(macs=119218176, params=147456, bytes=1449088)
    >>> conv2d((28, 28, 128), (3, 3, 128, 128), padding=1).macs * (1 + 4 / 128)
    119218176.0
    """
    name = "cost.deform_conv2d"
    operation = DeformOperation(
        name,
        _stand_in(name, "w", w_shape, dtype),
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=None,
        layout=layout,
        weight_layout=weight_layout,
    )
    return of_deform(operation, x_shape, offset_shape, mask, _bias(operation, "bias", bias))


def of_deform(
    operation: DeformOperation,
    x_shape: tuple[int, ...],
    offset_shape: tuple[int, ...] | None,
    mask: bool,
    biases: int | None = None,
) -> Cost:
    """Cost of a checked deformable convolution; biases are its own unless they are said."""
    if not isinstance(mask, bool):
        kind = type(mask).__name__
        raise TypeError(f"{operation.name}: mask must be True or False, not {kind}")
    x_shape = as_shape(operation.name, "x_shape", x_shape)
    image, result = operation.shapes(x_shape)
    groups = 1
    if offset_shape is not None:
        offset_shape = as_shape(operation.name, "offset_shape", offset_shape)
        groups = operation.offset_groups(image, result, offset_shape)
    if biases is None:
        biases = 0 if operation.bias is None else operation.bias.size
    plain = of_operation(operation, x_shape, biases)
    samples = result.batch * result.height * result.width * operation.taps
    return Cost(
        plain.macs + (4 + mask) * samples * image.channels,
        plain.params,
        plain.bytes + (2 + mask) * samples * groups * operation.w.itemsize,
    )


def max_pool2d(
    x_shape: tuple[int, ...],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    dtype: str = "float32",
) -> Cost:
    """Cost of a max pooling: no multiply-adds, no parameters, and the bytes of input and output.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    kernel, stride, padding, dilation, ceil_mode, layout
        As for `convkern.max_pool2d`.
    dtype : {"float32", "float64"}, optional
        As for `conv2d`.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    >>> max_pool2d((112, 112, 64), 3, stride=2, padding=1)
    Cost(macs=0, params=0, bytes=4014080)
    """
    pooling = MaxPooling(
        "cost.max_pool2d",
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        layout=layout,
    )
    return of_pooling(pooling, x_shape, dtype)


def avg_pool2d(
    x_shape: tuple[int, ...],
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    layout: str = "NHWC",
    dtype: str = "float32",
) -> Cost:
    """Cost of an average pooling: no multiply-adds, no parameters, the bytes of input and output.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    kernel, stride, padding, dilation, ceil_mode, count_include_pad, layout
        As for `convkern.avg_pool2d`.
    dtype : {"float32", "float64"}, optional
        As for `conv2d`.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    >>> avg_pool2d((56, 56, 128), 2)
    Cost(macs=0, params=0, bytes=2007040)
    """
    pooling = AvgPooling(
        "cost.avg_pool2d",
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        layout=layout,
    )
    return of_pooling(pooling, x_shape, dtype)


def global_avg_pool2d(
    x_shape: tuple[int, ...],
    *,
    keepdims: bool = True,
    layout: str = "NHWC",
    dtype: str = "float32",
) -> Cost:
    """Cost of a mean over whole images: no multiply-adds, no parameters, bytes.

    Parameters
    ----------
    x_shape : tuple of int
        As for `conv2d`.
    keepdims, layout
        As for `convkern.global_avg_pool2d`.
    dtype : {"float32", "float64"}, optional
        As for `conv2d`.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        As for `conv2d`.

    Examples
    --------
    >>> global_avg_pool2d((7, 7, 1024))
    Cost(macs=0, params=0, bytes=204800)
    """
    pooling = GlobalAvgPooling("cost.global_avg_pool2d", keepdims=keepdims, layout=layout)
    return of_pooling(pooling, x_shape, dtype)


def of_pooling(pooling: Pooling, x_shape: tuple[int, ...], dtype: str = "float32") -> Cost:
    """Cost of a checked pooling."""
    elements = pooling.elements(as_shape(pooling.name, "x_shape", x_shape))
    return Cost(bytes=elements * _dtype(pooling.name, dtype).itemsize)


def of_operation(operation: Operation, x_shape: tuple[int, ...], biases: int) -> Cost:
    """Cost of a checked operation that has this many elements of bias."""
    x_shape = as_shape(operation.name, "x_shape", x_shape)
    _, result = operation.shapes(x_shape)
    params = operation.weights + biases
    outputs = result.batch * result.height * result.width * result.channels
    elements = math.prod(x_shape) + params + outputs
    return Cost(operation.macs(result), params, elements * operation.w.itemsize)


def _stand_in(op: str, name: str, shape: Any, dtype: Any) -> np.ndarray:
    """An array of this shape that takes no memory: one number, seen everywhere."""
    return np.broadcast_to(np.zeros((), _dtype(op, dtype)), as_shape(op, f"{name}_shape", shape))


def _dtype(op: str, dtype: Any) -> np.dtype:
    kind: np.dtype = np.dtype(dtype)
    if kind not in DTYPES:
        raise TypeError(f"{op}: dtype must be float32 or float64, not {kind}")
    return kind


def _bias(operation: Operation, name: str, flag: bool, channels: int | None = None) -> int:
    """How many elements a bias has, which a flag says is there."""
    if not isinstance(flag, bool):
        kind = type(flag).__name__
        raise TypeError(f"{operation.name}: {name} must be True or False, not {kind}")
    return flag * (operation.out_channels if channels is None else channels)
