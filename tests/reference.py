"""The oracle of the tests: every operation in float64 NumPy, and how far float32 may be from it.

The functions have the names, signatures and conventions of ``convkern`` (less ``out`` and
``threads``), and share no code with it. They compute in float64, or in the inputs' own type where
that is wider still (``numpy.longdouble``). Padding is zeros that are multiplied like any other
pixel, so ``0 * inf`` is NaN, as ``numpy.pad`` and IEEE 754 have it.
"""

import numpy as np

# Slope bound, and rounding of the activation itself in units of u times its value, or times the
# scale of its argument where it is a product that cancels.
_LIPSCHITZ = {"hardsigmoid": 1 / 6, "hardswish": 1.5, "sigmoid": 1 / 4, "silu": 1.1}
_ROUNDINGS = {"hardsigmoid": 2, "hardswish": 3, "sigmoid": 6, "silu": 6}


def activate(z, activation):
    """Apply an activation, by name or as the (low, high) of a clamp; NaN stays NaN."""
    if activation is None:
        return z
    if not isinstance(activation, str):
        return np.clip(z, *activation)
    with np.errstate(all="ignore"):
        return {
            "relu": lambda: np.maximum(z, 0),
            "relu6": lambda: np.clip(z, 0, 6),
            "hardsigmoid": lambda: np.clip(z + 3, 0, 6) / 6,
            "hardswish": lambda: z * (np.clip(z + 3, 0, 6) / 6),
            "sigmoid": lambda: 1 / (1 + np.exp(-z)),
            "silu": lambda: z / (1 + np.exp(-z)),
        }[activation]()


def conv2d(
    x,
    w,
    bias=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    activation=None,
    residual=None,
    layout="NHWC",
    weight_layout=None,
):
    """Cross-correlate images with filters; see ``convkern.conv2d``."""
    w = _hwio(w, weight_layout or _WEIGHT_LAYOUT[layout])
    images = _nhwc(x, layout)
    with np.errstate(all="ignore"):
        y = _correlate(images, w, _pair(stride), padding, _pair(dilation), groups)
        y = _like(y, np.ndim(x), layout)
        if bias is not None:
            y = y + np.asarray(bias)[_channels_last(layout)]
        if residual is not None:
            y = y + np.asarray(residual)
        return activate(y, activation)


def depthwise_conv2d(x, w, bias=None, *, dilation=1, layout="NHWC", weight_layout=None, **options):
    """Filter every channel by itself; see ``convkern.depthwise_conv2d``."""
    weight_layout = weight_layout or _WEIGHT_LAYOUT[layout]
    w = np.asarray(w)
    if weight_layout == "HWIO":  # (kh, kw, C[, multiplier]) -> (kh, kw, 1, C * multiplier)
        w = w.reshape(*w.shape[:2], 1, -1)
    groups = np.shape(x)[-1 if layout == "NHWC" else -3]
    return conv2d(
        x,
        w,
        bias,
        dilation=dilation,
        groups=groups,
        layout=layout,
        weight_layout=weight_layout,
        **options,
    )


def pointwise_conv2d(x, w, bias=None, *, layout="NHWC", weight_layout=None, **options):
    """Mix the channels of every pixel; see ``convkern.pointwise_conv2d``."""
    weight_layout = weight_layout or _WEIGHT_LAYOUT[layout]
    w = np.asarray(w)
    if w.ndim == 2:
        w = w[None, None] if weight_layout == "HWIO" else w[:, :, None, None]
    return conv2d(x, w, bias, layout=layout, weight_layout=weight_layout, **options)


def separable_conv2d(
    x,
    dw,
    pw,
    dw_bias=None,
    bias=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    dw_activation=None,
    activation=None,
    residual=None,
    **layouts,
):
    """Depthwise, then pointwise; see ``convkern.separable_conv2d``."""
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    y = depthwise_conv2d(x, dw, dw_bias, activation=dw_activation, **window, **layouts)
    return pointwise_conv2d(y, pw, bias, activation=activation, residual=residual, **layouts)


def deform_conv2d(
    x,
    offset,
    w,
    bias=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    mask=None,
    activation=None,
    residual=None,
    layout="NHWC",
    weight_layout=None,
):
    """Correlate bilinear samples with filters; see ``convkern.deform_conv2d``."""
    w = _hwio(w, weight_layout or _WEIGHT_LAYOUT[layout])
    window = {"stride": stride, "padding": padding, "dilation": dilation, "layout": layout}
    with np.errstate(all="ignore"):
        samples = _samples(x, offset, mask, w.shape[:2], **window)
        y = _like(_mix(samples, w), np.ndim(x), layout)
        if bias is not None:
            y = y + np.asarray(bias)[_channels_last(layout)]
        if residual is not None:
            y = y + np.asarray(residual)
        return activate(y, activation)


def spatially_separable_conv2d(
    x, column, row, bias=None, *, activation=None, residual=None, **options
):  # fmt: skip
    """Filter by columns, then by rows; see ``convkern.spatially_separable_conv2d``."""
    (column, down), (row, along) = _column_and_row(x, column, row, **options)
    sums = depthwise_conv2d(x, column, **down)
    return depthwise_conv2d(sums, row, bias, activation=activation, residual=residual, **along)


def _column_and_row(x, column, row, *, stride=1, padding=0, dilation=1, layout="NHWC"):
    """Make depthwise weights of column and row, and the options of both steps.

    The image is padded on all sides before the first.
    """
    column, row = (np.asarray(w) if layout == "NHWC" else np.transpose(w) for w in (column, row))
    channels = np.shape(x)[-1 if layout == "NHWC" else -3]
    column, row = (w[:, None] if w.ndim == 1 else w for w in (column, row))
    column, row = (np.broadcast_to(w, (len(w), channels)) for w in (column, row))
    (sh, sw), (dh, dw) = _pair(stride), _pair(dilation)
    size = np.shape(x)[-3:-1] if layout == "NHWC" else np.shape(x)[-2:]
    pads = resolve_padding(padding, size, (len(column), len(row)), (sh, sw), (dh, dw))
    layouts = {"layout": layout, "weight_layout": "HWIO"}
    down = {"stride": (sh, 1), "padding": pads, "dilation": (dh, 1), **layouts}
    along = {"stride": (1, sw), "dilation": (1, dw), **layouts}
    return (column[:, None], down), (row[None], along)


def max_pool2d(x, kernel, *, layout="NHWC", **window):
    """Take the largest number under every window; see ``convkern.max_pool2d``."""
    return _pool(x, kernel, np.maximum, -np.inf, layout=layout, **window)


def avg_pool2d(x, kernel, *, count_include_pad=False, layout="NHWC", **window):
    """Average every window; see ``convkern.avg_pool2d``."""
    image = _nhwc(x, layout)
    counted = np.ones((1, *image.shape[1:3], 1))
    with np.errstate(all="ignore"):
        sums = _pool(image, kernel, np.add, 0, **window)
        means = sums / _pool(counted, kernel, np.add, int(count_include_pad), **window)
    return _like(means, np.ndim(x), layout)


def global_avg_pool2d(x, *, keepdims=True, layout="NHWC"):
    """Average whole images; see ``convkern.global_avg_pool2d``."""
    axes = (-3, -2) if layout == "NHWC" else (-2, -1)
    with np.errstate(all="ignore"):
        return _wide(x).mean(axes, keepdims=keepdims)


def mean_bound(magnitude, terms, dtype):
    """Bound the error of means of `terms` numbers computed in `dtype`: additions and one division.

    `magnitude` is the mean of their absolute values.
    """
    return _gamma(terms, dtype) * magnitude + terms * float(np.finfo(dtype).tiny)


def _pool(
    x, kernel, join, fill, *, stride=None, padding=0, dilation=1, ceil_mode=False, layout="NHWC"
):
    """Join the taps of every window; padding is `fill`, what lies beyond it changes nothing."""
    images = _nhwc(x, layout)
    kernel, dilation = _pair(kernel), _pair(dilation)
    stride = kernel if stride is None else _pair(stride)
    pads = resolve_padding(padding, images.shape[1:3], kernel, stride, dilation)
    images = np.pad(images, ((0, 0), *pads, (0, 0)), constant_values=fill)
    axes = zip(images.shape[1:3], kernel, stride, dilation, pads, strict=True)
    rows, columns = (_window_starts(*axis, ceil_mode) for axis in axes)
    nothing = -np.inf if join is np.maximum else 0
    beyond = [(0, s) for s in stride]
    images = np.pad(images, ((0, 0), *beyond, (0, 0)), constant_values=nothing)
    y = np.full((len(images), len(rows), len(columns), images.shape[3]), nothing, images.dtype)
    with np.errstate(all="ignore"):
        for i, j in np.ndindex(*kernel):
            taps = np.ix_(rows + i * dilation[0], columns + j * dilation[1])
            y = join(y, images[:, *taps])
    return _like(y, np.ndim(x), layout)


def _window_starts(padded, kernel, stride, dilation, pads, ceil_mode):
    """Where the windows along an axis start, counted from the padding's begin."""
    starts = np.arange(0, padded, stride)
    ends = starts + dilation * (kernel - 1) + 1
    hangs_over = (ends > padded) & (ends < padded + stride) & (starts < padded - pads[1])
    return starts[(ends <= padded) | (hangs_over if ceil_mode else False)]


def bound(op, *arrays, dtype=np.float32, activation=None, residual=None, **options):
    """Bound the error of ``op(*arrays, ...)`` computed in `dtype`, for every output element.

    A sum of K products and a bias, in any order, fused or not, is off by at most
    gamma(K + 1) * (sum |x| |w| + |b|), gamma(n) = n u / (1 - n u), u half the spacing of 1: Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1. A residual is one more term. What
    underflows may be flushed to zero. An activation stretches the error by at most its Lipschitz
    constant and adds its own rounding.

    Parameters
    ----------
    op : function of this module
    *arrays, activation, residual, **options
        What `op` is called with.
    dtype : data-type, optional
        The type whose roundings are counted.

    Returns
    -------
    ndarray of float64
        Where an infinity or a NaN takes part, the bound is not finite.
    """
    with np.errstate(all="ignore"):
        if op is deform_conv2d:
            error = _deform_error(*arrays, dtype=dtype, residual=residual, **options)
        elif op is separable_conv2d:
            error = _separable_error(*arrays, dtype=dtype, residual=residual, **options)
        elif op is spatially_separable_conv2d:
            error = _spatial_error(*arrays, dtype=dtype, residual=residual, **options)
        else:
            x, w, *bias = arrays
            error = _sum_error(op, x, w, *bias, dtype=dtype, residual=residual, **options)
        z = op(*arrays, residual=residual, **options)
        return activation_error(z, error, activation, dtype)


def _sum_error(op, x, w, bias=None, *, dtype, residual=None, x_error=0.0, **options):
    """Error of one operation's sums over an `x` itself known to within `x_error`."""
    window = {k: v for k, v in options.items() if k != "dw_activation"}
    inputs = np.abs(x) + x_error
    magnitude = op(inputs, np.abs(w), _abs(bias), residual=_abs(residual), **window)
    terms = _terms(op, w, **options) + 1 + (residual is not None)
    error = _gamma(terms, dtype) * magnitude + terms * float(np.finfo(dtype).tiny)
    if np.ndim(x_error):
        error = error + op(x_error, np.abs(w), **window)
    return error


def _separable_error(
    x, dw, pw, dw_bias=None, bias=None, *, dtype, residual, dw_activation=None, **options
):
    """The depthwise half's error, carried through the pointwise half's weights."""
    layouts = {k: v for k, v in options.items() if k in ("layout", "weight_layout")}
    depthwise = {"activation": dw_activation, **options}
    y = depthwise_conv2d(x, dw, dw_bias, **depthwise)
    y_error = bound(depthwise_conv2d, x, dw, dw_bias, dtype=dtype, **depthwise)
    return _sum_error(
        pointwise_conv2d, y, pw, bias, dtype=dtype, residual=residual, x_error=y_error, **layouts
    )


def _deform_error(
    x, offset, w, bias=None, *, dtype, residual, mask=None, layout="NHWC", weight_layout=None,
    **window,
):  # fmt: skip
    """The samples' error, carried through the filters.

    A weight of the interpolation is within 3 u of the exact one: a fraction, its complement and
    their product are rounded. Four products, their sum and the mask round five times more.
    """
    w = np.abs(_hwio(w, weight_layout or _WEIGHT_LAYOUT[layout]))
    window |= {"layout": layout, "kernel": w.shape[:2]}
    samples = np.abs(_samples(x, offset, mask, **window))
    error = _gamma(8, dtype) * _samples(np.abs(x), offset, _abs(mask), **window, weigh=False)
    error = error + 5 * float(np.finfo(dtype).tiny)
    magnitude = _like(_mix(samples + error, w), np.ndim(x), layout)
    if bias is not None:
        magnitude = magnitude + np.abs(bias)[_channels_last(layout)]
    if residual is not None:
        magnitude = magnitude + np.abs(residual)
    terms = w[..., 0].size + 1 + (residual is not None)
    carried = _like(_mix(error, w), np.ndim(x), layout)
    return _gamma(terms, dtype) * magnitude + carried + terms * float(np.finfo(dtype).tiny)


def _spatial_error(x, column, row, bias=None, *, dtype, residual, **options):
    """The column sums' error, carried through the row's weights."""
    (column, down), (row, along) = _column_and_row(x, column, row, **options)
    sums = depthwise_conv2d(x, column, **down)
    error = _sum_error(depthwise_conv2d, x, column, dtype=dtype, **down)
    return _sum_error(
        depthwise_conv2d, sums, row, bias, dtype=dtype, residual=residual, x_error=error, **along
    )


def activation_error(z, error, activation, dtype):
    """Bound the error of an activation of `z`, itself known to within `error`."""
    if not isinstance(activation, str) or activation in ("relu", "relu6"):
        return error
    u = np.finfo(dtype).eps / 2
    scale = {
        "hardsigmoid": 1.0,
        "hardswish": np.abs(z),
        "sigmoid": activate(z, "sigmoid"),
        "silu": np.abs(activate(z, "silu")),
    }[activation]
    flushed = np.finfo(dtype).tiny * (1 + np.abs(z))
    own = _ROUNDINGS[activation] * u * scale + flushed
    return _LIPSCHITZ[activation] * error + own


def _terms(op, w, *, layout="NHWC", weight_layout=None, **_):
    """How many products one output of `op` sums."""
    oihw = (weight_layout or _WEIGHT_LAYOUT[layout]) == "OIHW"
    if op is depthwise_conv2d:
        return int(np.prod(np.shape(w)[2:] if oihw else np.shape(w)[:2]))
    return int(np.prod(np.shape(w)[1:] if oihw else np.shape(w)[:-1]))


def _gamma(n, dtype):
    u = float(np.finfo(dtype).eps) / 2
    return n * u / (1 - n * u)


def _correlate(x, w, stride, padding, dilation, groups):
    """Sum over taps: (B, H, W, C) images, (kh, kw, C / groups, N) filters."""
    pads = resolve_padding(padding, x.shape[1:3], w.shape[:2], stride, dilation)
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    (sh, sw), (dh, dw) = stride, dilation
    kh, kw, terms, outputs = w.shape
    height = (x.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[2] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((groups, x.shape[0] * height * width, outputs // groups), x.dtype)
    for i, j in np.ndindex(kh, kw):
        rows = slice(i * dh, i * dh + sh * (height - 1) + 1, sh)
        columns = slice(j * dw, j * dw + sw * (width - 1) + 1, sw)
        pixels = x[:, rows, columns].reshape(-1, groups, terms)
        filters = w[i, j].reshape(terms, groups, -1)
        y += pixels.swapaxes(0, 1) @ filters.swapaxes(0, 1)
    return y.swapaxes(0, 1).reshape(x.shape[0], height, width, outputs)


def _samples(
    x, offset, mask, kernel, *, stride=1, padding=0, dilation=1, layout="NHWC", weigh=True
):  # fmt: skip
    """Interpolate the image where the offsets point: (B, H', W', kh, kw, C).

    Each neighbour is weighted, or where `weigh` is false counted whole.
    """
    (kh, kw), stride, dilation = kernel, _pair(stride), _pair(dilation)
    x, offset = _nhwc(x, layout), _nhwc(offset, layout)
    batch, height, width, channels = x.shape
    (top, _), (left, _) = resolve_padding(padding, (height, width), kernel, stride, dilation)
    groups = offset.shape[3] // (2 * kh * kw)
    offset = offset.reshape(*offset.shape[:3], groups, kh, kw, 2)
    tap_y, tap_x = (
        (np.arange(n) * s - before)[:, None] + np.arange(k) * d
        for n, s, before, k, d in zip(
            offset.shape[1:3], stride, (top, left), kernel, dilation, strict=True
        )
    )
    at_y = tap_y[:, None, None, :, None] + offset[..., 0]
    at_x = tap_x[:, None, None, :] + offset[..., 1]
    lost = np.isnan(at_y) | np.isnan(at_x)
    inside = (at_y > -1) & (at_y < height) & (at_x > -1) & (at_x < width)
    at_y, at_x = np.where(inside, at_y, 0), np.where(inside, at_x, 0)
    low_y, low_x = np.floor(at_y), np.floor(at_x)
    by_y, by_x = at_y - low_y, at_x - low_x
    image = x.reshape(batch, height, width, groups, channels // groups)
    value = np.zeros((*at_y.shape, channels // groups), x.dtype)
    for down, right in np.ndindex(2, 2):
        weight = (by_y if down else 1 - by_y) * (by_x if right else 1 - by_x)
        row, column = (low_y + down).astype(int), (low_x + right).astype(int)
        exists = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = np.ogrid[tuple(slice(n) for n in at_y.shape)]
        pixels = image[
            index[0], row.clip(0, height - 1), column.clip(0, width - 1), index[3]
        ]  # fmt: skip
        pixels = np.where(exists[..., None], pixels, 0)
        value = value + (weight[..., None] * pixels if weigh else pixels)
    value = np.where(inside[..., None], value, 0)
    value = np.where(lost[..., None], np.nan, value)
    if mask is not None:
        value = value * _nhwc(mask, layout).reshape(*offset.shape[:-1], 1)
    return np.moveaxis(value, 3, 5).reshape(*value.shape[:3], kh, kw, channels)


def _mix(samples, w):
    """Sum (B, H', W', kh, kw, C) samples over the taps and channels of (kh, kw, C / groups, N)."""
    kh, kw, terms, outputs = w.shape
    groups = samples.shape[-1] // terms
    samples = samples.reshape(*samples.shape[:5], groups, terms)
    w = w.reshape(kh, kw, terms, groups, outputs // groups)
    y = np.einsum("bhwijgc,ijcgn->bhwgn", samples, w)
    return y.reshape(*y.shape[:3], outputs)


def resolve_padding(padding, size, kernel, stride, dilation):
    """Spell any padding out as ((top, bottom), (left, right))."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding in ("same", "same_lower"):
        pads = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pads.append((less, more) if padding == "same" else (more, less))
        return pads
    return [_pair(p) for p in _pair(padding)]


_WEIGHT_LAYOUT = {"NHWC": "HWIO", "NCHW": "OIHW"}


def _pair(value):
    return tuple(value) if np.iterable(value) else (value, value)


def _abs(a):
    return None if a is None else np.abs(a)


def _wide(a):
    return np.asarray(a, dtype=np.result_type(np.asarray(a), np.float64))


def _hwio(w, weight_layout):
    return _wide(w) if weight_layout == "HWIO" else _wide(w).transpose(2, 3, 1, 0)


def _nhwc(x, layout):
    x = _wide(x)[(None,) * (4 - np.ndim(x))]
    return x if layout == "NHWC" else x.transpose(0, 2, 3, 1)


def _like(y, ndim, layout):
    """Undo `_nhwc` on a result, for an input of `ndim` axes."""
    y = y if layout == "NHWC" else y.transpose(0, 3, 1, 2)
    return y if ndim == 4 else y[0]


def _channels_last(layout):
    """Index that lines a (N,) vector up with the channel axis."""
    return ... if layout == "NHWC" else (slice(None), None, None)
