"""What a run found: as JSON, as a table, as the README's table, and what a reader must know."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

import convkern as ck
from convkern.cli._measure import MIN_QUIET_ROUNDS, QUIET_FRACTION

from .libraries import PEERS
from .measure import MAX_WAITED, Sample, best_peer, summarize
from .workloads import NETWORKS, Workload

if TYPE_CHECKING:
    from rich.table import Table

LOSES = "!"  # after a ratio
NAMES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn"}


def make(
    samples: Sequence[Sample],
    workloads: Sequence[Workload],
    fair: Sequence[str],
    skipped: dict[str, str],
    seed: int,
) -> dict[str, Any]:
    """Gather all that a run found; `fair` are the peers that run on the same instruction set."""
    rows = summarize(samples, {w.name: w.macs for w in workloads})
    for row in rows:
        row["best_peer"] = best_peer(row["ratios"], fair)
    peers = [name for name in PEERS if any(name in row["ratios"] for row in rows)]
    config = ck.show_config(mode="dicts") or {}
    return {
        "machine": {
            "cpu": ck.runtime.cpu_name(),
            "cores": config["cpu"]["cores"],
            "isa": ck.isa(),
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
            "peak_gflops": max(s.peak_gflops / s.threads for s in samples),
            "nop_ghz": max(s.nop_ghz for s in samples),
        },
        "versions": {
            "convkern": ck.__version__,
            **{name: metadata.version(PEERS[name].package) for name in peers},
            "compiler": config["compiler"],
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        "peers": peers,
        "fair": [name for name in peers if name in fair],
        "skipped": skipped,
        "rows": rows,
        "samples": [vars(sample) for sample in samples],
    }


def table(report: dict[str, Any]) -> Table:
    """Make the table for a terminal."""
    from rich import box
    from rich.table import Table

    headings, rows = _headings(report), _cells(report)
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, title="Times as fast as a peer")
    made.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        made.add_column(heading, justify="right", no_wrap=True)
    for row, cells in zip(report["rows"], rows, strict=True):
        made.add_row(*cells, style="bold red" if _loses(row) else "")
    return made


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """Write the README's table, line by line."""
    headings, rows = [h.replace("\n", " ") for h in _headings(report)], _cells(report)
    yield " ".join(_about(report))
    yield ""
    for cells in [headings, ["---"] * len(headings), *rows]:
        yield f"| {' | '.join(cells)} |"


def notes(report: dict[str, Any]) -> Iterator[str]:
    """Say what a reader must know to trust the table."""
    yield from _about(report)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield f"Versions: {versions}."
    if report["skipped"]:
        skipped = "; ".join(f"{name}: {why}" for name, why in report["skipped"].items())
        yield f"Skipped: {skipped}."
    if any(row["workload"] not in NETWORKS for row in report["rows"]):
        yield (
            "Single operations flatter convkern: peers that convert to a layout of their own do so "
            "in every call here, and once in a whole network."
        )
    few = sum(row["quiet_rounds"] < MIN_QUIET_ROUNDS for row in report["rows"])
    if few:
        yield (
            f"The machine was busy: {few} of {len(report['rows'])} rows had fewer than "
            f"{MIN_QUIET_ROUNDS} quiet rounds, so all of their rounds count."
        )


def _about(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    rounds = max(row["rounds"] for row in report["rows"])
    yield (
        f"{machine['cpu']}, {machine['isa']}, float32, {report['date'][:10]}: a peer's time over "
        f"convkern's, medians of paired ratios over the quiet ones of {rounds} interleaved rounds "
        f"(nop rate within {1 - QUIET_FRACTION:.0%} of the best, {machine['nop_ghz']:.1f} GHz; at "
        f"most {MAX_WAITED:.0%} of the time spent waiting for a CPU). {LOSES} marks where convkern "
        f"is the slower. Every output was checked."
    )
    unfair = [NAMES[name] for name in report["peers"] if name not in report["fair"]]
    if unfair:
        yield (
            f"ONEDNN_MAX_CPU_ISA={machine['onednn_max_cpu_isa']} held torch and OpenVINO; "
            f"{' and '.join(unfair)} cannot be held and ran on all that the CPU has, so the best "
            f"peer is not one of them."
        )


def _headings(report: dict[str, Any]) -> list[str]:
    """Of either table; their lines keep the terminal's to 80 columns."""
    peers = [NAMES[peer].replace(" ", "\n") for peer in report["peers"]]
    ours = ["workload", "thr.", "ms", "% of\npeak"]
    return [*ours, *peers, "best\npeer", "when\nbusy", "quiet\nrounds"]


def _cells(report: dict[str, Any]) -> list[list[str]]:
    return [_row_cells(row, report["peers"]) for row in report["rows"]]


def _row_cells(row: dict[str, Any], peers: Sequence[str]) -> list[str]:
    best = row["best_peer"]
    return [
        row["workload"],
        str(row["threads"]),
        f"{row['ms']['convkern']:#.3g}",
        "-" if row["peak_fraction"] is None else f"{100 * row['peak_fraction']:.0f}",
        *[_ratio(row["ratios"].get(peer)) for peer in peers],
        _ratio(row["ratios"].get(best)),
        _ratio(row["contended_ratios"].get(best)),
        f"{row['quiet_rounds']}/{row['rounds']}",
    ]


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" + LOSES * _below_one(ratio)


def _below_one(ratio: float) -> bool:
    """Whether it is so as it is shown."""
    return round(ratio, 2) < 1


def _loses(row: dict[str, Any]) -> bool:
    best = row["best_peer"]
    return best is not None and _below_one(row["ratios"][best])
