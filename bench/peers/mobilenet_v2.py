"""MobileNetV2 without its classifier, with random weights.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381, 2018,
table 2.
"""

import numpy as np

import convkern as ck
from convkern.zoo._chain import LayerChain, Step
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


class MobileNetV2Body:
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        steps = [Step(_stem(rng))]
        channels = 32
        for expansion, outputs, repetitions, first_stride in _BOTTLENECKS:
            for stride in (first_stride, *[1] * (repetitions - 1)):
                steps += _bottleneck(rng, channels, expansion * channels, outputs, stride)
                channels = outputs
        steps.append(Step(_widen(rng, channels, 1280)))
        self._chain = LayerChain(steps)

    def __call__(self, x, threads=None):
        return self._chain(x, threads)

    def cost(self):
        return self._chain.cost((224, 224, 3))


def _stem(rng):
    w = _he_normal(rng, (3, 3, 3, 32), terms=27)
    return ck.Conv2d(w, _bias(rng, 32), stride=2, padding="same", activation="relu6")


def _widen(rng, channels, outputs):
    w = _he_normal(rng, (channels, outputs), terms=channels)
    return ck.PointwiseConv2d(w, _bias(rng, outputs), activation="relu6")


def _bottleneck(rng, channels, inner, outputs, stride):
    narrow = ck.SeparableConv2d(
        _he_normal(rng, (3, 3, inner), terms=9),
        _he_normal(rng, (inner, outputs), terms=2 * inner),
        _bias(rng, inner),
        _bias(rng, outputs),
        stride=stride,
        padding="same",
        dw_activation="relu6",
    )
    residual = stride == 1 and channels == outputs
    if inner == channels:
        return [Step(narrow, residual)]
    return [Step(_widen(rng, channels, inner)), Step(narrow, residual)]
