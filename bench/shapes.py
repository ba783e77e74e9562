"""The shapes to time: data in shapes/*.txt."""

from dataclasses import astuple, dataclass
from pathlib import Path

import cases
import deforming
import pooling

FOLDER = Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class Shape:
    """A convolution of (h, w, c) images to m channels; a line of a shapes file.

    `times` is how often it stands in the network `net`; t, l, b, r are the four sides.
    """

    net: str
    c: int
    h: int
    w: int
    m: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    pt: int
    pl: int
    pb: int
    pr: int
    groups: int
    times: int


@dataclass(frozen=True)
class Case:
    """A convolution of a shape."""

    op: str
    shape: Shape

    def __str__(self):
        """Name the test, such as conv2d-64to128-56x56-k3x3-s2."""
        s = self.shape
        parts = [self.op, f"{s.c}to{s.m}", f"{s.h}x{s.w}", f"k{s.kh}x{s.kw}"]
        if (s.sh, s.sw) != (1, 1):
            parts.append(f"s{s.sh}")
        if (s.dh, s.dw) != (1, 1):
            parts.append(f"d{s.dh}")
        if self.op == "conv2d" and s.groups > 1:
            parts.append(f"g{s.groups}")
        return "-".join(parts)

    def call(self, data="integers", layout="NHWC"):
        """Make up the arrays; of integers every right float32 result is the exact one."""
        s = self.shape
        options = {"stride": (s.sh, s.sw)}
        if self.op != "pointwise_conv2d":
            padding = ((s.pt, s.pb), (s.pl, s.pr))
            options |= {"padding": padding, "dilation": (s.dh, s.dw)}
        if self.op == "separable_conv2d":
            options["dw_activation"] = "relu6"
        return cases.call(
            self.op,
            (s.h, s.w, s.c),
            kernel=(s.kh, s.kw),
            outputs=s.m,
            multiplier=s.m // s.c if self.op == "depthwise_conv2d" else 1,
            groups=s.groups,
            data=data,
            layout=layout,
            **options,
        )


@dataclass(frozen=True)
class DeformCase:
    """A deformable 3x3 convolution with a mask, stride 1 and padding 1; a line of deform.txt."""

    net: str
    c: int
    h: int
    w: int
    m: int
    offset_groups: int

    op = "deform_conv2d"

    def __str__(self):
        return f"{self.op}-{self.c}to{self.m}-{self.h}x{self.w}-og{self.offset_groups}"

    def call(self, data="reals", layout="NHWC"):
        """Make up the arrays, with offsets of about a pixel."""
        return deforming.deform(
            (self.h, self.w, self.c),
            outputs=self.m,
            offset_groups=self.offset_groups,
            spread=1.0,
            data=data,
            layout=layout,
            padding=((1, 1), (1, 1)),
        )


@dataclass(frozen=True)
class PoolCase:
    """A pooling by k x k windows, `s` apart, of images padded by `p`; a line of pooling.txt."""

    net: str
    op: str
    c: int
    h: int
    w: int
    k: int = 0
    s: int = 0
    p: int = 0

    def __str__(self):
        window = f"-k{self.k}x{self.k}-s{self.s}" if self.k else ""
        return f"{self.op}-{self.c}-{self.h}x{self.w}{window}"

    def call(self, data="integers", layout="NHWC"):
        """Make up the image; of integers every right float32 result is the exact one, rounded."""
        sides = (self.p, self.p)
        window = {"kernel": (self.k, self.k), "stride": (self.s, self.s), "padding": (sides, sides)}
        x = (self.h, self.w, self.c)
        return pooling.pool(self.op, x, data=data, layout=layout, **(window if self.k else {}))


def prepare(call):
    """Make the layer of a call, and the arrays to call it with."""
    if call.op == "deform_conv2d":
        return deforming.layer_of(call), (call.x, call.weights[0], call.options["mask"])
    return call.layer(), (call.x,)


def cost(case):
    """Ask the layer what a case costs."""
    layer, (x, *more) = prepare(case.call())
    return layer.cost(x.shape, more[0].shape, mask=True) if more else layer.cost(x.shape)


def rows(name):
    """Read the lines of shapes/`name`.txt, numbers as such."""
    lines = [line.split() for line in (FOLDER / f"{name}.txt").read_text().splitlines()]
    return [[int(s) if s.isdigit() else s for s in line] for line in lines if line[0] != "#"]


def load(name):
    """Read the convolutions of shapes/`name`.txt.

    Returns
    -------
    list of Shape
        Without repetitions: networks share shapes.
    """
    shapes = [Shape(*row) for row in rows(name)]
    return list({astuple(s)[1:-1]: s for s in reversed(shapes)}.values())[::-1]


def load_all(all_shapes):
    """List what to time: convolutions, deformable ones, poolings."""
    others = [DeformCase(*r) for r in rows("deform")] + [PoolCase(*r) for r in rows("pooling")]
    return load_cases(all_shapes) + others


def load_cases(all_shapes):
    """List convolutions: MobileNetV1, columns and rows, the wide, some or all of other networks."""
    layers = load("wide") + load("real_networks" if all_shapes else "representative")
    fixed = {"separable_conv2d": "mobilenet_v1", "spatially_separable_conv2d": "spatial"}
    cases = [Case(op, s) for op, name in fixed.items() for s in load(name)]
    return cases + [Case(_op(s), s) for s in layers]


def _op(shape):
    if shape.groups == shape.c > 1 and shape.m % shape.c == 0:
        return "depthwise_conv2d"
    unpadded = (shape.pt, shape.pl, shape.pb, shape.pr) == (0, 0, 0, 0)
    if (shape.kh, shape.kw, shape.groups) == (1, 1, 1) and unpadded:
        return "pointwise_conv2d"
    return "conv2d"
