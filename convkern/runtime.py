"""What this machine has and what is used: ISA, threads, probes, configuration."""

from __future__ import annotations

import os
import platform
import sys
from types import TracebackType
from typing import Any

import numpy as np

from . import _core
from ._cpus import usable_cpus
from ._geometry import as_int

__all__ = [
    "available_isas",
    "cpu_name",
    "fma_peak_gflops",
    "get_num_threads",
    "isa",
    "nop_rate_ghz",
    "set_num_threads",
    "show_config",
    "use_isa",
]

_NAMES = _core.isa_names()


def available_isas() -> tuple[str, ...]:
    """The ISAs that this CPU and this build have, from the slowest to the fastest.

    Examples
    --------
    >>> import convkern as ck
    >>> "scalar" in ck.available_isas()
    True
    """
    return tuple(name for number, name in enumerate(_NAMES) if _core.isa_available(number))


def _number_of(name: Any, source: str) -> int:
    if not isinstance(name, str):
        raise TypeError(f"{source}: the ISA must be a string, not {type(name).__name__}")
    if name not in _NAMES:
        raise ValueError(f"{source}: unknown ISA {name!r}; there are {', '.join(_NAMES)}")
    number = _NAMES.index(name)
    if not _core.isa_available(number):
        raise RuntimeError(
            f"{source}: this CPU lacks {name!r}; it has {', '.join(available_isas())}"
        )
    return number


_wanted = os.environ.get("CONVKERN_ISA", "")
_current: int | None = None  # until it is asked for: a wrong variable must not fail an import


def isa() -> str:
    """The ISA that new operations are made for.

    Raises
    ------
    ValueError, RuntimeError
        The environment variable ``CONVKERN_ISA`` names an ISA that does not exist or that this CPU
        lacks. Every operation then raises the same; `import convkern` does not.

    Examples
    --------
    >>> import convkern as ck
    >>> ck.isa() in ck.available_isas()
    True
    """
    return _NAMES[isa_number()]


def isa_number() -> int:
    """The number of the ISA in use; at first of the one that the environment names, or the best."""
    global _current
    if _current is None:
        _current = _number_of(_wanted, "CONVKERN_ISA") if _wanted else _core.isa_best()
    return _current


class _Restore:
    """Puts a setting back when a `with` block ends."""

    def __init__(self, restore: Any, previous: Any) -> None:
        self._restore = restore
        self.previous = previous

    def __enter__(self) -> _Restore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore(self.previous)


def use_isa(name: str) -> _Restore:
    """Make new operations for this ISA, in the whole process.

    Layers keep the ISA they were made for; functions take the one in force when they are called.

    Parameters
    ----------
    name : {"scalar", "sse2", "avx2", "avx512", "amx", "neon"}
        As in the environment variable ``CONVKERN_ISA``, which sets it at start-up. "amx" is avx512,
        but for large matrix products of float32: those are made by AMX-BF16, of numbers in three
        parts, with smaller errors.

    Returns
    -------
    context manager
        Restores the previous ISA at the end of a ``with`` block.

    Raises
    ------
    ValueError
        There is no such ISA.
    RuntimeError
        This CPU lacks it; the message lists what it has.

    Examples
    --------
    >>> import convkern as ck
    >>> with ck.use_isa("scalar"):
    ...     ck.isa()
    'scalar'
    """
    global _current
    number = _number_of(name, "use_isa")
    previous, _current = isa(), number
    return _Restore(use_isa, previous)


_num_threads: int | None = None  # until it is asked for, as for _current


def _count_of(variable: str, text: str) -> int:
    """A number of threads in the environment; OpenMP allows a list, one for each level."""
    count = text.split(",")[0].strip()
    if not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise ValueError(f"{variable} must be an integer of at least 1, not {text!r}")
    return int(count)


def _threads_at_start() -> int:
    own = os.environ.get("CONVKERN_NUM_THREADS", "")
    if own:
        return _count_of("CONVKERN_NUM_THREADS", own)
    try:
        return _count_of("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", ""))
    except ValueError:  # nothing of ours to complain about
        return usable_cpus()


def get_num_threads() -> int:
    """At most how many threads a call takes that does not say it with ``threads=``.

    At first it is the environment variable ``CONVKERN_NUM_THREADS``, or else ``OMP_NUM_THREADS``,
    or else the number of CPUs that the process may use: those of its affinity, and no more than the
    quota of its control groups (version 1 or 2), as they are when it is first asked for.

    A call takes fewer threads where there is little to do, and only its own while another call, of
    another Python thread, has the others. The result is the same to the last bit.

    Raises
    ------
    ValueError
        ``CONVKERN_NUM_THREADS`` is not an integer of at least 1. Every operation then raises the
        same; `import convkern` does not.

    See Also
    --------
    set_num_threads
        Which also says what threadpoolctl does.

    Examples
    --------
    >>> import convkern as ck
    >>> ck.get_num_threads() >= 1
    True
    """
    global _num_threads
    if _num_threads is None:
        _num_threads = _threads_at_start()
    return _num_threads


class _PreviousThreads(_Restore, int):
    """The number that `set_num_threads` replaced; it comes back when a `with` block ends."""

    def __new__(cls, restore: Any, previous: int) -> _PreviousThreads:
        return int.__new__(cls, previous)


def set_num_threads(n: int) -> _PreviousThreads:
    """Let a call take at most n threads unless it says otherwise, in the whole process.

    The threads start when they are first needed, sleep between calls, and start afresh in a forked
    child. `threadpoolctl.threadpool_limits` sets the same number, where threadpoolctl is installed.

    Parameters
    ----------
    n : int
        At least 1. More than there are CPUs is allowed, and slow; no call takes more than 256.

    Returns
    -------
    int, context manager
        The previous number; at the end of a ``with`` block it is in force again.

    Raises
    ------
    TypeError, ValueError
        `n` is not an integer, or below 1.

    Examples
    --------
    >>> import convkern as ck
    >>> with ck.set_num_threads(2):
    ...     ck.get_num_threads()
    2
    """
    global _num_threads
    n = as_int("set_num_threads", "n", n, 1)
    previous, _num_threads = get_num_threads(), n
    return _PreviousThreads(set_num_threads, previous)


def num_threads(op: str, threads: Any) -> int:
    """At most how many threads a call takes that was given ``threads=``."""
    if threads is None:
        return _num_threads or get_num_threads()
    return as_int(op, "threads", threads, 1)


def cpu_name() -> str:
    """The CPU's name as it gives it."""
    return _core.cpu()[0]


def fma_peak_gflops() -> float:
    """float32 GFLOP/s of a register-only FMA loop of the ISA in use; takes about a millisecond.

    The ISAs without FMA (sse2, scalar) multiply and add. Measure it in the same rounds as what it
    is compared with: clocks drift.
    """
    return _core.probe_fma(isa_number()) / 1e9


def nop_rate_ghz() -> float:
    """Nops per nanosecond. A neighbour on the same physical core halves it: a quiet probe."""
    return _core.probe_nop() / 1e9


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print, or return, what was found and what is used.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        As `numpy.show_config`.

    Examples
    --------
    >>> import convkern as ck
    >>> sorted(ck.show_config("dicts"))
    ['available_isas', 'compiler', 'cpu', 'isa', 'numpy', 'python', 'threads', 'tile', 'version']
    """
    from . import __version__

    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode must be 'stdout' or 'dicts', not {mode!r}")
    name, features, l1d, l2 = _core.cpu()
    rows, columns, lanes = _core.tile(isa_number())
    config = {
        "version": __version__,
        "isa": isa(),
        "available_isas": available_isas(),
        "tile": {"rows": rows, "columns": columns, "lanes": lanes},
        "cpu": {
            "name": name,
            "features": features,
            "l1d_bytes": l1d,
            "l2_bytes": l2,
            "cores": os.cpu_count(),
        },
        "compiler": _core.COMPILER,
        "threads": get_num_threads(),
        "numpy": np.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        sys.stdout.write(f"{key}: {value}\n")
    return None
