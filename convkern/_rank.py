"""Kernels of rank 1 taken apart into a column and a row."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ._geometry import as_array

TIE = 0.999
"""Of the largest magnitude: what comes this near equals it, whatever was rounded."""


def rank_one(op: str, k: Any, tol: Any) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of kernels in any of three forms; see `convkern.separate_kernel`."""
    array = as_array(op, "k", k)
    stack = _stack(op, array)
    tol = _tolerance(op, tol, max(stack.shape[1:]) * float(np.finfo(array.dtype).eps))
    # An even power of two, so that its root is exact, keeps the squares within float64.
    _, exponent = np.frexp(np.abs(stack).max(axis=(1, 2)))
    half = exponent // 2
    u, s, vt = np.linalg.svd(np.ldexp(stack, -2 * half[:, None, None]), full_matrices=False)
    if s.shape[1] > 1:
        _refuse_higher_ranks(op, np.ldexp(s, 2 * half[:, None]), array.ndim, tol)
    column, row = u[:, :, 0], vt[:, 0]
    magnitude = np.abs(column)
    largest = np.argmax(magnitude >= TIE * magnitude.max(axis=1, keepdims=True), axis=1)
    sign = np.where(np.take_along_axis(column, largest[:, None], axis=1) < 0, -1.0, 1.0)
    scale = sign * np.ldexp(np.sqrt(s[:, :1]), half[:, None])
    pair = [(part * scale + 0.0).astype(array.dtype) for part in (column, row)]  # no -0
    if array.ndim == 2:
        return pair[0][0], pair[1][0]
    if array.ndim == 4:
        return pair[0], pair[1]
    return np.ascontiguousarray(pair[0].T), np.ascontiguousarray(pair[1].T)


def _stack(op: str, k: np.ndarray) -> np.ndarray:
    """(C, kh, kw) in float64."""
    if k.ndim not in (2, 3, 4) or (k.ndim == 4 and k.shape[1] != 1):
        raise ValueError(
            f"{op}: k has shape {k.shape}; it must be (kh, kw), (kh, kw, C) or (C, 1, kh, kw)"
        )
    if 0 in k.shape:
        raise ValueError(f"{op}: k has shape {k.shape}; no axis may be 0")
    stack = k[None] if k.ndim == 2 else k[:, 0] if k.ndim == 4 else k.transpose(2, 0, 1)
    if not np.isfinite(stack).all():
        raise ValueError(f"{op}: k has shape {k.shape} and holds NaN or Inf; it must be finite")
    return stack.astype(np.float64)


def _tolerance(op: str, tol: Any, default: float) -> float:
    if tol is None:
        return default
    if not isinstance(tol, Real) or isinstance(tol, bool):
        raise TypeError(f"{op}: tol must be None or a number, not {tol!r}")
    if not 0 <= float(tol) <= 1:
        raise ValueError(f"{op}: tol must be from 0 to 1, not {tol!r}")
    return float(tol)


def _refuse_higher_ranks(op: str, s: np.ndarray, ndim: int, tol: float) -> None:
    """ValueError at the first channel whose second singular value is too large."""
    above = np.flatnonzero(s[:, 1] > tol * s[:, 0])
    if above.size:
        channel = above[0]
        where = "k has" if ndim == 2 else f"channel {channel} of k has"
        values = ", ".join(f"{value:.6g}" for value in s[channel])
        raise ValueError(
            f"{op}: {where} singular values [{values}], a rank above 1 by tol={tol:.3g} of the "
            f"first; it is no column times a row"
        )
