"""Weights for networks that are there to be timed."""

import math

import numpy as np

Shape = tuple[int, ...]


def he_normal(rng: np.random.Generator, shape: Shape, terms: int) -> np.ndarray:
    """Draw weights that keep the mean square of activations through sums of `terms` and a ReLU.

    He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, 2015, equation 10.
    """
    return (rng.standard_normal(shape) * math.sqrt(2 / terms)).astype(np.float32)


def bias(rng: np.random.Generator, channels: int) -> np.ndarray:
    return (rng.standard_normal(channels) * 0.1).astype(np.float32)
