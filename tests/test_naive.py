"""The textbook loops, against the same oracle."""

import numpy as np
import pytest
from cases import ACTIVATIONS, EXAMPLES, call, check, example, nchw

import convkern as ck


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name, activation, layout, data):
    made = example(name, activation=activation, layout=layout, residual=True, data=data)
    check(made, made.run(ck.naive))


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (5, 4)], ids=str)
@pytest.mark.parametrize("op", ["conv2d", "depthwise_conv2d", "separable_conv2d"])
def test_windows(op, kernel, data):
    for padding in ("valid", "same", "same_lower", 1, ((2, 0), (0, 3))):
        for stride, dilation in ((1, 1), (2, 1), ((1, 3), (2, 1))):
            made = call(
                op,
                (1, 9, 8, 3),
                kernel=kernel,
                padding=padding,
                stride=stride,
                dilation=dilation,
                data=data,
            )
            check(made, made.run(ck.naive))


@pytest.mark.parametrize("name", EXAMPLES)
def test_batches(name):
    x = EXAMPLES[name]["x"]
    for shape in ((0, *x[1:]), (3, *x[1:]), x[1:]):
        made = example(name, x=shape)
        check(made, made.run(ck.naive))


@pytest.mark.parametrize("name", EXAMPLES)
def test_integers_agree_with_the_kernels(name, isa):
    made = example(name, data="integers")
    assert (made.run(ck.naive) == made.run()).all()
    made = nchw(made)
    assert (made.run(ck.naive) == made.run()).all()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_specials(name, activation, special):
    made = example(name, activation=activation, data="integers", residual=True)
    made.x[0, 1, 1, 1] = special
    made.weights[0].reshape(-1)[1] = special
    made.options["residual"][0, 0, 0, :2] = special, -special
    if np.isfinite(special):  # overflows to an infinity here, but not in the oracle
        made.run(ck.naive)
    else:
        check(made, made.run(ck.naive))
