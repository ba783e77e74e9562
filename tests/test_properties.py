"""Any call at all: shapes, windows, groups and layouts that hypothesis thinks of."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import reference
from cases import ACTIVATIONS, DATA, LAYOUTS, OPS, assert_same_bits, call, check
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import convkern as ck

SETTINGS = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)

small = st.integers(0, 4)
channels = st.integers(1, 35)
pads = st.one_of(
    small,
    st.tuples(small, small),
    st.tuples(st.tuples(small, small), st.tuples(small, small)),
    st.sampled_from(["valid", "same", "same_lower"]),
)


def one_or_two(largest):
    side = st.integers(1, largest)
    return st.one_of(side, st.tuples(side, side))


@st.composite
def calls(draw):
    """Draw a valid call of any operation."""
    op = draw(st.sampled_from(OPS))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    groups = draw(st.integers(1, 5)) if op == "conv2d" else 1
    inputs, outputs = draw(channels), draw(channels)
    if groups > 1:
        inputs, outputs = groups * (1 + inputs // groups), groups * (1 + outputs // groups)
    options = {
        "stride": draw(one_or_two(4)),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "data": draw(st.sampled_from(DATA)),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }
    kernel = (1, 1)
    if op != "pointwise_conv2d":
        kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        options |= {"padding": draw(pads), "dilation": draw(one_or_two(3))}
        assume(fits((height, width), kernel, options))
    if op == "separable_conv2d":
        options["dw_activation"] = draw(st.sampled_from(ACTIVATIONS))
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    return call(
        op,
        (*batch, height, width, inputs),
        kernel=kernel,
        outputs=outputs,
        groups=groups,
        multiplier=draw(st.integers(1, 3)),
        residual=draw(st.booleans()),
        **options,
    )


def fits(size, kernel, options):
    """Whether the dilated kernel is no larger than the padded image."""
    stride, dilation = (
        np.broadcast_to(options["stride"], 2),
        np.broadcast_to(options["dilation"], 2),
    )
    padding = reference.resolve_padding(options["padding"], size, kernel, stride, dilation)
    extent = dilation * (np.array(kernel) - 1) + 1
    return (np.sum(padding, axis=1) + size >= extent).all()


@pytest.mark.usefixtures("isa")
@SETTINGS
@given(calls())
def test_any_call(made):
    y = made.run()
    check(made, y)
    out = np.full((*y.shape[:-1], y.shape[-1] + 1), np.nan, y.dtype)
    made.run(out=out[..., :-1])
    assert_same_bits(out[..., :-1], y)
    assert np.isnan(out[..., -1]).all()
    assert_same_bits(made.layer()(made.x, residual=made.options.get("residual")), y)


@SETTINGS
@given(calls())
def test_any_naive_call(made):
    check(made, made.run(ck.naive))


@SETTINGS
@given(calls(), st.data())
def test_any_wrong_option_is_an_exception(made, data):
    wrong = st.sampled_from(
        [
            0,
            -1,
            1.5,
            "1",
            b"1",
            None,
            (),
            (1,),
            (1, 2, 3),
            (1, 0),
            [1, None],
            (1, (2, 3)),
            {},
            2**31,
            2**62,
            2**63,
            2**64,
            -(2**63),
            float("nan"),
            float("inf"),
            1j,
            object(),
            np.array([[1, 2]]),
            ((1, 2), 3),
            ((1, 2, 3), (1, 2)),
            ((-1, 0), (0, 0)),
            "SAME",
            "full",
        ]
    )
    names = [k for k in ("stride", "padding", "dilation", "groups") if k in made.options]
    changes = {k: data.draw(wrong) for k in data.draw(st.sets(st.sampled_from(names), min_size=1))}
    try:
        y = made.run(**changes)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        message = str(error)
    else:  # such as padding=0 or stride=2**31
        message = made.op
        if not any(isinstance(v, int) and v > 100 for v in changes.values()):  # the oracle pads
            check(made.with_(**changes), y)
    assert made.op in message


def wrong_arrays(a):
    """List what a caller may pass instead of an array: other types, shapes and strides."""
    shapes = [a.shape[1:], (1, *a.shape), a.shape[::-1], (a.size,), ()]
    for axis, n in enumerate(a.shape):
        shapes += [(*a.shape[:axis], size, *a.shape[axis + 1 :]) for size in (0, n - 1, n + 1)]
    giants = [(2**60,) * a.ndim, (0, *(2**31,) * (a.ndim - 1)), (2**50, *a.shape[1:])]
    for shape in giants:
        with contextlib.suppress(ValueError):  # what NumPy itself refuses
            yield as_strided(a, shape, (0,) * len(shape))
    for shape in shapes:
        if min(shape, default=0) >= 0:
            yield np.ones(shape, a.dtype)
    for dtype in ("f2", "f4", "f8", ">f4", ">f8", "g", "i8", "c8", "O", "?", "M8[s]"):
        yield np.ones(a.shape, dtype)
    yield from (None, a.tolist(), 1.0, "x", object(), np.float32(1))
    yield as_strided(a, a.shape, (0,) * a.ndim)


@settings(SETTINGS, max_examples=150)
@given(calls(), st.data())
def test_any_wrong_array_is_an_exception(made, data):
    names = {"x": [made.x], "weights": made.weights, "biases": made.biases}
    field = data.draw(st.sampled_from(list(names)))
    index = data.draw(st.integers(0, len(names[field]) - 1))
    like = names[field][index]
    wrong = data.draw(st.sampled_from([*wrong_arrays(made.x if like is None else like)]))
    arrays = [*names[field][:index], wrong, *names[field][index + 1 :]]
    odd = replace(made, **{field: wrong if field == "x" else tuple(arrays)})
    try:
        y = odd.run()
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        message = str(error)
    else:  # such as no bias, or one pixel everywhere
        message = made.op
        check(odd, y)
    assert made.op in message


@settings(SETTINGS, max_examples=150)
@given(calls(), st.data())
def test_any_wrong_out_is_an_exception(made, data):
    y = made.run()
    out = data.draw(st.sampled_from([*wrong_arrays(y)]))
    try:
        assert_same_bits(made.run(out=out), y)
    except (TypeError, ValueError) as error:
        message = str(error)
    else:  # such as none
        message = f"{made.op}: out"
    assert made.op in message
    assert "out" in message
