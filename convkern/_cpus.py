"""How many CPUs this process may use: its affinity, and the quotas of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(
    groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")
) -> int:
    """At least 1. Of a quota of 1.5 CPUs 1: threads beyond it stall for the rest of its period."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.floor(min(cpus, *_quotas(groups, mounts))))


def _quotas(groups: Path, mounts: Path) -> Iterator[float]:
    """In CPUs, of the groups of both versions that this process is in, and of those around them.

    In a container the mount often begins at a group further in than /proc says; what is missing
    says nothing.
    """
    yield math.inf
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = [p.relative_to("/") for p in (PurePosixPath(path), *PurePosixPath(path).parents)]
        if controllers == "":
            yield from (_quota_v2(m / p) for m in (mounts, mounts / "unified") for p in inside)
        elif "cpu" in controllers.split(","):
            yield from (
                _quota_v1(mounts / name / p) for name in (controllers, "cpu") for p in inside
            )


def _quota_v2(group: Path) -> float:
    return _ratio(*_words(group / "cpu.max"))


def _quota_v1(group: Path) -> float:
    return _ratio(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us"))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _ratio(*words: str) -> float:
    """Microseconds of CPU time by those of a period; "max", "-1" and nothing are no limit."""
    try:
        quota, period = map(int, words)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
