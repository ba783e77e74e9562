"""Convolutions and pooling as functions of NumPy arrays.

Every function packs its weights on the fly; the layers of the same names pack them once. All
convolutions are cross-correlations (the kernel is not flipped), as in deep-learning libraries.

Denormal numbers are taken as zero and results that would be denormal become zero, but for
`max_pool2d`, which computes nothing; the caller's floating-point state is as it was afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._deform import DeformOperation
from ._geometry import as_same_dtype
from ._operation import (
    Conv2dOperation,
    DepthwiseOperation,
    Layouts,
    PointwiseOperation,
    SeparableOperation,
    SpatialOperation,
)
from ._pooling import AvgPooling, GlobalAvgPooling, MaxPooling
from ._rank import rank_one

__all__ = [
    "avg_pool2d",
    "conv2d",
    "deform_conv2d",
    "depthwise_conv2d",
    "fold_batchnorm",
    "global_avg_pool2d",
    "max_pool2d",
    "pointwise_conv2d",
    "separable_conv2d",
    "separate_kernel",
    "spatially_separable_conv2d",
]


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
    """Standard or grouped 2-D convolution.

    Parameters
    ----------
    x : array_like
        Image, (N, H, W, C), or (N, C, H, W) for ``layout="NCHW"``; the batch N may be left out.
        float32 or float64, and everything else of the same dtype.
    w : array_like
        Weights, (kh, kw, C / groups, M) for "HWIO" or (M, C / groups, kh, kw) for "OIHW".
    bias : array_like, optional
        (M,), added to every pixel.
    stride, dilation : int or (int, int)
        In pixels, vertical and horizontal.
    padding : int, (int, int), ((int, int), (int, int)) or str
        Zeros around the image: the same on all sides, (vertical, horizontal),
        ((top, bottom), (left, right)), "valid" (none), "same" (an output of
        ceil(size / stride), the odd zero after: TensorFlow's SAME, ONNX's SAME_UPPER) or
        "same_lower" (the odd zero before).
    groups : int
        Output channels see only the input channels of their group; divides C and M.
    activation : None, str or (float, float)
        "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", or limits to clamp to.
    residual : array_like, optional
        Added before the activation; has the shape of the output.
    layout : {"NHWC", "NCHW"}
        Of x, residual and the result.
    weight_layout : {"HWIO", "OIHW"}, optional
        HWIO with NHWC and OIHW with NCHW unless it is said.
    precision : {"full", "fast"}
        "fast" lets sums of float32 be off by 2^-16 sum |x||w| more where that is faster, which is
        on the ISA amx; elsewhere it changes nothing.
    out : ndarray, optional
        Where the result goes; of exactly its shape and dtype. It may be strided, and may overlap
        an input.
    threads : int, optional
        At most so many; as many as `get_num_threads` says unless it is said. The result does not
        depend on it, and small problems stay on the caller's thread.

    Returns
    -------
    ndarray
        (N, H', W', M) or (N, M, H', W'), H' = (H + top + bottom - (kh - 1) dh - 1) // sh + 1.

    Raises
    ------
    TypeError
        An argument of the wrong kind or dtype.
    ValueError
        Shapes that do not fit together, or a value out of its range.
    MemoryError
        A result larger than the memory.

    Notes
    -----
    Semantics are those of `torch.nn.functional.conv2d` and of ONNX's Conv. Each sum is made in the
    arrays' own precision: its error is at most gamma(K + 1) (sum |x||w| + |b|) for K terms, where
    gamma(n) = n u / (1 - n u). The bits depend on the ISA, not on batch or layout.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.ones((1, 5, 5, 2), np.float32)
    >>> w = np.ones((3, 3, 2, 4), np.float32)
    >>> y = ck.conv2d(x, w, padding="same", activation=(0, 15))
    >>> y.shape, y[0, 0, 0, 0], y[0, 2, 2, 0]
    ((1, 5, 5, 4), np.float32(8.0), np.float32(15.0))
    """
    operation = Conv2dOperation(
        "conv2d",
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
    return operation.run(x, residual, out, threads)


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
    """Depthwise 2-D convolution: each channel with kernels of its own.

    Output channel ``c * multiplier + j`` is input channel c under its kernel j.

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    w : array_like
        (kh, kw, C) or (kh, kw, C, multiplier) for "HWIO", (C * multiplier, 1, kh, kw) for "OIHW".
    bias : array_like, optional
        (C * multiplier,).
    stride, padding, dilation, activation, residual, layout, weight_layout, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        (N, H', W', C * multiplier), or (N, C * multiplier, H', W').

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Notes
    -----
    Semantics of Keras' DepthwiseConv2D, and of `torch.nn.functional.conv2d` with groups = C.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    >>> w = np.ones((3, 3, 1), np.float32)
    >>> ck.depthwise_conv2d(x, w, padding=1, stride=2)[..., 0]
    array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    operation = DepthwiseOperation(
        "depthwise_conv2d",
        w,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
    )
    return operation.run(x, residual, out, threads)


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
    """Depthwise convolution whose kernels are a column times a row, in one pass.

    Each channel is filtered by its column of kh taps and then by its row of kw: the result of
    `depthwise_conv2d` with the kernels ``column[:, None] * row[None, :]``, for about kh + kw
    multiplications a pixel instead of kh kw. What the column makes exists a row at a time (in
    "NCHW" a part of a plane at a time), in cache. `separate_kernel` finds column and row.

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    column, row : array_like
        (kh, C) and (kw, C) for ``layout="NHWC"``, (C, kh) and (C, kw) for "NCHW"; the trailing and
        the leading axes of the depthwise weights. Either may be 1-D, (kh,) or (kw,), and is then
        the same for all channels.
    bias : array_like, optional
        (C,), added after the row.
    stride, padding, dilation
        As in `conv2d`: the vertical ones are the column's, the horizontal ones the row's.
    activation, residual, layout, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        (N, H', W', C) or (N, C, H', W'), as `depthwise_conv2d`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Notes
    -----
    Both sums are made in the arrays' own precision, the column's top down and the row's from left
    to right, from the bias on: the error is at most gamma(kh + kw + 1) times what the same calls
    give for the magnitudes of all arrays. Padding surrounds the image, so that the column's sums
    over it are zeros, or NaN where the column is not finite. The bits depend on the ISA, not on
    batch or layout.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.zeros((5, 5, 1), np.float32)
    >>> x[2, 2] = 1
    >>> binomial = np.array([1, 2, 1], np.float32)
    >>> ck.spatially_separable_conv2d(x, binomial, binomial)[..., 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]], dtype=float32)
    """
    operation = SpatialOperation(
        "spatially_separable_conv2d",
        column,
        row,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        layout=layout,
    )
    return operation.run(x, residual, out, threads)


def separate_kernel(k: Any, tol: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Split kernels of rank 1 into columns and rows, for `spatially_separable_conv2d`.

    Parameters
    ----------
    k : array_like
        float32 or float64: one kernel, (kh, kw), or depthwise weights, (kh, kw, C) as "HWIO" has
        them or (C, 1, kh, kw) as "OIHW".
    tol : float, optional
        From 0 to 1: how large a kernel's second singular value may be, relative to its first. By
        default max(kh, kw) times the machine epsilon of the kernels' dtype, which lets pass what
        was rounded to it. With 1 every kernel passes, and gives its best approximation.

    Returns
    -------
    column, row : ndarray
        (kh,) and (kw,), or (kh, C) and (kw, C), or (C, kh) and (C, kw), in the kernels' dtype.
        Their outer product is off by at most the second singular value, and rounding. Each has the
        square root of the first singular value in it, so that their norms are the same; of the
        column's entries that are largest in magnitude, the first is positive. A kernel of zeros
        gives zeros.

    Raises
    ------
    TypeError
        An argument of the wrong kind or dtype.
    ValueError
        A kernel whose rank is above 1, with the channel and its singular values; a shape, a number
        that is not finite, or a `tol` that are not as above.

    Notes
    -----
    By singular value decomposition in float64.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    >>> column, row = ck.separate_kernel(sobel)
    >>> (column / column[0]).round(3), (row / row[2]).round(3)
    (array([1., 2., 1.], dtype=float32), array([-1.,  0.,  1.], dtype=float32))
    >>> ck.separate_kernel(np.eye(2, dtype=np.float32))
    Traceback (most recent call last):
        ...
    ValueError: separate_kernel: k has singular values [1, 1], a rank above 1 by tol=2.38e-07 of \
the first; it is no column times a row
    """
    return rank_one("separate_kernel", k, tol)


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
    """Pointwise (1x1) convolution: a matrix product over the channels of each pixel.

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    w : array_like
        (C, M) or (1, 1, C, M) for "HWIO", (M, C) or (M, C, 1, 1) for "OIHW".
    bias : array_like, optional
        (M,).
    stride, activation, residual, layout, weight_layout, precision, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        (N, H', W', M) or (N, M, H', W'), H' = (H - 1) // sh + 1.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.ones((2, 4, 4, 3), np.float32)
    >>> ck.pointwise_conv2d(x, np.eye(3, dtype=np.float32), stride=2).shape
    (2, 2, 2, 3)
    """
    operation = PointwiseOperation(
        "pointwise_conv2d",
        w,
        bias,
        stride=stride,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
        precision=precision,
    )
    return operation.run(x, residual, out, threads)


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
    """Depthwise separable convolution: a depthwise, then a pointwise, in one pass.

    The output of the depthwise exists only tile by tile, in cache. Against a standard convolution
    to M channels it costs 1/M + 1/(kh kw) of the multiplications (Howard et al., MobileNets,
    arXiv 1704.04861).

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    dw : array_like
        Depthwise weights, as in `depthwise_conv2d`.
    pw : array_like
        Pointwise weights from C * multiplier channels, as in `pointwise_conv2d`.
    dw_bias, bias : array_like, optional
        (C * multiplier,) and (M,).
    stride, padding, dilation
        Of the depthwise, as in `conv2d`.
    dw_activation, activation
        After the depthwise and after the pointwise, as in `conv2d`.
    residual, layout, weight_layout, precision, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        (N, H', W', M) or (N, M, H', W').

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.ones((8, 8, 4), np.float32)
    >>> dw, pw = np.ones((3, 3, 4), np.float32), np.ones((4, 16), np.float32)
    >>> y = ck.separable_conv2d(x, dw, pw, padding="same", stride=2, dw_activation="relu6")
    >>> y.shape, y[0, 0, 0]
    ((4, 4, 16), np.float32(24.0))
    """
    operation = SeparableOperation(
        "separable_conv2d",
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
    return operation.run(x, residual, out, threads)


def deform_conv2d(
    x: Any,
    offset: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    activation: Any = None,
    residual: Any = None,
    layout: str = "NHWC",
    weight_layout: str | None = None,
    precision: str = "full",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Deformable convolution: every tap of every output pixel reads where an offset moves it.

    Without `mask` this is version 1 (Dai et al., arXiv 1703.06211), with it version 2 (Zhu et al.,
    arXiv 1811.11168).

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    offset : array_like
        (N, H', W', 2 G kh kw), or (N, 2 G kh kw, H', W') for ``layout="NCHW"``: how far each tap
        moves, in pixels. The channels are (offset group, ky, kx, [down, right]); every C / G
        channels of x share the offsets of a group.
    w : array_like
        Weights, as in `conv2d`; C over their input channels is the number of groups.
    bias : array_like, optional
        (M,).
    stride, padding, dilation
        As in `conv2d`.
    mask : array_like, optional
        (N, H', W', G kh kw) or (N, G kh kw, H', W'), in the order of the offsets: a factor for
        each sample.
    activation, residual, layout, weight_layout, precision, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        (N, H', W', M) or (N, M, H', W'), H' and W' as in `conv2d`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Notes
    -----
    Semantics of `torchvision.ops.deform_conv2d` and of ONNX's DeformConv. A sample at row y and
    column x is interpolated bilinearly between the four pixels at floor(y), floor(y) + 1 and
    floor(x), floor(x) + 1; those outside the image are zeros. It is zero where y or x is at -1 or
    before, or at the image's size or beyond, infinitely far included, and NaN where an offset is
    NaN. All four pixels are multiplied by their weights, 0 included, so one that is NaN or
    infinite makes NaN of every sample that it has weight 0 in: 0 * inf is NaN.

    A sample is within gamma(8) |mask| (|v0| + |v1| + |v2| + |v3|) of the exact one, v being its
    four pixels; the sum of the samples is as exact as `conv2d` says.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    >>> offset = np.zeros((3, 3, 2), np.float32)
    >>> offset[1, 1] = 0.5, -1.0
    >>> ck.deform_conv2d(x, offset, np.ones((1, 1, 1, 1), np.float32))[..., 0]
    array([[0. , 1. , 2. ],
           [3. , 4.5, 5. ],
           [6. , 7. , 8. ]], dtype=float32)
    """
    operation = DeformOperation(
        "deform_conv2d",
        w,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        layout=layout,
        weight_layout=weight_layout,
        precision=precision,
    )
    return operation.run_at(x, offset, mask, residual, out, threads)


def max_pool2d(
    x: Any,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Largest number under a window, channel by channel.

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    kernel : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        In pixels, vertical and horizontal; the kernel's size unless it is said.
    padding : int, (int, int), ((int, int), (int, int)) or str
        As in `conv2d`, of any size. Padding is never the largest.
    dilation : int or (int, int)
        As in `conv2d`.
    ceil_mode : bool
        Keep a last window that hangs over the end of the padded image, provided that it starts in
        the image or before it: H' is rounded up instead of down.
    layout, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        (N, H', W', C) or (N, C, H', W'), H' = (H + top + bottom - (kh - 1) dh - 1) // sh + 1.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Notes
    -----
    Semantics of `torch.nn.functional.max_pool2d` and of ONNX's MaxPool, and NaN as in `numpy.max`:
    the result is NaN wherever the window holds one. A window that lies on padding alone gives
    -inf, the largest of no numbers. Every result is one of the image's numbers, denormals
    included; of zeros of both signs it is the first, column by column of the window.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    >>> ck.max_pool2d(x, 2)[..., 0]
    array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    >>> ck.max_pool2d(x, 3, stride=2, ceil_mode=True)[..., 0]
    array([[10., 11.],
           [14., 15.]], dtype=float32)
    """
    pooling = MaxPooling(
        "max_pool2d",
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        layout=layout,
    )
    return pooling.run(x, out, threads)


def avg_pool2d(
    x: Any,
    kernel: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Mean under a window, channel by channel.

    Parameters
    ----------
    x, kernel, stride, padding, dilation, ceil_mode
        As in `max_pool2d`.
    count_include_pad : bool
        Whether padding counts as so many zeros. By default a window's sum is divided by its pixels
        inside the image, as in Keras, TensorFlow and ONNX; torch's default is True. What hangs
        over the padding's end in ceil_mode is never counted.
    layout, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray
        As `max_pool2d`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Notes
    -----
    Semantics of ONNX's AveragePool. Sums are made in the arrays' own precision and divided once:
    the error of a mean of K pixels is at most gamma(K) times the mean of their magnitudes. The
    mean of no pixels, under a window that lies on padding alone, is NaN, as `numpy.mean` has it,
    or 0 with `count_include_pad`. The bits depend on the ISA, not on batch or layout.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.ones((3, 3, 1), np.float32)
    >>> ck.avg_pool2d(x, 3, stride=2, padding=1)[..., 0]
    array([[1., 1.],
           [1., 1.]], dtype=float32)
    >>> ck.avg_pool2d(x, 2, padding=1, count_include_pad=True)[..., 0]
    array([[0.25, 0.5 ],
           [0.5 , 1.  ]], dtype=float32)
    """
    pooling = AvgPooling(
        "avg_pool2d",
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        layout=layout,
    )
    return pooling.run(x, out, threads)


def global_avg_pool2d(
    x: Any,
    *,
    keepdims: bool = True,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Mean of each channel over the whole image.

    Parameters
    ----------
    x : array_like
        Image, as in `conv2d`.
    keepdims : bool
        Whether the result is an image of one pixel, which a `pointwise_conv2d` takes: (N, 1, 1, C)
        or (N, C, 1, 1), as from ONNX's GlobalAveragePool and torch's AdaptiveAvgPool2d(1); or
        (N, C), as from Keras' GlobalAveragePooling2D.
    layout, out, threads
        As in `conv2d`.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Notes
    -----
    The same bits as those of an `avg_pool2d` whose kernel is the whole image, and of the other
    layout.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    >>> ck.global_avg_pool2d(x)
    array([[[[3., 4.]]]], dtype=float32)
    >>> ck.global_avg_pool2d(x, keepdims=False)
    array([[3., 4.]], dtype=float32)
    """
    pooling = GlobalAvgPooling("global_avg_pool2d", keepdims=keepdims, layout=layout)
    return pooling.run(x, out, threads)


def fold_batchnorm(
    w: Any,
    bias: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    eps: float,
    *,
    weight_layout: str = "HWIO",
) -> tuple[np.ndarray, np.ndarray]:
    """Fold a batch normalisation that follows a convolution into its weights and bias.

    Parameters
    ----------
    w : array_like
        Weights of any of the operations, float32 or float64. In "HWIO" the output channels are the
        last axis, or for depthwise weights the last axes; in "OIHW" the first.
    bias : array_like or None
        The convolution's own bias.
    gamma, beta, mean, var : array_like
        Scale, shift, running mean and running variance, one per output channel.
    eps : float
        As the normalisation adds it to the variance: Keras has 1e-3, torch 1e-5.
    weight_layout : {"HWIO", "OIHW"}

    Returns
    -------
    w, bias : ndarray
        New arrays of the dtype of `w`; the arithmetic is in float64.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not belong together, or a variance that is negative.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> w = np.ones((1, 1, 2, 2), np.float32)
    >>> one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> folded, bias = ck.fold_batchnorm(w, None, 2 * one, one, zero, 3 * one, 1.0)
    >>> float(folded[0, 0, 0, 0]), float(bias[0])
    (1.0, 1.0)
    """
    op = "fold_batchnorm"
    layouts = Layouts.of(op, "NHWC", weight_layout)
    array = as_same_dtype(op, "w", w, np.asarray(w).dtype)
    channels = np.size(gamma)
    shape = _channel_shape(op, array, channels, layouts.weights)
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    if bias is not None:
        parts["bias"] = bias
    for name, value in parts.items():
        part = as_same_dtype(op, name, value, array.dtype, "w")
        if part.shape != (channels,):
            raise ValueError(
                f"{op}: {name} has shape {part.shape}; it must be ({channels},), as gamma is"
            )
        parts[name] = part.astype(np.float64)
    if not (parts["var"] + eps > 0).all():
        raise ValueError(f"{op}: var + eps must be positive everywhere (eps={eps})")
    scale = parts["gamma"] / np.sqrt(parts["var"] + eps)
    shift = parts["beta"] + (parts.get("bias", 0.0) - parts["mean"]) * scale
    return (array * scale.reshape(shape)).astype(array.dtype), shift.astype(array.dtype)


def _channel_shape(op: str, w: np.ndarray, channels: int, weight_layout: str) -> tuple[int, ...]:
    """The shape in which one number per output channel multiplies the weights."""
    if weight_layout == "OIHW" and w.ndim >= 2 and w.shape[0] == channels:
        return (channels,) + (1,) * (w.ndim - 1)
    if weight_layout == "HWIO" and w.ndim >= 2 and w.shape[-1] == channels:
        return (channels,)
    if weight_layout == "HWIO" and w.ndim == 4 and w.shape[2] * w.shape[3] == channels:
        return w.shape[2:]
    raise ValueError(
        f"{op}: gamma has {channels} channels, but w has shape {w.shape} ({weight_layout})"
    )
