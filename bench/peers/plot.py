"""The figure of `python -m bench.peers --plot`: every peer's time beside convkern's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from convkern.cli._plot import FAINT, INK, MUTED, TIMES

from .report import NAMES

COLOURS = {"torch": "#ef8354", "onnxruntime": "#2a9d8f", "openvino": "#3b82f6", "ncnn": "#9b5de5"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw a report into a file, whose suffix says which format."""
    rows = report["rows"]
    height = 1.9 + 0.42 * len(rows)  # inches: the rows, and what stands above and below them
    figure = Figure(figsize=(10, height), dpi=160, facecolor="white")
    axes = figure.add_axes((0.28, 0.62 / height, 0.69, 1 - 1.7 / height))
    for y, row in enumerate(rows):
        for peer, ratio in row["ratios"].items():
            fill = COLOURS[peer] if peer in report["fair"] else "white"
            axes.plot(ratio, y, "o", ms=9, mfc=fill, mec=COLOURS[peer], mew=1.5, ls="")
    axes.axvline(1, color=INK, lw=1.5)
    axes.xaxis.set_major_formatter(f"{{x:g}}{TIMES}")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
    axes.set_xlabel("a peer's time over convkern's: right of the line convkern wins", color=MUTED)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    for peer in report["peers"]:
        fill = COLOURS[peer] if peer in report["fair"] else "white"
        style = {"mfc": fill, "mec": COLOURS[peer], "mew": 1.5, "ms": 9, "ls": ""}
        label = f"{NAMES[peer]} {report['versions'][peer]}"
        axes.plot([], [], "o", label=label, **style)
    figure.legend(loc="upper left", bbox_to_anchor=(0.01, 1 - 0.5 / height), ncols=4, frameon=False)
    machine = report["machine"]
    title = f"{machine['cpu']}, {machine['isa']}, {report['date'][:10]}"
    if report["fair"] != report["peers"]:
        title += f"; hollow: could not be held to {machine['isa']}"
    figure.text(0.02, 1 - 0.4 / height, title, color=INK, weight="bold")
    figure.savefig(path)


def _name(row: dict[str, Any]) -> str:
    threads = f"{row['threads']} thread" + "s" * (row["threads"] > 1)
    return f"{row['workload']}, {threads}"
