"""Seeded random calls, larger and odder than those that hypothesis shrinks to.

Of each: every ISA against one oracle, on integers and on reals, and all that must not change a bit:
the layout, the strides of every array, the other images of the batch.
"""

from dataclasses import replace

import numpy as np
import pytest
import reference
from cases import (
    ACTIVATIONS,
    ISAS,
    OPS,
    assert_same_bits,
    assert_within,
    call,
    images_nchw,
    is_exact,
    nchw,
    using,
)
from test_arrays import STRIDED

CALLS = 500
TERMS = 600  # of a sum, about, at most: an oracle's time goes with them


def random_call(seed, data):
    """Make up an NHWC call; the same of any data."""
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    def up_to(most):
        return int(np.exp(rng.uniform(0, np.log(most + 1))))  # as many below its root as above

    op = OPS[seed % len(OPS)]
    options = {"stride": (up_to(4), up_to(4)), "activation": pick(*ACTIVATIONS)}
    kernel = (1, 1)
    if op != "pointwise_conv2d":
        k, other = up_to(11), up_to(11)
        kernel = pick((3, 3), (k, k), (1, k), (k, 1), (k, other))
        pads = rng.integers(0, 9, (2, 2))
        options["dilation"] = (up_to(3), up_to(3))
        options["padding"] = pick("same", "same_lower", "valid", int(pads[0, 0]), pads.tolist())
    if op == "separable_conv2d":
        options["dw_activation"] = pick(*ACTIVATIONS)
    size = up_to(24), up_to(24)
    if not fits(size, kernel, **options):
        options["padding"] = pick("same", "same_lower")
    most = max(4, TERMS // (kernel[0] * kernel[1]))
    groups, inputs, outputs = 1, up_to(most), up_to(100)
    if op == "conv2d" and pick(True, False):
        groups = pick(2, 3, 4, inputs)
        inputs, outputs = groups * -(-inputs // groups), groups * -(-outputs // groups)
    return call(
        op,
        (*pick((), (1,), (2,), (4,)), *size, inputs),
        kernel=kernel,
        outputs=outputs,
        groups=groups,
        multiplier=pick(1, 1, 2, 3, 4),
        bias=pick(True, False),
        residual=pick(True, False),
        data=data,
        seed=seed,
        **options,
    )


def fits(size, kernel, *, stride, padding=0, dilation=(1, 1), **_):
    """Whether the dilated kernel is no larger than the padded image."""
    pads = reference.resolve_padding(padding, size, kernel, stride, dilation)
    reach = np.multiply(dilation, np.subtract(kernel, 1)) + 1
    return (np.sum(pads, axis=1) + size >= reach).all()


def strided(made, kind):
    """Copy a call with all of its arrays laid out by `kind`."""
    options = {
        k: kind(v) if k == "residual" else v for k, v in made.options.items() if v is not None
    }
    weights, biases = (
        tuple(a if a is None else kind(a) for a in arrays) for arrays in (made.weights, made.biases)
    )
    return replace(made, x=kind(made.x), weights=weights, biases=biases, options=options)


def image_of(made, index):
    """Copy a call with one image of the batch."""
    one = replace(made, x=made.x[index])
    residual = made.options.get("residual")
    return one if residual is None else one.with_(residual=residual[index])


@pytest.mark.parametrize("seed", range(CALLS))
def test_any_call(seed):
    made = random_call(seed, "doubles" if seed % 3 == 0 else "reals")
    kind = STRIDED[seed % len(STRIDED)]
    odd, want, bound = strided(made, kind), made.want(), made.bound()
    for isa in ISAS:
        with using(isa):
            y = made.run()
            assert_within(y, want, bound)
            assert_same_bits(nchw(made).run(), images_nchw(y))
            assert_same_bits(np.ascontiguousarray(odd.run(out=kind(np.zeros_like(y)))), y)
            if y.ndim == 4:
                assert_same_bits(image_of(made, -1).run(), y[-1])


@pytest.mark.parametrize("seed", range(CALLS))
def test_any_call_on_integers(seed):
    made = random_call(seed, "integers")
    if not is_exact(made):
        made = made.with_(activation=None)
        if made.op == "separable_conv2d":
            made = made.with_(dw_activation="relu6")
    want = made.want()
    assert np.abs(want).max() < 2**24
    for isa in ISAS:
        with using(isa):
            np.testing.assert_array_equal(made.run(), want)
            np.testing.assert_array_equal(nchw(made).run(), images_nchw(want))


def test_the_oracle_agrees_with_torch():
    torch = pytest.importorskip("torch")

    def convolve(x, w, bias, *, stride, groups=1, padding=0, dilation=(1, 1), **_):
        """What both have: x and w as torch has them, padding on any side."""
        (top, bottom), (left, right) = reference.resolve_padding(
            padding, x.shape[2:], w.shape[2:], stride, dilation
        )
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        return torch.nn.functional.conv2d(x, w, bias, stride, 0, dilation, groups)

    for seed in range(0, CALLS, 3):
        made = nchw(random_call(seed, "integers"))
        if made.op in ("separable_conv2d", "spatially_separable_conv2d"):
            continue  # two of the others
        made = made.with_(activation=None, residual=None)
        x, w, bias = (None if a is None else torch.from_numpy(a).double() for a in made.arrays)
        x = x if x.ndim == 4 else x[None]
        w = w if w.ndim == 4 else w[:, :, None, None]
        options = dict(made.options)
        if made.op == "depthwise_conv2d":
            options["groups"] = x.shape[1]
        y = convolve(x, w, bias, **options).numpy()
        np.testing.assert_array_equal(y if made.x.ndim == 4 else y[0], made.want())
