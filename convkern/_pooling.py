"""Pooling: options checked once, runs on images of any size and either dtype.

Pooling treats each channel by itself, so an NCHW image goes to C as batch * channels images of one
channel, where it lies.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _core, runtime
from ._geometry import (
    LAYOUTS,
    ImageShape,
    Window,
    as_array,
    as_choice,
    as_flag,
    as_padding,
    as_pair,
    check_memory,
)
from ._operation import check_out, recall


class Plan(NamedTuple):
    """What a run needs to know of its shapes."""

    x_shape: tuple[int, ...]
    shape: tuple[int, ...]  # of the result
    window: Window
    sizes: tuple[int, ...]  # batch, height, width, channels, top, bottom, left, right


class Pooling:
    """A max or average pooling with its options checked; without a window, of the whole image."""

    window: Window | None
    count_include_pad: bool = False
    keepdims: bool = True
    _last_plan: Plan | None = None

    def __init__(self, name: str, kind: str, window: Window | None, layout: Any) -> None:
        self.name = name
        self.kind = kind
        self.window = window
        self.layout = as_choice(name, "layout", layout, LAYOUTS)

    def pack(self) -> int:
        """All that a layer keeps: there are no weights, but the ISA in use has a number."""
        return runtime.isa_number()

    def out_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result, or ValueError where the window does not fit."""
        return self._plan(x_shape).shape

    def elements(self, x_shape: tuple[int, ...]) -> int:
        """Of the input and the result together."""
        return math.prod(x_shape) + math.prod(self.out_shape(x_shape))

    def run(self, x: Any, out: Any, threads: Any, isa: int | None = None) -> np.ndarray:
        """The pooling of x: every check, then one call of C."""
        threads = runtime.num_threads(self.name, threads)
        x = as_array(self.name, "x", x)
        plan = self.plan(x.shape)
        check_memory(self.name, plan.shape, x.itemsize)
        if out is not None:
            check_out(self.name, out, plan.shape, x.dtype)
        return _core.pool(
            self.name,
            self.kind,
            runtime.isa_number() if isa is None else isa,
            plan.window.flat(),
            plan.window.ceil_mode,
            self.count_include_pad,
            plan.sizes,
            plan.shape,
            x,
            out,
            threads,
        )

    def plan(self, x_shape: tuple[int, ...]) -> Plan:
        """What follows from the shape of x; the last one is kept, for calls that repeat it."""
        plan = self._last_plan
        if plan is None or plan.x_shape != x_shape:
            form = (self.kind, self.layout, self.window, self.keepdims)
            self._last_plan = plan = recall(form, (x_shape,), self._plan)
        return plan

    def _plan(self, x_shape: tuple[int, ...]) -> Plan:
        image = ImageShape.of(self.name, x_shape, self.layout)
        window = self.window or Window((image.height, image.width))
        height, width = window.out_size(self.name, image.height, image.width)
        shape = image._replace(height=height, width=width).shape(self.layout)
        if not self.keepdims:
            shape = (image.batch, image.channels) if image.batched else (image.channels,)
        batch, channels = image.batch, image.channels
        if self.layout == "NCHW":
            batch, channels = batch * channels, 1
        padding = window.padding_for(image.height, image.width)
        sizes = (batch, image.height, image.width, channels, *padding)
        return Plan(x_shape, shape, window, sizes)


def _window(
    name: str, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> Window:
    """A window whose stride is its size unless it is said."""
    size = as_pair(name, "kernel", kernel, 1)
    return Window(
        size,
        size if stride is None else as_pair(name, "stride", stride, 1),
        as_pair(name, "dilation", dilation, 1),
        as_padding(name, padding),
        as_flag(name, "ceil_mode", ceil_mode),
    )


class MaxPooling(Pooling):
    def __init__(
        self, name: str, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any,
        layout: Any,
    ) -> None:  # fmt: skip
        window = _window(name, kernel, stride, padding, dilation, ceil_mode)
        super().__init__(name, "max", window, layout)


class AvgPooling(Pooling):
    def __init__(
        self, name: str, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any,
        count_include_pad: Any, layout: Any,
    ) -> None:  # fmt: skip
        window = _window(name, kernel, stride, padding, dilation, ceil_mode)
        super().__init__(name, "average", window, layout)
        self.count_include_pad = as_flag(name, "count_include_pad", count_include_pad)


class GlobalAvgPooling(Pooling):
    def __init__(self, name: str, *, keepdims: Any, layout: Any) -> None:
        super().__init__(name, "average", None, layout)
        self.keepdims = as_flag(name, "keepdims", keepdims)
