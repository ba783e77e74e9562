"""Costs against published numbers, against the operations, and with bad arguments."""

import numpy as np
import pytest
from cases import OPS, call

import convkern as ck
from convkern import cost
from convkern.cost import Cost

# Howard et al., "MobileNets", arXiv 1704.04861, 2017: table 3, an internal layer.
INTERNAL_LAYER = (14, 14, 512)


def test_mobilenets_table_3_standard():
    got = cost.conv2d(INTERNAL_LAYER, (3, 3, 512, 512), padding="same")
    assert round(got.macs / 1e6) == 462
    assert round(got.params / 1e6, 2) == 2.36


def test_mobilenets_table_3_separable():
    got = cost.separable_conv2d(INTERNAL_LAYER, (3, 3, 512), (512, 512), padding="same")
    assert round(got.macs / 1e6, 1) == 52.3
    assert round(got.params / 1e6, 2) == 0.27


def test_reduction_of_1024_channels():
    assert round(1 / cost.speedup(1024, 3), 3) == 0.112


def test_mobilenets_table_4_whole_network():
    """569 million mult-adds and 4.2 million parameters: tables 1 and 4 of the paper."""
    blocks = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    blocks += [(256, 512, 2), *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1)]
    size = 112
    total = cost.conv2d((224, 224, 3), (3, 3, 3, 32), stride=2, padding="same")
    for m, n, stride in blocks:
        x = (size, size, m)
        total += cost.separable_conv2d(x, (3, 3, m), (m, n), stride=stride, padding="same")
        size //= stride
    assert size == 7
    total += cost.pointwise_conv2d((1, 1, 1024), (1024, 1000), True)  # the classifier
    assert round(total.macs / 1e6) == 569
    assert round(total.params / 1e6, 1) == 4.2


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 7, 1024])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_speedup_is_the_ratio_of_macs(n, k, stride):
    x, window = (2, 11, 9, 6), {"stride": stride, "padding": "same"}
    standard = cost.conv2d(x, (k, k, 6, n), **window)
    separable = cost.separable_conv2d(x, (k, k, 6), (6, n), **window)
    assert cost.speedup(n, k) == pytest.approx(standard.macs / separable.macs, rel=1e-12)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("op", OPS)
def test_mirrors_the_operations(op, multiplier, bias, layout):
    """Shapes for arrays and flags for biases, in the operations' order; and layers agree."""
    options = {} if op == "pointwise_conv2d" else {"padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
    x = (2, 9, 8, 6)
    made = call(op, x, multiplier=multiplier, bias=bias, layout=layout, stride=(2, 1), **options)
    shapes = [np.shape(a) for a in (made.x, *made.weights)]
    got = getattr(cost, op)(*shapes, *[bias] * len(made.biases), **made.options)
    assert got == made.layer().cost(made.x.shape)
    arrays = [a for a in (*made.weights, *made.biases) if a is not None]
    assert got.params == sum(a.size for a in arrays)
    assert got.bytes == sum(a.nbytes for a in (made.x, made.run(), *arrays))


def test_macs_counted_by_hand():
    # 5 x 4 outputs from 3 x 3 taps, 2 channels to each of 8 outputs in 3 groups.
    got = cost.conv2d((5, 4, 6), (3, 3, 2, 9), True, padding=1, groups=3)
    assert got == Cost(
        macs=5 * 4 * 9 * 2 * 9,
        params=9 * 2 * 9 + 9,
        bytes=4 * (5 * 4 * 6 + 9 * 2 * 9 + 9 + 5 * 4 * 9),
    )


def test_batch_0_costs_its_parameters():
    assert cost.pointwise_conv2d((0, 3, 3, 4), (4, 5)) == Cost(macs=0, params=20, bytes=80)


def test_float64_takes_twice_the_bytes():
    single, double = (
        cost.depthwise_conv2d((5, 5, 4), (3, 3, 4), dtype=dtype) for dtype in ("float32", "float64")
    )
    assert (double.macs, double.params) == (single.macs, single.params)
    assert double.bytes == 2 * single.bytes


def test_sizes_beyond_64_bits_and_memory():
    got = cost.conv2d((2**20, 2**20, 2**16), (3, 3, 2**16, 2**16), padding=1)
    assert got.macs == 9 * 2**72
    assert isinstance(got.macs, int)


def test_costs_add_up():
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    assert sum([Cost(1, 2, 3)] * 3, Cost()) == Cost(3, 6, 9)
    with pytest.raises(TypeError):
        Cost() + 1


def test_costs_are_frozen():
    with pytest.raises(AttributeError):
        Cost().macs = 1


X, W = (8, 8, 4), (3, 3, 4, 8)
BAD = {
    "stride_0": (ValueError, lambda: cost.conv2d(X, W, stride=(0, 1))),
    "stride_fraction": (TypeError, lambda: cost.conv2d(X, W, stride=1.5)),
    "dilation_0": (ValueError, lambda: cost.conv2d(X, W, dilation=0)),
    "padding_negative": (ValueError, lambda: cost.conv2d(X, W, padding=-1)),
    "padding_overflow": (ValueError, lambda: cost.conv2d(X, W, padding=2**62)),
    "padding_name": (ValueError, lambda: cost.conv2d(X, W, padding="some")),
    "groups_0": (ValueError, lambda: cost.conv2d(X, W, groups=0)),
    "groups_do_not_divide": (ValueError, lambda: cost.conv2d((8, 8, 12), W, groups=3)),
    "image_2d": (ValueError, lambda: cost.conv2d((8, 8), W)),
    "image_negative": (ValueError, lambda: cost.conv2d((-8, 8, 4), W)),
    "image_an_array": (TypeError, lambda: cost.conv2d(np.ones(X, np.float32), W)),
    "image_a_number": (TypeError, lambda: cost.conv2d(8, W)),
    "image_empty": (ValueError, lambda: cost.conv2d((0, 8, 4), W)),
    "channels_differ": (ValueError, lambda: cost.conv2d((8, 8, 3), W)),
    "kernel_too_large": (ValueError, lambda: cost.conv2d((2, 2, 4), W)),
    "weights_3d": (ValueError, lambda: cost.conv2d(X, (3, 3, 4))),
    "weights_empty": (ValueError, lambda: cost.conv2d(X, (3, 3, 4, 0))),
    "layout": (ValueError, lambda: cost.conv2d(X, W, layout="CHWN")),
    "dtype_integer": (TypeError, lambda: cost.conv2d(X, W, dtype="int8")),
    "dtype_unknown": (TypeError, lambda: cost.conv2d(X, W, dtype="float33")),
    "bias_an_array": (TypeError, lambda: cost.conv2d(X, W, np.ones(8))),
    "depthwise_channels": (ValueError, lambda: cost.depthwise_conv2d(X, (3, 3, 5))),
    "pointwise_3x3": (ValueError, lambda: cost.pointwise_conv2d(X, W)),
    "separable_halves": (ValueError, lambda: cost.separable_conv2d(X, (3, 3, 4), (5, 8))),
    "speedup_0": (ValueError, lambda: cost.speedup(0, 3)),
    "speedup_fraction": (TypeError, lambda: cost.speedup(64, 3.0)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    error, run = BAD[case]
    with pytest.raises(error):
        run()


def test_layers_cost_what_functions_say():
    layer = ck.Conv2d(np.ones(W, np.float32), np.ones(8, np.float32), stride=2)
    assert layer.cost((1, *X)) == cost.conv2d((1, *X), W, True, stride=2)
