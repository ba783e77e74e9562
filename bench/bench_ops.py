"""Operation x shape x engine, each output checked; see README.md for how to read it."""

from contextlib import nullcontext
from functools import lru_cache

import engines
import numpy as np
import shapes

import convkern as ck

# Of the largest output. Winograd, which peers may use, is outside any bound on plain sums.
PEER_TOLERANCE = 1e-3
# A coordinate is rounded to float32 before the image is sampled there.
SAMPLES_TOLERANCE = 1e-4


def bench_op(benchmark, case, engine):
    cost = shapes.cost(case)
    work = f"{2e-6 * cost.macs:.0f} MFLOP, " if cost.macs else ""  # poolings have none
    benchmark.group = f"{case} ({work}{1e-6 * cost.bytes:.1f} MB)"
    isa = engine.partition("-")[0]
    with ck.use_isa(isa) if isa in ck.available_isas() else nullcontext():
        run, result = engines.of(case.op)[engine](case)
        peaks = [ck.runtime.fma_peak_gflops()]
        got = result(benchmark(run))
        peaks.append(ck.runtime.fma_peak_gflops())

    check(got, oracle(case), tolerance(case, engine))
    if benchmark.stats:  # none with --benchmark-disable
        seconds = benchmark.stats["median"]
        gflops = 2e-9 * cost.macs / seconds
        benchmark.extra_info["gflops"] = gflops
        benchmark.extra_info["peak_fraction"] = gflops / max(peaks)
        benchmark.extra_info["gigabytes_per_second"] = 1e-9 * cost.bytes / seconds


def tolerance(case, engine):
    """Say how far a result may be off: ours of integers not at all."""
    if case.op == "deform_conv2d":
        return SAMPLES_TOLERANCE
    ours = engine.partition("-")[0] in (*ck.available_isas(), "naive", "depthwise")
    return 0 if ours else PEER_TOLERANCE


def check(got, want, tolerance):
    if tolerance:
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    else:
        np.testing.assert_array_equal(got, want.astype(np.float32))


@lru_cache(maxsize=1)
def oracle(case):
    """Compute the exact result; the engines of a case follow one another."""
    return case.call().want()
