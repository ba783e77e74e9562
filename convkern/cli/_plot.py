"""The figure of ``convkern bench --plot``: predicted beside measured speed-up, block by block."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from convkern.cli._errors import CommandError

TIMES = "\N{MULTIPLICATION SIGN}"
INK, MUTED, FAINT = "#1f2430", "#6b7280", "#e5e7eb"
FAST, NAIVE = "#3b82f6", "#9ca3af"
THEORY_MARK: dict[str, Any] = {"marker": "|", "ms": 21, "mew": 2.2, "color": INK, "ls": ""}
NAIVE_MARK: dict[str, Any] = {"marker": "o", "ms": 7, "mew": 1.5, "ls": ""}
NAIVE_MARK |= {"color": "white", "mec": NAIVE}
# Numbers to the right of the bars: right edge in widths of the axes, and heading.
COLUMNS = {1.14: "convkern", 1.28: "of theory", 1.46: "naive → fast"}


def check_suffix(path: Path) -> None:
    """Refuse a file type that matplotlib cannot write."""
    known = FigureCanvasAgg.filetypes
    if path.suffix.lower().removeprefix(".") not in known:
        raise CommandError(f"cannot draw {path}: its suffix must be one of {', '.join(known)}")


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw a report of ``convkern bench`` into a file.

    Parameters
    ----------
    report : dict
        As ``convkern bench --json`` writes it.
    path : Path
        Its suffix says which format.
    """
    rows = report["rows"]
    height = 2.5 + 0.44 * len(rows)  # inches: the rows, and what stands above and below them
    figure = Figure(figsize=(10, height), dpi=160, facecolor="white")
    axes = figure.add_axes((0.215, 0.72 / height, 0.5, 1 - 2.3 / height))
    _set_axes(axes, rows)
    for y, row in enumerate(rows):
        _draw_row(axes, y, row)
    _title(figure, report)
    figure.savefig(path)


def _set_axes(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.set_xlim(0, 1.25 * max(max(r["predicted"], r["fast_ratio"]) for r in rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first layer on top
    axes.set_xlabel("times as fast as a standard convolution of the same shape", color=MUTED)
    axes.xaxis.set_major_formatter(f"{{x:g}}{TIMES}")
    axes.set_yticks(range(len(rows)), [_block_name(row) for row in rows])
    axes.tick_params(length=0, labelcolor=INK)
    axes.tick_params(axis="y", pad=10)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    for x, heading in COLUMNS.items():
        axes.text(x, 1.0, heading, transform=axes.transAxes, ha="right", va="bottom", color=MUTED)


def _draw_row(axes: Axes, y: int, row: dict[str, Any]) -> None:
    predicted, fast = row["predicted"], row["fast_ratio"]
    axes.barh(y, fast, height=0.5, color=FAST)
    axes.plot(predicted, y, **THEORY_MARK)
    _draw_naive(axes, y, row["naive_ratio"])
    values = (f"{fast:.1f}{TIMES}", f"{fast / predicted:.0%}", f"{row['cross_ratio']:.0f}{TIMES}")
    for x, value in zip(COLUMNS, values, strict=True):
        place = axes.get_yaxis_transform()
        axes.text(x, y, value, transform=place, ha="right", va="center", color=INK)


def _draw_naive(axes: Axes, y: int, ratio: float) -> None:
    """Mark the textbook loops' speed-up, with its number where it is off the scale."""
    edge = axes.get_xlim()[1]
    axes.plot(min(ratio, 0.98 * edge), y, **NAIVE_MARK)
    if ratio > edge:
        label = f"{ratio:.0f}{TIMES}"
        axes.text(0.96 * edge, y, label, ha="right", va="center", color=MUTED, size=8)


def _title(figure: Figure, report: dict[str, Any]) -> None:
    """Say what came out, then where, then what the marks are."""
    rows, machine = report["rows"], report["machine"]
    inch = 1 / figure.get_figheight()
    fast, theory = (median(r[key] for r in rows) for key in ("fast_ratio", "predicted"))
    figure.text(
        0.02,
        1 - 0.45 * inch,
        f"Separable convolutions run {fast:.1f}{TIMES} as fast as standard ones; "
        f"theory says {theory:.1f}{TIMES}",
        size=15,
        weight="bold",
        color=INK,
    )
    quiet, total = (sum(r[key] for r in rows) for key in ("quiet_rounds", "rounds"))
    figure.text(
        0.02,
        1 - 0.75 * inch,
        f"{machine['cpu']}, one core, {machine['isa']}, {report['date'][:10]}; "
        f"medians of {report['rounds']} interleaved rounds ({quiet / total:.0%} quiet)",
        color=MUTED,
    )
    marks = [
        Line2D([], [], label="theory: 1 / (1/N + 1/K²)", **THEORY_MARK | {"ms": 12}),
        Patch(label="convkern", color=FAST),
        Line2D([], [], label="textbook loops", **NAIVE_MARK),
    ]
    figure.legend(
        handles=marks,
        loc="center left",
        bbox_to_anchor=(0.007, 1 - 1.12 * inch),
        ncols=len(marks),
        frameon=False,
        labelcolor=INK,
        handletextpad=0.6,
        handlelength=1,
        columnspacing=1.6,
    )


def _block_name(row: dict[str, Any]) -> str:
    stride = f", stride {row['stride']}" if row["stride"] > 1 else ""
    return f"{row['m']} → {row['n']} at {row['size']}²{stride}"
