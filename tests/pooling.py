"""Calls of the pooling functions: data for both the library and the oracle, and the check."""

from dataclasses import dataclass

import numpy as np
import pytest
import reference
from cases import assert_within, images_nchw

import convkern as ck

OPS = ["max_pool2d", "avg_pool2d", "global_avg_pool2d"]
WINDOWED = OPS[:2]
LAYERS = {
    "max_pool2d": ck.MaxPool2d,
    "avg_pool2d": ck.AvgPool2d,
    "global_avg_pool2d": ck.GlobalAvgPool2d,
}

# One of each kind, with channels that no vector length divides: for what does not depend on shape.
EXAMPLES = {
    "max_2x2": {"op": "max_pool2d", "x": (2, 6, 8, 19), "kernel": 2},
    "max_3x3_stride_2": {
        "op": "max_pool2d",
        "x": (2, 9, 10, 33),
        "kernel": 3,
        "stride": 2,
        "padding": 1,
    },
    "max_2x5_dilated": {
        "op": "max_pool2d",
        "x": (1, 8, 12, 18),
        "kernel": (2, 5),
        "stride": (1, 3),
        "dilation": (3, 2),
        "padding": ((1, 0), (2, 3)),
    },
    "max_ceil_few_channels": {
        "op": "max_pool2d",
        "x": (3, 8, 9, 3),
        "kernel": 3,
        "stride": 2,
        "ceil_mode": True,
    },
    "avg_2x2": {"op": "avg_pool2d", "x": (2, 6, 8, 35), "kernel": 2},
    "avg_3x3": {"op": "avg_pool2d", "x": (2, 7, 6, 17), "kernel": 3, "stride": 1, "padding": 1},
    "avg_3x3_counting": {
        "op": "avg_pool2d",
        "x": (2, 8, 9, 21),
        "kernel": 3,
        "stride": 2,
        "padding": "same",
        "count_include_pad": True,
    },
    "avg_ceil_few_channels": {
        "op": "avg_pool2d",
        "x": (3, 7, 10, 2),
        "kernel": (3, 4),
        "stride": 3,
        "padding": 1,
        "ceil_mode": True,
    },
    "global": {"op": "global_avg_pool2d", "x": (3, 5, 7, 37)},
    "global_few_channels": {"op": "global_avg_pool2d", "x": (5, 7, 7, 3), "keepdims": False},
}


@dataclass(frozen=True)
class Pool:
    """One call of a pooling function."""

    op: str
    x: np.ndarray
    options: dict

    def run(self, **extra):
        """Call the library."""
        return getattr(ck, self.op)(self.x, **{**self.options, **extra})

    def layer(self):
        """Make the layer of the operation."""
        return LAYERS[self.op](**self.options)

    def on(self, x):
        """The same pooling of another image."""
        return Pool(self.op, x, self.options)

    def with_(self, **options):
        """Copy the call with other options."""
        return Pool(self.op, self.x, {**self.options, **options})

    def want(self):
        """Ask the oracle."""
        return getattr(reference, self.op)(self._wide(), **self.options)

    def bound(self):
        """Bound the error of every element."""
        kernel = self.options.get("kernel", self._size())
        terms = int(np.prod(np.broadcast_to(kernel, 2)))
        return reference.mean_bound(self.on(np.abs(self.x)).want(), terms, self.x.dtype)

    def _wide(self):
        return self.x.astype(np.longdouble if self.x.dtype == np.float64 else np.float64)

    def _size(self):
        return self.x.shape[-3:-1] if self.options.get("layout") != "NCHW" else self.x.shape[-2:]


def pool(op, x, *, data="reals", layout="NHWC", seed=0, **options):
    """Make up a call of `op`; `x` is (B, H, W, C) or (H, W, C) whatever the layout."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-99, 99, x) if data == "integers" else rng.standard_normal(x)
    image = image.astype(np.float64 if data == "doubles" else np.float32)
    if layout == "NCHW":
        image, options = images_nchw(image), {**options, "layout": layout}
    return Pool(op, image, options)


def example(name, **changes):
    """Make up the call of this name in `EXAMPLES`, with changes."""
    return pool(**{**EXAMPLES[name], **changes})


def nchw(made):
    """Turn an NHWC call into its NCHW twin."""
    return made.on(images_nchw(made.x)).with_(layout="NCHW")


def check(made, got=None):
    """Compare with the oracle: exactly for maxima and integers, within the bound otherwise."""
    got = made.run() if got is None else got
    want = made.want()
    assert type(got) is np.ndarray
    assert got.dtype == made.x.dtype
    assert got.shape == want.shape
    # One division of exact sums: rounding its quotient twice gives what rounding it once does.
    if made.op == "max_pool2d" or np.array_equal(made.x, np.rint(made.x)):
        np.testing.assert_array_equal(got, want.astype(got.dtype))
    else:
        assert_within(got, want, made.bound())


def refuses(made, exception, *mentions, **extra):
    """Assert that a call raises, with a message that mentions the operation and all it should."""
    with pytest.raises(exception) as raised:
        made.run(**extra)
    for mention in (made.op, *mentions):
        assert mention in str(raised.value), str(raised.value)
