"""Interleaved rounds, and what they say: medians of paired ratios, quiet rounds apart.

The machines that this runs on are shared, and their clocks drift. So every round runs every engine
once, in another order, and only ratios of times within one round count. Each round also measures
the FMA peak; the rate of nops, which a neighbour on the same physical core halves; and how long
threads waited for a CPU that other processes had.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from threading import Barrier
from time import perf_counter, sleep
from typing import Any

import numpy as np

import convkern as ck
from convkern.cli._measure import MIN_QUIET_ROUNDS, QUIET_FRACTION, WrongResultError, time_of

from .libraries import PEERS
from .workloads import Workload

OURS = "convkern"
# Of the largest output. Winograd, which peers may use, is outside any bound on plain sums.
OUR_TOLERANCE = 1e-4
PEER_TOLERANCE = 1e-3
# The threads of some engines spin for a while after a run; on several threads, wait for their end.
REST_SECONDS = 5e-3
# A neighbour stays for milliseconds; a probe takes a tenth of one, and an interrupt spoils it.
PROBES = 3
# More than this, and other processes had the CPUs: the kernel's own threads take far less.
MAX_WAITED = 0.02


@dataclass(frozen=True)
class Sample:
    """One workload in one round.

    Attributes
    ----------
    workload : str
    threads : int
    nop_ghz : float
        The lowest nop rate between the engines, of any thread.
    peak_gflops : float
        The FMA peak of all threads together, with convkern's instruction set.
    waited : float
        How long threads that could have run did not, of the time that the engines took.
    seconds : mapping of str to float
        By engine: `OURS` and the peers.
    """

    workload: str
    threads: int
    nop_ghz: float
    peak_gflops: float
    waited: float
    seconds: Mapping[str, float]

    def ratio(self, peer: str) -> float:
        """How many times as long a peer took as convkern."""
        return self.seconds[peer] / self.seconds[OURS]


class Contest:
    """A workload ready to run on every engine that can, each output checked once.

    Attributes
    ----------
    lacking : dict of str to str
        Who does not take part, and why.
    """

    def __init__(self, workload: Workload, peers: Sequence[str], threads: int) -> None:
        self.workload, self.threads = workload, threads
        self.lacking: dict[str, str] = {}
        self._programs = {OURS: (partial(workload.run, threads=threads), np.asarray)}
        for name in peers:
            try:
                self._programs[name] = PEERS[name].prepare(workload.network, threads)
            except ImportError as error:
                self.lacking[name] = f"{error}: pip install 'convkern[peers]'"
            except NotImplementedError as error:
                self.lacking[name] = str(error)
        for name, (run, result) in self._programs.items():
            self._check(name, result(run()))

    def sample(self, order: random.Random) -> Sample:
        """Time every engine once."""
        names = list(self._programs)
        order.shuffle(names)
        peak = on_each(self.threads, ck.runtime.fma_peak_gflops)
        nops = on_each(self.threads, _nop_rate)
        seconds, took, waited = {}, 0.0, 0.0
        for name in names:
            sleep(REST_SECONDS if self.threads > 1 else 0)
            start, before = perf_counter(), _seconds_waited()
            seconds[name] = time_of(self._programs[name][0])
            waited += _seconds_waited() - before
            took += perf_counter() - start
            nops += on_each(self.threads, _nop_rate)
        name, threads = self.workload.name, self.threads
        return Sample(name, threads, min(nops), sum(peak), waited / took, seconds)

    def _check(self, name: str, got: np.ndarray) -> None:
        want = self.workload.want
        error = np.abs(got.reshape(want.shape) - want).max() / np.abs(want).max()
        if not error <= (OUR_TOLERANCE if name == OURS else PEER_TOLERANCE):
            raise WrongResultError(
                f"{self.workload.name}: {name} is off by {error:.3g} of the largest output"
            )


def _nop_rate() -> float:
    return max(ck.runtime.nop_rate_ghz() for _ in range(PROBES))


def _seconds_waited() -> float:
    """How long this process's threads have waited for a CPU so far; 0 where Linux does not say."""
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # of a thread that has ended
            _ran, waited, _turns = file.read_text().split()
            nanoseconds += int(waited)
    return 1e-9 * nanoseconds


def on_each(threads: int, probe: Callable[[], float]) -> list[float]:
    """Run a probe on that many threads at once."""
    if threads == 1:
        return [probe()]
    together = Barrier(threads)

    def run(_: int) -> float:
        together.wait()
        return probe()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def rounds_of(contests: Sequence[Contest], rounds: int, seed: int) -> Iterator[Sample]:
    """Sample every contest in every round; the order of engines is shuffled by `seed`."""
    order = random.Random(seed)
    for _ in range(rounds):
        for contest in contests:
            yield contest.sample(order)


def summarize(samples: Sequence[Sample], macs: Mapping[str, int]) -> list[dict[str, Any]]:
    """Boil samples down to a row per workload and number of threads.

    Ratios are medians of paired ratios: a peer's time over convkern's in the same round, so above 1
    convkern is the faster. A round is quiet where its nop rate comes close to the best of all
    rounds on as many threads, and its threads hardly waited.

    Parameters
    ----------
    samples : sequence of Sample
    macs : mapping of str to int
        Multiply-adds by workload.
    """
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.workload, sample.threads), []).append(sample)
    rows = []
    for (workload, threads), group in groups.items():
        best = max(s.nop_ghz for s in samples if s.threads == threads)
        rows.append(
            {"workload": workload, "threads": threads}
            | _row(group, QUIET_FRACTION * best, 2e-9 * macs[workload])
        )
    return rows


def _row(samples: Sequence[Sample], quiet_ghz: float, gflop: float) -> dict[str, Any]:
    quiet = [s for s in samples if s.nop_ghz >= quiet_ghz and s.waited <= MAX_WAITED]
    contended = [s for s in samples if s not in quiet]
    kept = quiet if len(quiet) >= MIN_QUIET_ROUNDS else samples
    engines = list(samples[0].seconds)
    fractions = [gflop / s.seconds[OURS] / s.peak_gflops for s in kept] if gflop else []
    return {
        "rounds": len(samples),
        "quiet_rounds": len(quiet),
        "ms": {e: 1e3 * median(s.seconds[e] for s in kept) for e in engines},
        "peak_fraction": median(fractions) if fractions else None,
        "ratios": ratios(kept),
        "contended_ratios": ratios(contended),
    }


def ratios(samples: Sequence[Sample]) -> dict[str, float]:
    """The median of paired ratios, by peer; nothing where there are no samples."""
    peers = [e for e in samples[0].seconds if e != OURS] if samples else []
    return {peer: median(s.ratio(peer) for s in samples) for peer in peers}


def best_peer(ratios: Mapping[str, float], peers: Sequence[str]) -> str | None:
    """The fastest of some peers, by its ratio."""
    return min((p for p in peers if p in ratios), key=lambda p: ratios[p], default=None)
