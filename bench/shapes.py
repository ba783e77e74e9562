"""The shapes to time: data in shapes/*.txt."""

from dataclasses import astuple, dataclass
from pathlib import Path

import cases

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
    """An operation on a shape."""

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

    def call(self, data="integers"):
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
            **options,
        )


def load(name):
    """Read shapes/`name`.txt.

    Returns
    -------
    list of Shape
        Without repetitions: networks share shapes.
    """
    rows = [line.split() for line in (FOLDER / f"{name}.txt").read_text().splitlines()]
    shapes = [Shape(net, *map(int, sizes)) for net, *sizes in rows if net != "#"]
    return list({astuple(s)[1:-1]: s for s in reversed(shapes)}.values())[::-1]


def load_cases(all_shapes):
    """List what to time: MobileNetV1, columns and rows, a few or all layers of other networks."""
    layers = load("real_networks" if all_shapes else "representative")
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
