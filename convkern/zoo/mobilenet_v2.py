"""MobileNetV2 without its classifier, with random weights: what the benchmarks run.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381, 2018,
table 2.
"""

from __future__ import annotations

import math
from operator import index
from typing import NamedTuple

import numpy as np

import convkern as ck
from convkern.zoo._random import bias, he_normal

_KERNEL = 3
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
# Expansion t, output channels c, repetitions n, and the stride s of the first of them.
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Widths are multiples of this, as in the authors' code.
_DIVISOR = 8


class InvertedResidual(NamedTuple):
    """A block of MobileNetV2, by its shapes.

    Attributes
    ----------
    name : str
        Of its nodes: ``NAME.expand``, ``NAME.depthwise``, ``NAME.project``.
    in_channels, expanded, out_channels : int
        Of the input, of the depthwise, and of the output.
    stride : int
    """

    name: str
    in_channels: int
    expanded: int
    out_channels: int
    stride: int


def mobilenet_v2_body(alpha: float = 1.0, seed: int = 0) -> ck.Graph:
    """Make the convolutions of MobileNetV2 with random weights, NHWC.

    Parameters
    ----------
    alpha : float, optional
        Width multiplier: channels are multiples of 8 near ``alpha`` times the paper's, at most a
        tenth fewer; the last layer never has fewer than 1280.
    seed : int, optional
        Of ``numpy.random.default_rng``; the same seed makes the same weights.

    Returns
    -------
    Graph
        The 3x3 convolution, 17 inverted residuals, and the 1x1 convolution to 1280 channels; for
        images (N, H, W, 3) or (H, W, 3) of any size.

    Raises
    ------
    TypeError
        If `alpha` is no number, or `seed` no seed.
    ValueError
        If `alpha` is not above 0 and finite.

    Examples
    --------
    >>> net = mobilenet_v2_body(alpha=0.25)
    >>> net(np.zeros((64, 64, 3), np.float32)).shape
    (2, 2, 1280)
    >>> round(mobilenet_v2_body().cost((224, 224, 3)).macs / 1e6)  # the paper: 300, with classifier
    299
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be above 0 and finite, not {alpha}")
    rng = np.random.default_rng(index(seed))
    blocks = inverted_residuals(alpha)
    stem = blocks[0].in_channels
    nodes = [
        ck.Node(
            "stem",
            ck.Conv2d(
                he_normal(rng, (_KERNEL, _KERNEL, 3, stem), terms=_KERNEL**2 * 3),
                bias(rng, stem),
                stride=2,
                padding="same",
                activation="relu6",
            ),
            "input",
        )
    ]
    for block in blocks:
        nodes += _inverted_residual(rng, block, nodes[-1].name)
    before, channels = nodes[-1].name, blocks[-1].out_channels
    head = max(_HEAD_CHANNELS, _width(_HEAD_CHANNELS, alpha))
    nodes.append(ck.Node("head", _pointwise(rng, channels, head, "relu6"), before))
    return ck.Graph(nodes)


def inverted_residuals(alpha: float = 1.0) -> list[InvertedResidual]:
    """The 17 blocks of MobileNetV2 in the order in which they run.

    Examples
    --------
    >>> inverted_residuals()[1]
    InvertedResidual(name='block1', in_channels=16, expanded=96, out_channels=24, stride=2)
    """
    channels = _width(_STEM_CHANNELS, alpha)
    blocks: list[InvertedResidual] = []
    for expansion, wanted, repetitions, first_stride in _BLOCKS:
        out = _width(wanted, alpha)
        for i in range(repetitions):
            name, stride = f"block{len(blocks)}", 1 if i else first_stride
            blocks.append(InvertedResidual(name, channels, channels * expansion, out, stride))
            channels = out
    return blocks


def _width(channels: int, alpha: float) -> int:
    """The nearest multiple of 8, or the next where that would be a tenth less than wanted."""
    wanted = channels * alpha
    width = max(_DIVISOR, int(wanted + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return width if width >= 0.9 * wanted else width + _DIVISOR


def _inverted_residual(
    rng: np.random.Generator, block: InvertedResidual, before: str
) -> list[ck.Node]:
    """Widen (but for the first block), filter, narrow; add the input where the shape allows."""
    name, in_channels, expanded, out_channels, stride = block
    nodes = []
    x = before
    if expanded != in_channels:
        nodes.append(ck.Node(f"{name}.expand", _pointwise(rng, in_channels, expanded, "relu6"), x))
        x = nodes[-1].name
    filters = ck.DepthwiseConv2d(
        he_normal(rng, (_KERNEL, _KERNEL, expanded), terms=_KERNEL**2),
        bias(rng, expanded),
        stride=stride,
        padding="same",
        activation="relu6",
    )
    nodes.append(ck.Node(f"{name}.depthwise", filters, x))
    residual = before if stride == 1 and in_channels == out_channels else None
    narrow = _pointwise(rng, expanded, out_channels, None)
    nodes.append(ck.Node(f"{name}.project", narrow, nodes[-1].name, residual))
    return nodes


def _pointwise(
    rng: np.random.Generator, channels: int, out_channels: int, activation: str | None
) -> ck.PointwiseConv2d:
    w: np.ndarray = he_normal(rng, (channels, out_channels), terms=channels)
    return ck.PointwiseConv2d(w, bias(rng, out_channels), activation=activation)
