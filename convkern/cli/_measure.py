"""Time separable blocks beside standard convolutions of the same shape, in interleaved rounds.

The machines that this runs on are shared, and their clocks drift. So only ratios of times taken
within one round count; each round also measures the FMA peak, and the rate of nops, which a
neighbour on the same physical core halves: that tells quiet rounds from contended ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import convkern as ck
from convkern import cost

# A round is quiet when its nop rate comes this close to the run's best.
QUIET_FRACTION = 0.9
# Fewer quiet rounds than this say nothing; all rounds are then used.
MIN_QUIET_ROUNDS = 3
# A sample repeats short programs for this long; one call of a long one needs no warm-up either.
SAMPLE_SECONDS = 5e-3
LONG_SECONDS = 50e-3


# Each reuses its output, the keyword argument `out`.
Programs = Mapping[str, partial[np.ndarray]]


class WrongResultError(Exception):
    """Two programs that must agree do not; their times mean nothing."""


@dataclass(frozen=True)
class Block:
    """A k x k separable convolution of (size, size, m) images to n channels, SAME-padded."""

    m: int
    n: int
    size: int
    stride: int = 1
    k: int = 3

    @property
    def name(self) -> str:
        """Channels, size and stride, such as ``64->128 @112 s2``."""
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{self.m}->{self.n} @{self.size}{stride}"

    @property
    def predicted(self) -> float:
        """The speed-up over the standard convolution that the multiply-adds promise."""
        return cost.speedup(self.n, self.k)

    def costs(self) -> dict[str, cost.Cost]:
        """Cost of the standard and of the separable convolution."""
        x, dw, pw = (self.size, self.size, self.m), (self.k, self.k, self.m), (self.m, self.n)
        window: dict[str, Any] = {"stride": self.stride, "padding": "same"}
        return {
            "standard": cost.conv2d(x, (*dw, self.n), True, **window),
            "separable": cost.separable_conv2d(x, dw, pw, True, True, **window),
        }


# The distinct blocks of MobileNetV1 at 224 x 224: table 1 of Howard et al., arXiv 1704.04861.
MOBILENET_V1 = (
    Block(32, 64, 112),
    Block(64, 128, 112, stride=2),
    Block(128, 128, 56),
    Block(128, 256, 56, stride=2),
    Block(256, 256, 28),
    Block(256, 512, 28, stride=2),
    Block(512, 512, 14),
    Block(512, 1024, 14, stride=2),
    Block(1024, 1024, 7),
)


@dataclass(frozen=True)
class Sample:
    """One block in one round.

    Attributes
    ----------
    nop_ghz : float
        The lower of the nop rates before and after.
    peak_gflops : float
        The FMA peak of one core, with the instruction set in use.
    seconds : mapping of str to float
        By program: "standard", "separable", and in some rounds the two "naive_" ones.
    """

    block: Block
    nop_ghz: float
    peak_gflops: float
    seconds: Mapping[str, float]

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long `slow` took as `fast`."""
        return self.seconds[slow] / self.seconds[fast]


def measure(blocks: Sequence[Block], rounds: int, naive_rounds: int) -> Iterator[Sample]:
    """Measure every block once a round, on one thread, with the instruction set in use.

    Parameters
    ----------
    blocks : sequence of Block
    rounds, naive_rounds : int
        Rounds, and in how many of them the textbook loops run too; the first is one of those.

    Yields
    ------
    Sample

    Raises
    ------
    WrongResultError
        If an optimised kernel and the textbook loops differ in a single bit.
    """
    rng = np.random.default_rng(0)
    programs = [_programs(block, rng) for block in blocks]
    with_naive = {i * rounds // naive_rounds for i in range(naive_rounds)}
    for i in range(rounds):
        for block, runs in zip(blocks, programs, strict=True):
            yield _sample(block, runs, naive=i in with_naive)
            if i in with_naive:
                _check(block, runs)


def summarize(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Boil samples down to one row per block: medians over the quiet rounds.

    Ratios are medians of paired ratios, not ratios of medians.
    """
    quiet_ghz = QUIET_FRACTION * max(s.nop_ghz for s in samples)
    by_block: dict[Block, list[Sample]] = {}
    for sample in samples:
        by_block.setdefault(sample.block, []).append(sample)
    return [_row(block, of_block, quiet_ghz) for block, of_block in by_block.items()]


def _row(block: Block, samples: Sequence[Sample], quiet_ghz: float) -> dict[str, Any]:
    quiet = [s for s in samples if s.nop_ghz >= quiet_ghz]
    kept = quiet if len(quiet) >= MIN_QUIET_ROUNDS else samples
    naive = [s for s in samples if "naive_standard" in s.seconds]
    gflop = {name: 2e-9 * cost.macs for name, cost in block.costs().items()}
    row = {
        "block": block.name,
        "m": block.m,
        "n": block.n,
        "k": block.k,
        "stride": block.stride,
        "size": block.size,
        "predicted": block.predicted,
        "naive_standard_ms": median(1e3 * s.seconds["naive_standard"] for s in naive),
        "naive_separable_ms": median(1e3 * s.seconds["naive_separable"] for s in naive),
        "standard_ms": median(1e3 * s.seconds["standard"] for s in kept),
        "separable_ms": median(1e3 * s.seconds["separable"] for s in kept),
        "naive_ratio": median(s.ratio("naive_standard", "naive_separable") for s in naive),
        "fast_ratio": median(s.ratio("standard", "separable") for s in kept),
        "cross_ratio": median(s.ratio("naive_standard", "separable") for s in naive),
        "rounds": len(samples),
        "quiet_rounds": len(quiet),
        "fast_ratio_all_rounds": median(s.ratio("standard", "separable") for s in samples),
    }
    for name, prefix in (("separable", ""), ("standard", "standard_")):
        rates = [(gflop[name] / s.seconds[name], s.peak_gflops) for s in kept]
        row[f"{prefix}gflops"] = median(rate for rate, _ in rates)
        row[f"{prefix}peak_fraction"] = median(rate / peak for rate, peak in rates)
    return row


def _sample(block: Block, programs: Programs, naive: bool) -> Sample:
    before = ck.runtime.nop_rate_ghz()
    peak = ck.runtime.fma_peak_gflops()
    names = [name for name in programs if naive or not name.startswith("naive")]
    seconds = {name: time_of(programs[name]) for name in names}
    return Sample(block, min(before, ck.runtime.nop_rate_ghz()), peak, seconds)


def time_of(program: Callable[[], object]) -> float:
    """Time a program with its data as warm in the caches as in a loop of its own."""
    start = perf_counter()
    program()
    once = perf_counter() - start
    if once > LONG_SECONDS:
        return once
    repeats = ceil(SAMPLE_SECONDS / once)
    start = perf_counter()
    for _ in range(repeats):
        program()
    return (perf_counter() - start) / repeats


def _programs(block: Block, rng: np.random.Generator) -> Programs:
    """Make the four programs ready to run."""
    m, n, k = block.m, block.n, block.k
    x = rng.integers(-4, 5, (block.size, block.size, m)).astype(np.float32)
    w = _weights(rng, (k, k, m, n), k * k * m)
    dw, pw = _weights(rng, (k, k, m), k * k), _weights(rng, (m, n), m)
    dw_bias, bias = (rng.integers(-1, 2, c).astype(np.float32) for c in (m, n))
    window: dict[str, Any] = {"stride": block.stride, "padding": "same", "activation": "relu6"}
    separable = (dw, pw, dw_bias, bias), {"dw_activation": "relu6", **window}

    standard_layer = ck.Conv2d(w, bias, **window)
    separable_layer = ck.SeparableConv2d(*separable[0], **separable[1])
    output = partial(np.empty, standard_layer.out_shape(x.shape), np.float32)
    return {
        "naive_standard": partial(ck.naive.conv2d, x, w, bias, out=output(), **window),
        "naive_separable": partial(
            ck.naive.separable_conv2d, x, *separable[0], out=output(), **separable[1]
        ),
        "standard": partial(standard_layer, x, out=output(), threads=1),
        "separable": partial(separable_layer, x, out=output(), threads=1),
    }


def _weights(rng: np.random.Generator, shape: tuple[int, ...], terms: int) -> np.ndarray:
    """Draw integers times a power of two, so that sums over them are exact in float32.

    Images of integers up to 4, or relu6's of such sums, make every partial sum of `terms` products
    a multiple of one unit and far below 2**24 of them, for all the terms a network has (K = 9216
    makes 2**17). So two right results are equal to the last bit, in whatever order they sum. The
    power of two keeps outputs within a few times 1, where relu6 shows both its ends.
    """
    scale = 2.0 ** -ceil(log2(terms**0.5))
    return (rng.integers(-2, 3, shape) * scale).astype(np.float32)


def _check(block: Block, programs: Programs) -> None:
    for name in ("standard", "separable"):
        got, want = (programs[p].keywords["out"] for p in (name, f"naive_{name}"))
        if not np.array_equal(got, want):
            error = np.abs(got - want).max()
            raise WrongResultError(
                f"{block.name}: the {name} convolution is off by {error:.3g} from the textbook "
                f"loops on data where both are exact"
            )
