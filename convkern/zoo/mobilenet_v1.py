"""MobileNetV1 without its classifier, with random weights: what the benchmarks run.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
arXiv 1704.04861, 2017, table 1.
"""

from __future__ import annotations

import math
from operator import index
from typing import Any, NamedTuple

import numpy as np

import convkern as ck
from convkern.cost import Cost
from convkern.zoo._random import Shape, bias, he_normal

_KERNEL = 3
_STEM_CHANNELS = 32
# Output channels and stride of the 13 separable blocks.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class SeparableBlock(NamedTuple):
    """A 3x3 separable convolution of a network, by its shapes.

    Attributes
    ----------
    name : str
        Channels, size and stride, such as ``64->128 @112 s2``.
    in_channels, out_channels : int
        M and N of the paper.
    stride : int
    size : int
        Height and width of the input; the output's are ``ceil(size / stride)``.
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int
    size: int


def separable_blocks(alpha: float = 1.0, resolution: int = 224) -> list[SeparableBlock]:
    """Distinct separable blocks of MobileNetV1, in the order in which they first run.

    Parameters
    ----------
    alpha : float, optional
        Width multiplier: every layer has ``int(alpha * channels)`` channels, at least 8.
    resolution : int, optional
        Height and width of the network's images, in pixels.

    Returns
    -------
    list of SeparableBlock
        Nine of them for the widths of the paper: of the 13 blocks, five are the same.

    Raises
    ------
    TypeError
        If `resolution` is not an integer, or `alpha` not a number.
    ValueError
        If `resolution` is below 1, or `alpha` is not above 0 and finite.

    Examples
    --------
    >>> separable_blocks()[1]
    SeparableBlock(name='64->128 @112 s2', in_channels=64, out_channels=128, stride=2, size=112)
    """
    return list(dict.fromkeys(_all_blocks(alpha, resolution)))


def mobilenet_v1_body(alpha: float = 1.0, resolution: int = 224, seed: int = 0) -> MobileNetV1Body:
    """Make the convolutions of MobileNetV1 with random weights.

    Parameters
    ----------
    alpha, resolution
        As for `separable_blocks`.
    seed : int, optional
        Of ``numpy.random.default_rng``; the same seed makes the same weights.

    Returns
    -------
    MobileNetV1Body

    Raises
    ------
    TypeError, ValueError
        As `separable_blocks`; also where `seed` is no seed.

    Examples
    --------
    >>> net = mobilenet_v1_body(alpha=0.25, resolution=32)
    >>> net(np.zeros((32, 32, 3), np.float32)).shape
    (1, 1, 256)
    """
    return MobileNetV1Body(_all_blocks(alpha, resolution), index(resolution), seed)


class MobileNetV1Body:
    """The 3x3 convolution and the 13 separable blocks of MobileNetV1, NHWC; immutable.

    Made by `mobilenet_v1_body`. May be called from several threads at once, and pickled.

    Attributes
    ----------
    blocks : tuple of SeparableBlock
        The 13 separable blocks in the order in which they run.
    graph : Sequential
        The convolution and the blocks: 14 layers of ``convkern.layers``.
    input_shape : tuple of int
        (resolution, resolution, 3)
    """

    def __init__(self, blocks: list[SeparableBlock], resolution: int, seed: int) -> None:
        self.blocks = tuple(blocks)
        self.input_shape: Shape = (resolution, resolution, 3)
        rng = np.random.default_rng(seed)
        stem = _stem(rng, blocks[0].in_channels)
        self.graph = ck.Sequential([stem, *(_separable(rng, block) for block in blocks)])

    @property
    def layers(self) -> tuple[Any, ...]:
        """The layers in the order in which they run."""
        return self.graph.layers

    def __call__(
        self, x: np.ndarray, out: np.ndarray | None = None, threads: int | None = None
    ) -> np.ndarray:
        """Run the network.

        Parameters
        ----------
        x : ndarray of float32
            (N, H, W, 3) or (H, W, 3), of any height and width; those of `input_shape` are what
            `blocks` describes.
        out : ndarray, optional
        threads : int, optional
            As for every layer.

        Returns
        -------
        ndarray of float32
            (N, ceil(H / 32), ceil(W / 32), C), or without the N where `x` has none.

        Raises
        ------
        TypeError, ValueError
            If `x` is no such array.
        """
        return self.graph(x, out, threads)

    def out_shapes(self, x_shape: Shape | None = None) -> list[Shape]:
        """Shape of every layer's output, for images of `x_shape`, by default `input_shape`."""
        shapes = self.graph.out_shapes(self.input_shape if x_shape is None else x_shape)
        return list(shapes.values())[1:]

    def cost(self, x_shape: Shape | None = None) -> Cost:
        """Sum of the layers' costs, for images of `x_shape`, by default `input_shape`."""
        return self.graph.cost(self.input_shape if x_shape is None else x_shape)


def _all_blocks(alpha: float, resolution: int) -> list[SeparableBlock]:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be above 0 and finite, not {alpha}")
    if (size := index(resolution)) < 1:
        raise ValueError(f"resolution must be at least 1, not {resolution}")
    size = math.ceil(size / 2)
    in_channels = _width(_STEM_CHANNELS, alpha)
    blocks = []
    for channels, stride in _BLOCKS:
        out_channels = _width(channels, alpha)
        name = f"{in_channels}->{out_channels} @{size} s{stride}"
        blocks.append(SeparableBlock(name, in_channels, out_channels, stride, size))
        in_channels, size = out_channels, math.ceil(size / stride)
    return blocks


def _width(channels: int, alpha: float) -> int:
    return max(8, int(alpha * channels))


def _stem(rng: np.random.Generator, channels: int) -> ck.Conv2d:
    w = he_normal(rng, (_KERNEL, _KERNEL, 3, channels), terms=_KERNEL**2 * 3)
    return ck.Conv2d(w, bias(rng, channels), stride=2, padding="same", activation="relu")


def _separable(rng: np.random.Generator, block: SeparableBlock) -> ck.SeparableConv2d:
    m, n = block.in_channels, block.out_channels
    return ck.SeparableConv2d(
        he_normal(rng, (_KERNEL, _KERNEL, m), terms=_KERNEL**2),
        he_normal(rng, (m, n), terms=m),
        bias(rng, m),
        bias(rng, n),
        stride=block.stride,
        padding="same",
        dw_activation="relu",
        activation="relu",
    )
