"""Checks of arguments, and all arithmetic on shapes: one place, called from every entry point.

Everything raises TypeError (kind, dtype) or ValueError (value, shape) with the operation, the
argument, what was given and the rule. Sizes are Python integers, which do not overflow; what C
could not hold in 64 bits is refused here.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any, NamedTuple

import numpy as np

MAX_SIZE = 2**63 - 1
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
LAYOUTS = ("NHWC", "NCHW")
WEIGHT_LAYOUTS = ("HWIO", "OIHW")
PRECISIONS = FULL, FAST = "full", "fast"
PADDING_NAMES = ("valid", "same", "same_lower")


class SizeOverflowError(OverflowError, ValueError):
    """A size, or a product of sizes, that does not fit in 64 bits."""


def as_int(op: str, name: str, value: Any, minimum: int) -> int:
    """One integer, at least `minimum`; NumPy integers are welcome, booleans and floats are not."""
    if type(value) is int and minimum <= value <= MAX_SIZE:
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name} must be an integer, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{op}: {name} must be an integer, not {value!r} ({kind})") from None
    if number < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, not {number}")
    if number > MAX_SIZE:
        raise SizeOverflowError(f"{op}: {name}={number} does not fit in 64 bits")
    return number


def is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def as_pair(op: str, name: str, value: Any, minimum: int) -> tuple[int, int]:
    """An integer for both axes, or a pair (vertical, horizontal)."""
    if type(value) is int or not is_sequence(value):  # most are one; every test counts in a call
        number = as_int(op, name, value, minimum)
        return number, number
    if len(value) != 2:
        raise ValueError(f"{op}: {name} must be an integer or a pair, not {value!r}")
    return as_int(op, name, value[0], minimum), as_int(op, name, value[1], minimum)


def as_flag(op: str, name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, (bool, np.bool_)):
        kind = type(value).__name__
        raise TypeError(f"{op}: {name} must be True or False, not {value!r} ({kind})")
    return bool(value)


def as_shape(op: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape that a caller wrote down: a sequence of integers."""
    if not is_sequence(value):
        kind = type(value).__name__
        raise TypeError(f"{op}: {name} must be a sequence of integers, not {value!r} ({kind})")
    return tuple(as_int(op, f"{name}[{axis}]", size, 0) for axis, size in enumerate(value))


def as_choice(op: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"{op}: {name} must be one of {', '.join(choices)}, not {value!r} ({kind})")
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, not {value!r}")
    return value


Padding = str | tuple[int, int, int, int]
"""A name of PADDING_NAMES, or (top, bottom, left, right)."""


def as_padding(op: str, value: Any) -> Padding:
    """int, (ph, pw), ((top, bottom), (left, right)), "valid", "same" or "same_lower"."""
    if isinstance(value, str):
        name = as_choice(op, "padding", value, PADDING_NAMES)
        return (0, 0, 0, 0) if name == "valid" else name
    if type(value) is int or not is_sequence(value):
        number = as_int(op, "padding", value, 0)
        return number, number, number, number
    if len(value) != 2:
        raise ValueError(
            f"{op}: padding must be an integer, (ph, pw), ((top, bottom), (left, right)) or one of "
            f"{', '.join(PADDING_NAMES)}, not {value!r}"
        )
    top, bottom = as_pair(op, "padding", value[0], 0)
    left, right = as_pair(op, "padding", value[1], 0)
    return top, bottom, left, right


def _same_padding(size: int, reach: int, stride: int, lower: bool) -> tuple[int, int]:
    """Padding for ceil(size / stride) outputs: the odd one goes after, or before if `lower`."""
    outputs = -(-size // stride)  # rounded up
    total = max((outputs - 1) * stride + reach - size, 0)
    half = total // 2
    return (total - half, half) if lower else (half, total - half)


class Window(NamedTuple):
    """A kernel's walk over the image: sizes, strides and dilations as (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    ceil_mode: bool = False
    """Keep a last window that starts before the end of the image and hangs over the padding's."""

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns from the first tap to the last, both counted."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    def padding_for(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) on an image of this size."""
        if not isinstance(self.padding, str):
            return self.padding
        lower = self.padding == "same_lower"
        (rh, rw), (sh, sw) = self.reach, self.stride
        return (*_same_padding(height, rh, sh, lower), *_same_padding(width, rw, sw, lower))

    def out_size(self, op: str, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output, or ValueError where the kernel does not fit."""
        top, bottom, left, right = self.padding_for(height, width)
        tall, wide = height + top + bottom, width + left + right
        kernel_tall, kernel_wide = self.reach
        if tall > MAX_SIZE or wide > MAX_SIZE or kernel_tall > MAX_SIZE or kernel_wide > MAX_SIZE:
            raise SizeOverflowError(
                f"{op}: x is {height}x{width}, padding {((top, bottom), (left, right))}, the "
                f"kernel with dilation {self.dilation} reaches over {kernel_tall}x{kernel_wide} "
                f"pixels: sizes must fit in 64 bits"
            )
        down, across = self.stride
        rows, columns = (tall - kernel_tall) // down + 1, (wide - kernel_wide) // across + 1
        if self.ceil_mode:
            rows += self._hangs_over(0, rows, tall - kernel_tall, height + top)
            columns += self._hangs_over(1, columns, wide - kernel_wide, width + left)
        if rows < 1 or columns < 1:
            hang = " by a whole stride" if self.ceil_mode else ""
            raise ValueError(
                f"{op}: a kernel of {self.kernel[0]}x{self.kernel[1]} with dilation "
                f"{self.dilation} reaches over {kernel_tall}x{kernel_wide} pixels, x with padding "
                f"has {tall}x{wide}: the kernel must not be larger than the padded "
                f"image{hang}"
            )
        return rows, columns

    def _hangs_over(self, axis: int, fit: int, spare: int, end: int) -> bool:
        """Whether one more window along an axis starts before the image's end, behind `fit`.

        The padded image is `spare` pixels longer than a window; all is counted from its begin.
        """
        stride = self.stride[axis]
        return spare > -stride and spare % stride > 0 and fit * stride < end

    def flat(self) -> tuple[int, int, int, int, int, int]:
        """As C wants it."""
        return (*self.kernel, *self.stride, *self.dilation)


def as_array(op: str, name: str, value: Any) -> np.ndarray:
    """Anything that NumPy can see without making numbers of it: not lists, not scalars."""
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = _seen_by(op, name, value, np.asarray)
    elif hasattr(value, "__dlpack__"):
        array = _seen_by(op, name, value, np.from_dlpack)
    else:
        try:
            array = np.asarray(memoryview(value))
        except TypeError:
            kind = type(value).__name__
            raise TypeError(
                f"{op}: {name} must be an array (ndarray, buffer, __array__ or DLPack), not {kind}"
            ) from None
    if array.dtype not in DTYPES or not array.dtype.isnative:
        dtype = array.dtype.str if array.dtype.kind == "f" else array.dtype
        raise TypeError(f"{op}: {name} has dtype {dtype}; it must be native float32 or float64")
    return array


def _seen_by(op: str, name: str, value: Any, convert: Any) -> np.ndarray:
    try:
        array = convert(value)
    except Exception as error:
        kind = type(value).__name__
        raise TypeError(f"{op}: {name} ({kind}) cannot be seen as an array: {error}") from error
    assert isinstance(array, np.ndarray)
    return array


def as_same_dtype(op: str, name: str, value: Any, dtype: np.dtype, of: str = "x") -> np.ndarray:
    if type(value) is np.ndarray and value.dtype == dtype:  # what most are
        return value
    array = as_array(op, name, value)
    if array.dtype != dtype:
        raise TypeError(
            f"{op}: {name} is {array.dtype} and {of} is {dtype}; all arrays must have one dtype"
        )
    return array


def usable(array: np.ndarray) -> np.ndarray:
    """The array, or a copy that C can read: contiguous and aligned."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    check_memory("a contiguous copy", array.shape, array.itemsize)
    return np.require(array, requirements=("C", "A"))


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether elements share memory: no axis may step over less than the shorter steps span."""
    span = array.itemsize
    for stride, size in sorted(
        (abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)
    ):
        if size > 1 and stride < span:
            return True
        span += stride * (size - 1)
    return False


def check_memory(op: str, shape: tuple[int, ...], itemsize: int, doing: str = "") -> None:
    """Refuse a result that no memory can hold before anything is touched.

    Some systems promise any amount of memory and kill the process when it is used.
    """
    if 0 < math.prod(shape) * itemsize <= 1 << 30:
        return
    nbytes = math.prod(n or 1 for n in shape) * itemsize  # NumPy wants that of an empty one to fit
    if nbytes > _physical_memory() and 0 not in shape:
        raise MemoryError(
            f"{op}{doing}: shape {shape} takes {nbytes / 1e9:.0f} GB, more than there is"
        )
    if nbytes > MAX_SIZE:
        raise SizeOverflowError(f"{op}{doing}: the bytes of shape {shape} do not fit in 64 bits")


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return MAX_SIZE


class ImageShape(NamedTuple):
    """An image's sizes, whatever its layout."""

    batch: int
    height: int
    width: int
    channels: int
    batched: bool

    @classmethod
    def of(cls, op: str, shape: Any, layout: str, name: str = "x") -> ImageShape:
        if len(shape) not in (3, 4):
            raise ValueError(
                f"{op}: {name} has shape {tuple(shape)}; it must have 4 axes ({layout}), or 3 "
                f"without a batch"
            )
        sizes = tuple(shape) if len(shape) == 4 else (1, *shape)
        n, h, w, c = sizes if layout == "NHWC" else (sizes[0], sizes[2], sizes[3], sizes[1])
        if h < 1 or w < 1 or c < 1:
            raise ValueError(
                f"{op}: {name} has shape {tuple(shape)} ({layout}); only the batch may be 0"
            )
        return cls(n, h, w, c, len(shape) == 4)

    def with_channels(self, channels: int) -> ImageShape:
        return ImageShape(self.batch, self.height, self.width, channels, self.batched)

    def shape(self, layout: str) -> tuple[int, ...]:
        inner = (self.height, self.width, self.channels)
        if layout == "NCHW":
            inner = (self.channels, self.height, self.width)
        return (self.batch, *inner) if self.batched else inner
