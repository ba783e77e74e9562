"""Types of the compiled module."""

from typing import Any

import numpy as np

COMPILER: str
ACTIVATIONS: dict[str, int]

_Array = np.ndarray[tuple[int, ...], np.dtype[np.floating]]

class Op:
    def __init__(
        self,
        name: str,
        kind: str,
        isa: int,
        layout: str,
        window: tuple[int, ...],
        channels: tuple[int, int, int, int],
        w: _Array,
        bias: _Array | None,
        activation: tuple[int, float, float],
        dw: _Array | None = None,
        dw_bias: _Array | None = None,
        dw_activation: tuple[int, float, float] = ...,
        fast: bool = False,
    ) -> None: ...
    def run(
        self,
        sizes: tuple[int, ...],
        shape: tuple[int, ...],
        x: _Array,
        residual: _Array | None = None,
        out: _Array | None = None,
        threads: int = 1,
        offset: _Array | None = None,
        mask: _Array | None = None,
        offset_groups: int = 1,
    ) -> _Array: ...

class Plan:
    def __init__(
        self,
        name: str,
        f64: bool,
        steps: list[tuple[Op | tuple[Any, ...], tuple[int, ...], tuple[int, int, int, int], int]],
        threads: int = 1,
        turn: bool = False,
    ) -> None: ...
    def run(self, shape: tuple[int, ...], x: _Array, out: _Array | None = None) -> _Array: ...
    def places(self) -> tuple[list[tuple[int, int, int, int, int, bool]], int, int]: ...

def pool(
    name: str,
    kind: str,
    isa: int,
    window: tuple[int, ...],
    ceil_mode: bool,
    count_include_pad: bool,
    sizes: tuple[int, ...],
    shape: tuple[int, ...],
    x: _Array,
    out: _Array | None = None,
    threads: int = 1,
) -> _Array: ...
def naive(
    name: str,
    kind: str,
    window: tuple[int, ...],
    channels: tuple[int, int, int, int],
    sizes: tuple[int, ...],
    x: _Array,
    w: _Array,
    bias: _Array | None,
    y: _Array,
) -> None: ...
def set_least_work(vectors: int) -> int: ...
def isa_names() -> tuple[str, ...]: ...
def isa_available(isa: int) -> bool: ...
def isa_best() -> int: ...
def cpu() -> tuple[str, tuple[str, ...], int, int]: ...
def kernels(isa: int, f64: bool = False) -> dict[str, bool]: ...
def tile(isa: int, f64: bool = False) -> tuple[int, int, int]: ...
def probe_fma(isa: int, f64: bool = False) -> float: ...
def probe_nop() -> float: ...
