"""Operation x shape x engine, each output checked; see README.md for how to read it."""

from contextlib import nullcontext
from functools import lru_cache

import engines
import numpy as np
import pytest

import convkern as ck

# Winograd, which peers may use, is outside any bound on plain sums.
PEER_TOLERANCE = 1e-3


@pytest.mark.parametrize("engine", [*engines.OURS, *engines.PEERS])
def bench_op(benchmark, case, engine):
    call = case.call()
    layer_cost = call.layer().cost(call.x.shape)
    benchmark.group = (
        f"{case} ({2e-6 * layer_cost.macs:.0f} MFLOP, {1e-6 * layer_cost.bytes:.1f} MB)"
    )
    with ck.use_isa(engine) if engine in ck.available_isas() else nullcontext():
        run, result = {**engines.OURS, **engines.PEERS}[engine](call)
        peaks = [ck.runtime.fma_peak_gflops()]
        got = result(benchmark(run))
        peaks.append(ck.runtime.fma_peak_gflops())

    want = oracle(case)
    if engine in engines.OURS:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=PEER_TOLERANCE * np.abs(want).max())
    if benchmark.stats:  # none with --benchmark-disable
        gflops = 2e-9 * layer_cost.macs / benchmark.stats["median"]
        benchmark.extra_info["gflops"] = gflops
        benchmark.extra_info["peak_fraction"] = gflops / max(peaks)


@lru_cache(maxsize=1)
def oracle(case):
    """Compute the exact result; the engines of a case follow one another."""
    return case.call().want()
