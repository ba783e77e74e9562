"""The deformable convolution as an operation: what `_operation.py` does, for an image with offsets.

Its weights do not say how many groups there are; the image does. So they are packed when the first
image comes, once for each number of groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, runtime
from ._geometry import (
    FAST,
    FULL,
    PRECISIONS,
    ImageShape,
    as_array,
    as_choice,
    as_same_dtype,
    check_memory,
)
from ._operation import (
    Layouts,
    Operation,
    Plan,
    _bias,
    as_activation,
    as_residual,
    as_window,
    check_out,
    conv_view,
)


class PackedByGroups(dict[int, _core.Op]):
    """Weights packed for the ISA in use when this was made, for any number of groups."""

    def __init__(self, operation: DeformOperation) -> None:
        self._operation = operation
        self._isa = runtime.isa_number()

    def __missing__(self, groups: int) -> _core.Op:
        packed = self[groups] = self._operation.pack_for(groups, self._isa)
        return packed


class DeformOperation(Operation):
    kind = "deform"

    def __init__(
        self, name: str, w: Any, bias: Any, *, stride: Any, padding: Any, dilation: Any,
        activation: Any, layout: Any, weight_layout: Any, precision: Any = FULL,
    ) -> None:  # fmt: skip
        self.name = name
        self.layouts = Layouts.of(name, layout, weight_layout)
        w = as_array(name, "w", w)
        self.w = conv_view(name, "w", w, self.layouts.weights)
        self.w_shape = w.shape
        kh, kw, group_channels, out_channels = self.w.shape
        self.window = as_window(name, (kh, kw), stride, padding, dilation)
        self.channels = (group_channels, out_channels, 1, 1)  # of one group: x says how many
        self.bias = _bias(name, "bias", bias, out_channels, self.w.dtype)
        self.activation = as_activation(name, "activation", activation)
        self.precision = as_choice(name, "precision", precision, PRECISIONS)

    @property
    def taps(self) -> int:
        return self.window.kernel[0] * self.window.kernel[1]

    def pack(self) -> Any:
        return PackedByGroups(self)

    def pack_for(self, groups: int, isa: int) -> _core.Op:
        check_memory(self.name, self.w.shape, self.w.itemsize, ": packing weights")
        channels = (groups * self.in_channels, self.out_channels, groups, 1)
        window = self.window.flat()
        return _core.Op(
            self.name,
            self.kind,
            isa,
            self.layouts.image,
            window,
            channels,
            self.w,
            self.bias,
            self.activation,
            fast=self.precision == FAST,
        )

    def shapes(self, x_shape: Any) -> tuple[ImageShape, ImageShape]:
        """The input and the output, or ValueError where x does not fit."""
        image = ImageShape.of(self.name, x_shape, self.layouts.image)
        groups, rest = divmod(image.channels, self.in_channels)
        if rest or self.out_channels % groups:
            raise ValueError(
                f"{self.name}: x has shape {tuple(x_shape)} ({self.layouts.image}), "
                f"{image.channels} channels, and w has shape {self.w_shape} "
                f"({self.layouts.weights}), {self.out_channels} outputs that see "
                f"{self.in_channels} channels each: the channels of x must be whole groups of "
                f"{self.in_channels}, and their number must divide the outputs"
            )
        height, width = self.window.out_size(self.name, image.height, image.width)
        out = ImageShape(image.batch, height, width, self.out_channels, image.batched)
        return image, out

    def offset_groups(
        self, image: ImageShape, out: ImageShape, offset_shape: Any, mask_shape: Any = None
    ) -> int:
        """How many groups of channels have offsets of their own; ValueError where they do not fit.

        Channels are (offset groups, kh, kw, [down, right]), torchvision's and ONNX's order.
        """
        layout, taps = self.layouts.image, self.taps
        offset = ImageShape.of(self.name, offset_shape, layout, "offset")
        groups, rest = divmod(offset.channels, 2 * taps)
        if rest or image.channels % groups:
            raise ValueError(
                f"{self.name}: offset has shape {tuple(offset_shape)} ({layout}), "
                f"{offset.channels} channels: a kernel of {self.window.kernel[0]}x"
                f"{self.window.kernel[1]} takes {2 * taps} for each offset group, whose "
                f"number must divide the {image.channels} channels of x"
            )
        wanted = out.with_channels(offset.channels)
        if offset != wanted:
            raise ValueError(
                f"{self.name}: offset has shape {tuple(offset_shape)} ({layout}); for x of shape "
                f"{image.shape(layout)} it must be {wanted.shape(layout)}: there is one offset for "
                f"every pixel of the output"
            )
        if mask_shape is None:
            return groups
        expected = out.with_channels(taps * groups).shape(layout)
        if mask_shape != expected:
            raise ValueError(
                f"{self.name}: mask has shape {mask_shape}; for offset of shape {offset_shape} it "
                f"must be {expected}: one factor for every tap of every offset group"
            )
        return groups

    def _plan(self, x_shape: tuple[int, ...], *where: Any) -> Plan:
        plan = super()._plan(x_shape, *where)
        return plan._replace(
            groups=plan.image.channels // self.in_channels,
            offset_groups=self.offset_groups(plan.image, plan.result, *where),
        )

    def run_at(
        self, x: Any, offset: Any, mask: Any, residual: Any, out: Any, threads: Any,
        packed: PackedByGroups | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The operation on x, moved by offset: every check, then one call of C."""
        threads = runtime.num_threads(self.name, threads)
        x = as_same_dtype(self.name, "x", x, self.w.dtype, "w")
        offset = as_same_dtype(self.name, "offset", offset, x.dtype)
        if mask is not None:
            mask = as_same_dtype(self.name, "mask", mask, x.dtype)
        plan = self.plan(x.shape, offset.shape, None if mask is None else mask.shape)
        if residual is not None:
            residual = as_residual(self.name, residual, plan.shape, x.dtype)
        if out is not None:
            check_out(self.name, out, plan.shape, x.dtype)
        op = (self.pack() if packed is None else packed)[plan.groups]
        return op.run(
            plan.sizes, plan.shape, x, residual, out, threads, offset, mask, plan.offset_groups
        )
