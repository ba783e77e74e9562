"""What the pooling functions refuse, and what they cost: the same for every ISA."""

import numpy as np
import pytest
from cases import LAYOUTS
from pooling import EXAMPLES, LAYERS, OPS, WINDOWED, example, pool, refuses
from test_arrays import read_only
from test_bad_inputs import (
    BEYOND_64_BITS,
    NEGATIVE,
    NOT_ARRAYS,
    NOT_INTEGERS,
    NOT_PAIRS,
    TOO_LARGE,
    WRONG,
    giant,
    name_of,
    overlapping_themselves,
)

import convkern as ck
from convkern import cost

BAD_OPTIONS = [
    ("kernel", WINDOWED, TypeError, NOT_INTEGERS),
    ("kernel", WINDOWED, ValueError, [0, (0, 2), (2, 0), *NEGATIVE]),
    ("kernel", WINDOWED, WRONG, NOT_PAIRS),
    ("kernel", WINDOWED, TOO_LARGE, [9, (1, 9), 2**31, 2**62, *BEYOND_64_BITS]),
    ("stride", WINDOWED, TypeError, [v for v in NOT_INTEGERS if v is not None]),
    ("stride", WINDOWED, ValueError, [0, (0, 0), (0, 1), (1, 0), *NEGATIVE]),
    ("stride", WINDOWED, WRONG, NOT_PAIRS),
    ("stride", WINDOWED, TOO_LARGE, BEYOND_64_BITS),
    ("dilation", WINDOWED, TypeError, NOT_INTEGERS),
    ("dilation", WINDOWED, ValueError, [0, (0, 0), (1, 0), *NEGATIVE]),
    ("dilation", WINDOWED, WRONG, NOT_PAIRS),
    ("dilation", WINDOWED, TOO_LARGE, [9, 2**31, 2**62, 2**63 - 1, *BEYOND_64_BITS]),
    ("padding", WINDOWED, TypeError, [v for v in NOT_INTEGERS if not isinstance(v, str | list)]),
    ("padding", WINDOWED, ValueError, [((-1, 0), (0, 0)), ((0, 0), (0, -1)), *NEGATIVE]),
    ("padding", WINDOWED, ValueError, ["SAME", "full", "", ((2**62, 2**62), (0, 0))]),
    ("padding", WINDOWED, WRONG, [(), (1,), (1, 1, 1), ((1, 1),), (1, None), [[1, 1], [1]]]),
    ("padding", WINDOWED, TOO_LARGE, BEYOND_64_BITS),
    ("ceil_mode", WINDOWED, TypeError, [None, 0, 1, "True", (True,), np.array(True)]),
    ("count_include_pad", ["avg_pool2d"], TypeError, [None, 0, 1, "True", (True,)]),
    ("keepdims", ["global_avg_pool2d"], TypeError, [None, 0, 1, "True", (True,)]),
    ("layout", OPS, WRONG, ["nhwc", "NHCW", "", None, 1, b"NHWC", "CHWN", ["NHWC"]]),
    ("threads", OPS, WRONG, [0, -1, 1.5, "2", (1, 1)]),
    ("threads", OPS, (*WRONG, OverflowError), BEYOND_64_BITS),
]


def valid(op, layout="NHWC"):
    """A call that is fine."""
    options = {"kernel": 2} if op in WINDOWED else {}
    return pool(op, (1, 8, 8, 3), layout=layout, data="integers", **options)


@pytest.mark.parametrize(
    ("option", "op", "exception", "value"),
    [
        pytest.param(option, op, exception, value, id=f"{option}-{op}-{name_of(value)}")
        for option, ops, exception, values in BAD_OPTIONS
        for op in ops
        for value in values
    ],
)
def test_bad_option(option, op, value, exception, layout):
    made = valid(op, layout)
    mention = () if exception is TOO_LARGE else (option,)
    refuses(made, exception, *mention, **{option: value})
    if option != "threads":
        with pytest.raises(exception, match=LAYERS[op].__name__):
            made.with_(**{option: value}).layer()(made.x)
        with pytest.raises(exception, match=f"cost.{op}"):
            getattr(cost, op)(made.x.shape, **{**made.options, option: value})


@pytest.mark.parametrize("value", NOT_ARRAYS, ids=name_of)
@pytest.mark.parametrize("op", OPS)
def test_not_an_array(op, value):
    refuses(valid(op).on(value), TypeError, "x")
    if value is not None:
        refuses(valid(op), TypeError, "out", out=value)


@pytest.mark.parametrize("dtype", ["f2", "g", "i1", "i4", "i8", "u1", "?", "c8", "O", "U1", ">f4"])
@pytest.mark.parametrize("op", OPS)
def test_dtype(op, dtype):
    made = valid(op)
    refuses(made.on(np.zeros(made.x.shape, dtype)), TypeError, "x")
    refuses(made, TypeError, "out", out=np.zeros(made.run().shape, dtype))


@pytest.mark.parametrize("op", OPS)
def test_shape(op, layout):
    made = valid(op, layout)
    for shape in ((), (3,), (8, 3), (1, 1, 8, 8, 3), (1,) * 32):
        refuses(made.on(np.zeros(shape, np.float32)), ValueError, "x", str(shape))
    for shape in ((1, 0, 8, 3), (1, 8, 0, 3), (1, 8, 8, 0), (0, 8, 8, 0), (0, 8, 3), (0, 0, 0, 0)):
        refuses(made.on(np.zeros(shape, np.float32)), ValueError, "x", str(shape))


@pytest.mark.parametrize("op", WINDOWED)
def test_kernel_larger_than_the_padded_image(op, layout):
    for size, window, padded in (
        ((2, 8), {"kernel": 3}, "2x8"),
        ((8, 2), {"kernel": 3}, "8x2"),
        ((2, 1), {"kernel": 5, "padding": ((0, 0), (1, 1))}, "2x3"),
        ((4, 4), {"kernel": 3, "dilation": 2}, "4x4"),
        ((3, 3), {"kernel": 6, "ceil_mode": True, "stride": 3}, "3x3"),
    ):
        refuses(pool(op, (1, *size, 3), layout=layout, **window), ValueError, "kernel", padded)
        refuses(pool(op, (0, *size, 3), layout=layout, **window), ValueError, "kernel", padded)


@pytest.mark.parametrize("op", OPS)
def test_bad_out(op, layout):
    made = valid(op, layout)
    y = made.run()
    shapes = [y.shape[1:], (1, *y.shape), (2, *y.shape[1:]), (y.size,), ()]
    shapes += [tuple(n + (i == axis) for i, n in enumerate(y.shape)) for axis in range(4)]
    for shape in shapes:
        out = np.zeros(shape, np.float32)
        refuses(made, ValueError, "out", str(shape), str(y.shape), out=out)
        assert not out.any()
    refuses(made, TypeError, "out", "float32", out=np.zeros(y.shape, np.float64))
    refuses(made, ValueError, "out", "read-only", out=read_only(y))
    refuses(made, ValueError, "out", out=np.broadcast_to(y[..., :1], y.shape))
    if op in WINDOWED:  # else two steps of 4 bytes are fine, along axes of one element
        for out in overlapping_themselves(y.shape):
            refuses(made, ValueError, "out", str(out.strides), "overlap", out=out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_too_large(layout):
    for op in WINDOWED:
        one = pool(op, (1, 1, 1, 3), kernel=1, stride=1, layout=layout)
        for padding in (2**20, 2**40):
            refuses(one, MemoryError, padding=padding)
            getattr(cost, op)(one.x.shape, **one.options | {"padding": padding})  # takes no memory
        for shape in ((2**15,) * 4, (2**60, 1, 1, 1), (1, 2**60, 1, 1), (2**40, 3, 3, 2**15)):
            with pytest.raises(TOO_LARGE):
                one.on(giant(*shape)).run()
            with pytest.raises(TOO_LARGE):
                one.on(giant(*shape)).run(padding=2**61, stride=2**40)
    with pytest.raises(TOO_LARGE):
        ck.global_avg_pool2d(giant(1, 2**30, 2**30, 3), layout=layout)


def test_signatures():
    x = np.zeros((1, 4, 4, 2), np.float32)
    for op in WINDOWED:
        with pytest.raises(TypeError, match="positional"):
            getattr(ck, op)(x, 2, 2)
        with pytest.raises(TypeError, match="kernel"):
            getattr(ck, op)(x)
    with pytest.raises(TypeError, match="positional"):
        ck.global_avg_pool2d(x, True)
    with pytest.raises(TypeError, match="count_include_pad"):
        ck.max_pool2d(x, 2, count_include_pad=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_layer_is_immutable(name):
    layer = example(name).layer()
    for attribute in ("kernel", "stride", "isa", "anything"):
        with pytest.raises(AttributeError):
            setattr(layer, attribute, 2)
    with pytest.raises(AttributeError):
        del layer.isa


@pytest.mark.parametrize("op", OPS)
def test_layer_refuses(op, layout):
    made = valid(op, layout)
    layer = made.layer()
    for x, exception in (
        (made.x[0, 0], ValueError),
        (made.x.astype("f2"), TypeError),
        (made.x.tolist(), TypeError),
        (None, TypeError),
        (made.x[:, :0], ValueError),
    ):
        with pytest.raises(exception, match="x"):
            layer(x)
    for shape in ((8, 8), (1, 1, 8, 8, 3), (1, 0, 8, 3), (1, -8, 8, 3)):
        with pytest.raises(ValueError, match="x"):
            layer.out_shape(shape)
    for shape in (None, 8, "1883", (1, 8.0, 8, 3)):
        with pytest.raises(TypeError, match="x_shape"):
            layer.out_shape(shape)
    with pytest.raises(TypeError):
        layer(made.x, residual=made.run())
    with pytest.raises(TypeError, match="out"):
        LAYERS[op](**made.options, out=None)


@pytest.mark.parametrize("name", EXAMPLES)
def test_cost(name, layout):
    made = example(name, layout=layout)
    got = getattr(cost, made.op)(made.x.shape, **made.options)
    assert got == made.layer().cost(made.x.shape)
    assert got == cost.Cost(macs=0, params=0, bytes=made.x.nbytes + made.run().nbytes)
    double = getattr(cost, made.op)(made.x.shape, **made.options, dtype="float64")
    assert double == made.layer().cost(made.x.shape, "float64") == got + got
    with pytest.raises(TypeError, match="float16"):
        made.layer().cost(made.x.shape, "float16")
