"""The floating-point environment: the caller's comes back, and makes no difference to a result."""

import ctypes
import platform
from contextlib import contextmanager
from dataclasses import replace

import cases
import numpy as np
import pooling
import pytest
from cases import assert_same_bits, call

import convkern as ck

pytestmark = pytest.mark.usefixtures("isa")

# Bits of MXCSR: Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 1, 10.2.3.
FLAGS = 0x1F  # invalid, denormal, divide by zero, overflow, underflow; without inexact, which
INEXACT = 0x20  # whatever Python computes may raise
DEFAULT = 0x1F80
CONTROLS = {
    "flush_to_zero": DEFAULT | 0x8000,
    "denormals_are_zero": DEFAULT | 0x40,
    "round_down": DEFAULT | 0x2000,
    "round_up": DEFAULT | 0x4000,
    "round_to_zero": DEFAULT | 0x6000,
    "invalid_traps": DEFAULT & ~0x80,
    "default": DEFAULT,
}
MXCSR = 7  # its place in fenv_t, as glibc and musl lay it out

on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no MXCSR")
libc = ctypes.CDLL(None)


def fenv():
    """Read the calling thread's floating-point environment."""
    buffer = (ctypes.c_uint32 * 16)()
    libc.fegetenv(buffer)
    return buffer


@contextmanager
def mxcsr(value):
    """Set the calling thread's MXCSR for a while; gives a function that reads it."""
    original, changed = fenv(), fenv()
    changed[MXCSR] = value
    libc.fesetenv(changed)
    try:
        yield lambda: fenv()[MXCSR] & ~INEXACT
    finally:
        libc.fesetenv(original)


EXAMPLES = {name: cases.example(name, activation="silu") for name in cases.EXAMPLES}
EXAMPLES |= {name: pooling.example(name) for name in pooling.EXAMPLES}


def with_pixels(made, x):
    return made.on(x) if isinstance(made, pooling.Pool) else replace(made, x=x)


@on_x86
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_callers_mxcsr(name, control):
    made = EXAMPLES[name]
    x = made.x.copy()
    odd = x.reshape(-1)[::7]
    odd[:] = np.resize(np.float32([3e38, 1e-40, np.inf, -np.inf, np.nan]), odd.shape)
    wild = with_pixels(made, x)
    want, want_wild = made.run(), wild.run()
    for flags in (0, FLAGS):
        with mxcsr(CONTROLS[control] | flags) as now:
            y, y_wild = made.run(), wild.run()
            after = now()
            with pytest.raises((TypeError, ValueError)):
                made.run(out=y[..., :0])
            with pytest.raises((TypeError, ValueError)):
                with_pixels(made, None).run()
            after_errors = now()
        assert hex(after) == hex(after_errors) == hex(CONTROLS[control] | flags)
        assert_same_bits(y, want)
        assert_same_bits(y_wild, want_wild)


@on_x86
@pytest.mark.parametrize("op", cases.OPS)
def test_callers_mxcsr_after_a_naive_call(op):
    made = call(op, (2, 4, 5, 3))
    with mxcsr(CONTROLS["round_up"]) as now:
        made.run(ck.naive)
        after = now()
    assert after == CONTROLS["round_up"]


def flushed(a, tiny):
    return None if a is None else np.where(np.abs(a) < tiny, np.copysign(np.zeros_like(a), a), a)


@pytest.mark.parametrize("data", ["reals", "doubles"])
@pytest.mark.parametrize("name", cases.EXAMPLES)
def test_denormals_are_zeros(name, data, layout):
    """In every array: a third of each is denormal."""
    made = cases.example(name, data=data, layout=layout, residual=True, activation=(-1, 1))
    tiny = np.finfo(made.x.dtype).tiny

    def thirds(a):
        a = a.copy()
        a.reshape(-1)[::3] *= tiny / 1e3
        return a

    odd = replace(
        made,
        x=thirds(made.x),
        weights=tuple(map(thirds, made.weights)),
        biases=tuple(map(thirds, made.biases)),
    ).with_(residual=thirds(made.options["residual"]))
    plain = replace(
        odd,
        x=flushed(odd.x, tiny),
        weights=tuple(flushed(w, tiny) for w in odd.weights),
        biases=tuple(flushed(b, tiny) for b in odd.biases),
    ).with_(residual=flushed(odd.options["residual"], tiny))
    assert (odd.x != plain.x).any()
    assert_same_bits(odd.run(), plain.run())


@pytest.mark.parametrize("name", [n for n in pooling.EXAMPLES if not n.startswith("max")])
def test_denormals_of_means_are_zeros(name, data, layout):
    made = pooling.example(name, data=data, layout=layout)
    tiny = np.finfo(made.x.dtype).tiny
    x = made.x.copy()
    x.reshape(-1)[::3] = tiny / 1e3
    assert_same_bits(made.on(x).run(), made.on(flushed(x, tiny)).run())
    assert not made.on(np.full_like(x, tiny / 1e3)).run().any()
