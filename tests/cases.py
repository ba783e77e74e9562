"""Calls of the operations: data for both the library and the oracle, and the check between them."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import reference

import convkern as ck

OPS = [
    "conv2d",
    "depthwise_conv2d",
    "pointwise_conv2d",
    "separable_conv2d",
    "spatially_separable_conv2d",
]
LAYOUTS = ["NHWC", "NCHW"]
DATA = ["integers", "reals", "doubles"]
ACTIVATIONS = [None, "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", (-1.5, 2.5)]
EXACT_ACTIVATIONS = (None, "relu", "relu6")  # and clamps: they only choose between exact values
_forced = os.environ.get("CONVKERN_ISA")
ISAS = [_forced] if _forced else ck.available_isas()

# One of each kind, with channels that no vector length divides: for what does not depend on shape.
EXAMPLES = {
    "conv2d_3x3": {"op": "conv2d", "x": (2, 6, 7, 5), "outputs": 19, "padding": 1},
    "conv2d_3x3_stride_2": {
        "op": "conv2d",
        "x": (2, 7, 9, 3),
        "outputs": 33,
        "padding": "same",
        "stride": 2,
    },
    "conv2d_2x5_dilated": {
        "op": "conv2d",
        "x": (1, 8, 9, 18),
        "outputs": 7,
        "kernel": (2, 5),
        "padding": ((1, 0), (2, 3)),
        "dilation": (2, 1),
    },
    "conv2d_grouped": {"op": "conv2d", "x": (2, 5, 6, 6), "outputs": 15, "groups": 3, "padding": 1},
    "conv2d_1x1": {"op": "conv2d", "x": (2, 5, 5, 17), "outputs": 9, "kernel": (1, 1)},
    "depthwise_3x3": {"op": "depthwise_conv2d", "x": (2, 7, 6, 19), "padding": 1},
    "depthwise_3x3_stride_2": {
        "op": "depthwise_conv2d",
        "x": (2, 9, 8, 37),
        "padding": "same",
        "stride": 2,
    },
    "depthwise_5x5_dilated": {
        "op": "depthwise_conv2d",
        "x": (1, 11, 9, 13),
        "kernel": (5, 5),
        "padding": 2,
        "dilation": 2,
    },
    "depthwise_multiplier": {
        "op": "depthwise_conv2d",
        "x": (2, 5, 6, 7),
        "multiplier": 3,
        "padding": "same_lower",
    },
    "pointwise": {"op": "pointwise_conv2d", "x": (2, 5, 7, 23), "outputs": 35},
    "pointwise_stride_2": {"op": "pointwise_conv2d", "x": (2, 5, 7, 9), "outputs": 11, "stride": 2},
    "separable_3x3": {"op": "separable_conv2d", "x": (2, 7, 6, 19), "outputs": 37, "padding": 1},
    "separable_3x3_stride_2": {
        "op": "separable_conv2d",
        "x": (2, 8, 9, 33),
        "outputs": 21,
        "padding": "same",
        "stride": 2,
    },
    "separable_5x5_multiplier": {
        "op": "separable_conv2d",
        "x": (1, 6, 9, 5),
        "outputs": 10,
        "kernel": (5, 5),
        "multiplier": 2,
        "padding": 2,
    },
    "spatial_5x3": {
        "op": "spatially_separable_conv2d",
        "x": (2, 7, 6, 19),
        "kernel": (5, 3),
        "padding": ((2, 1), (1, 3)),
    },
    "spatial_2x5_stride_2": {
        "op": "spatially_separable_conv2d",
        "x": (2, 9, 8, 37),
        "kernel": (2, 5),
        "padding": "same",
        "stride": 2,
        "dilation": (1, 2),
    },
}

LANES = (1, 4, 8, 16)
# Below, at and above every vector length and small tile width, and primes.
CHANNELS = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    11,
    13,
    15,
    16,
    17,
    23,
    24,
    25,
    31,
    32,
    33,
    37,
    47,
    48,
    49,
    64,
    67,
)


@contextmanager
def using(isa):
    """Force an instruction set, and name it in what fails: for loops over them under one oracle."""
    with ck.use_isa(isa):
        try:
            yield
        except AssertionError as error:
            error.add_note(f"with {isa}")
            raise


def pairwise(**axes):
    """List a few combinations of values in which any two values of two axes meet at least once.

    Most faults take one or two unusual values, not five at once: Kuhn, Wallace and Gallo, "Software
    Fault Interactions and Implications for Software Testing", IEEE TSE 30(6), 2004. A full product
    of the same axes takes many times as long.

    Parameters
    ----------
    **axes : sequence
        Values by name.

    Returns
    -------
    list of dict
        From names to values.
    """
    spots = [(name, i) for name, values in axes.items() for i in range(len(values))]
    apart = {frozenset(pair): None for pair in combinations(spots, 2) if pair[0][0] != pair[1][0]}
    rows = []
    while apart:  # greedily: two that have not met, and of each other axis whom they know least
        row = dict(next(iter(apart)))
        for name, values in axes.items():
            if name not in row:
                new = [
                    sum(frozenset([(name, i), met]) in apart for met in row.items())
                    for i in range(len(values))
                ]
                row[name] = new.index(max(new))
        for pair in combinations(row.items(), 2):
            apart.pop(frozenset(pair), None)
        rows.append({name: axes[name][i] for name, i in row.items()})
    return rows


def channels_id(n):
    """Name the edge that `n` channels are at, as in "channels_7_lt_lanes8"."""
    for relation, lanes in (("eq", n), ("lt", n + 1), ("gt", n - 1)):
        if lanes in LANES:
            return f"channels_{n}_{relation}_lanes{lanes}"
    return f"channels_{n}" + ("_div_lanes8" if n % 8 == 0 else "")


@dataclass(frozen=True)
class Call:
    """One call of an operation.

    Attributes
    ----------
    op : str
    weights : tuple of ndarray
        ``(w,)``, or ``(dw, pw)`` for a separable convolution, or ``(column, row)``.
    biases : tuple of (ndarray or None)
        As many as weights; one where those are a column and a row.
    """

    op: str
    x: np.ndarray
    weights: tuple
    biases: tuple
    options: dict

    @property
    def arrays(self):
        """The positional arguments."""
        return (self.x, *self.weights, *self.biases)

    def run(self, module=ck, **extra):
        """Call the library, or a module with the same signatures."""
        return getattr(module, self.op)(*self.arrays, **{**self.options, **extra})

    def layer(self):
        """Pack the weights into the layer of the operation."""
        options = {k: v for k, v in self.options.items() if k != "residual"}
        layers = {
            "conv2d": ck.Conv2d,
            "depthwise_conv2d": ck.DepthwiseConv2d,
            "pointwise_conv2d": ck.PointwiseConv2d,
            "separable_conv2d": ck.SeparableConv2d,
            "spatially_separable_conv2d": ck.SpatiallySeparableConv2d,
        }
        return layers[self.op](*self.weights, *self.biases, **options)

    def want(self):
        """Ask the oracle."""
        return self._oracle(lambda op, *arrays, **options: op(*arrays, **options))

    def bound(self):
        """Bound the error of every element."""
        return self._oracle(reference.bound, dtype=self.x.dtype)

    def _oracle(self, ask, **extra):
        wide = np.longdouble if self.x.dtype == np.float64 else np.float64
        arrays = [None if a is None else a.astype(wide) for a in self.arrays]
        return ask(getattr(reference, self.op), *arrays, **self.options, **extra)

    def with_(self, **options):
        """Copy the call with other options."""
        return replace(self, options={**self.options, **options})


# Groups, terms and outputs of each, of pointwise convolutions that go in bundles: alone in one, or
# with a last that is smaller; of vectors that are full or not; over more than one panel.
BUNDLES = [
    (2, 5, 4),
    (3, 8, 2),
    (4, 6, 12),
    (5, 12, 3),
    (9, 2, 1),
    (17, 4, 2),
    (7, 3, 6),
    (3, 4, 16),
]


def call(
    op,
    x,
    *,
    kernel=(3, 3),
    outputs=8,
    multiplier=1,
    groups=1,
    data="reals",
    bias=True,
    residual=False,
    layout="NHWC",
    seed=0,
    **options,
):
    """Make up a call of `op`.

    Parameters
    ----------
    x : tuple of int
        Shape of the images, (B, H, W, C) or (H, W, C) whatever the layout.
    kernel, outputs, multiplier, groups
        Those that `op` has shape its weights; the others are ignored.
    data : {"integers", "reals", "doubles", "wide_range"}
        Integers small enough for every result to be exact; normal deviates; the same in float64,
        all else being float32; normal deviates over twelve decades, whose sums cancel.
    """
    rng = np.random.default_rng(seed)
    channels = x[-1]
    inner = channels * multiplier
    depthwise = (*kernel, channels, multiplier) if multiplier > 1 else (*kernel, channels)
    shapes = {
        "conv2d": [(*kernel, channels // groups, outputs)],
        "depthwise_conv2d": [depthwise],
        "pointwise_conv2d": [(channels, outputs)],
        "separable_conv2d": [depthwise, (inner, outputs)],
        "spatially_separable_conv2d": [(n, channels) for n in kernel],
    }[op]
    if op == "conv2d" and groups != 1:
        options["groups"] = groups
    counts = {
        "depthwise_conv2d": [inner],
        "separable_conv2d": [inner, outputs],
        "spatially_separable_conv2d": [channels],
    }.get(op, [outputs])
    draw = {"integers": _integers, "wide_range": _wide_range}.get(data, _reals)
    dtype = np.float64 if data == "doubles" else np.float32
    weights = [draw(rng, s).astype(dtype) for s in shapes]
    biases = [draw(rng, (n,)).astype(dtype) if bias else None for n in counts]
    made = Call(op, draw(rng, x).astype(dtype), tuple(weights), tuple(biases), options)
    if residual:
        made = made.with_(residual=draw(rng, made.want().shape).astype(dtype))
    return made if layout == "NHWC" else nchw(made)


def example(name, **changes):
    """Make up the call of this name in `EXAMPLES`, with changes."""
    return call(**{**EXAMPLES[name], **changes})


def nchw(made):
    """Turn an NHWC call into its NCHW twin: the same numbers, every array contiguous."""
    weights = list(made.weights)
    if made.op in ("depthwise_conv2d", "separable_conv2d"):
        dw = weights[0]
        weights[0] = dw.reshape(*dw.shape[:2], 1, -1)
    weights = tuple(_oihw(w) for w in weights)
    twin = replace(made, x=images_nchw(made.x), weights=weights).with_(layout="NCHW")
    residual = made.options.get("residual")
    return twin if residual is None else twin.with_(residual=images_nchw(residual))


def images_nchw(x):
    """Move the channels of (B, H, W, C) or (H, W, C) before the rows."""
    return np.ascontiguousarray(np.moveaxis(x, -1, -3))


def _oihw(w):
    return np.ascontiguousarray(w.T if w.ndim <= 2 else w.transpose(3, 2, 0, 1))


def _integers(rng, shape):
    return rng.integers(-6, 7, shape)


def _reals(rng, shape):
    return rng.standard_normal(shape)


def _wide_range(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6, shape)


class HasArray:
    """Something NumPy sees through ``__array__``."""

    def __init__(self, a):
        self._array = a

    def __array__(self, dtype=None, copy=None):
        return self._array.copy() if copy else self._array


class HasDLPack:
    """Something NumPy sees through DLPack alone."""

    def __init__(self, a):
        self._array = a

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def as_memoryview(a):
    """See an array through the buffer protocol alone."""
    return memoryview(a)


def is_exact(made):
    """Whether integers come out exact: no activation that rounds."""
    activations = (made.options.get("activation"), made.options.get("dw_activation"))
    return all(a in EXACT_ACTIVATIONS or isinstance(a, tuple) for a in activations)


def check(made, got=None):
    """Compare a result with the oracle's: exactly for integers, within the bound otherwise."""
    got = made.run() if got is None else got
    want = made.want()
    assert type(got) is np.ndarray
    assert got.dtype == made.x.dtype
    assert got.shape == want.shape
    integers = all(a is None or np.array_equal(a, np.rint(a)) for a in made.arrays)
    if integers and is_exact(made):
        np.testing.assert_array_equal(got, want)
    else:
        assert_within(got, want, made.bound())


def assert_within(got, want, bound):
    """Assert that NaN and Inf are where they should be, and that all else is within the bound."""
    special = ~np.isfinite(bound)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[special], want[special].astype(got.dtype))
    error = np.abs(got[~special] - want[~special])
    excess = error - bound[~special]
    assert (excess <= 0).all(), (
        f"{(~(excess <= 0)).sum()} of {got.size} elements are off by up to "
        f"{np.nanmax(error / bound[~special]):.3g} times the bound"
    )


def assert_same_bits(a, b):
    """Assert equality of every bit: the sign of zero and the payload of NaN too."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    bits = f"u{a.itemsize}"
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)
    )


def python(program, **environment):
    """Run a program in an interpreter of its own, with convkern's variables unset.

    -P: the source tree in the current directory is not the package that was installed.
    """
    ours = ("CONVKERN_ISA", "CONVKERN_NUM_THREADS", "OMP_NUM_THREADS")
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    inherited["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
