"""MobileNetV2 without its classifier, with random weights.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381, 2018,
table 2.
"""

import numpy as np

import convkern as ck
from convkern.zoo.mobilenet_v1 import _bias, _he_normal

# Expansion, output channels, repetitions, stride of the first.
_BOTTLENECKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2_body() -> ck.Graph:
    rng = np.random.default_rng(0)
    nodes = [("stem", _stem(rng), "input")]
    channels = 32
    for expansion, outputs, repetitions, first_stride in _BOTTLENECKS:
        for stride in (first_stride, *[1] * (repetitions - 1)):
            name = f"block{len(nodes)}"
            nodes += _bottleneck(rng, name, nodes[-1][0], channels, expansion, outputs, stride)
            channels = outputs
    return ck.Graph([*nodes, ("head", _widen(rng, channels, 1280), nodes[-1][0])])


def _stem(rng):
    w = _he_normal(rng, (3, 3, 3, 32), terms=27)
    return ck.Conv2d(w, _bias(rng, 32), stride=2, padding="same", activation="relu6")


def _widen(rng, channels, outputs):
    w = _he_normal(rng, (channels, outputs), terms=channels)
    return ck.PointwiseConv2d(w, _bias(rng, outputs), activation="relu6")


def _bottleneck(rng, name, before, channels, expansion, outputs, stride):
    inner = expansion * channels
    depthwise = ck.DepthwiseConv2d(
        _he_normal(rng, (3, 3, inner), terms=9),
        _bias(rng, inner),
        stride=stride,
        padding="same",
        activation="relu6",
    )
    w = _he_normal(rng, (inner, outputs), terms=2 * inner)
    residual = before if stride == 1 and channels == outputs else None
    wide, nodes = before, []
    if expansion > 1:
        wide = f"{name}.widen"
        nodes = [(wide, _widen(rng, channels, inner), before)]
    return [
        *nodes,
        (f"{name}.dw", depthwise, wide),
        (name, ck.PointwiseConv2d(w, _bias(rng, outputs)), f"{name}.dw", residual),
    ]
