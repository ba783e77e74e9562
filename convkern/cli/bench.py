"""``convkern bench``: the theory of separable convolutions beside what this CPU makes of it."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import convkern as ck
from convkern.cli import _measure
from convkern.cli._errors import CommandError, check_writable, needs_extra

if TYPE_CHECKING:
    from rich.table import Table

# Rounds, and in how many of them the textbook loops run, which take seconds.
ROUNDS = {"full": (100, 3), "quick": (20, 1)}
# Below this fraction of the prediction a block is said to fall short.
GOAL = 0.85
# For the progress bar: the textbook loops take about this many times as long as all else.
NAIVE_WEIGHT = 20


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to ``convkern``."""
    parser = subparsers.add_parser(
        "bench",
        help="predicted and measured speed-up of separable over standard convolutions",
        description="For each distinct separable block of MobileNetV1-224, measure the speed-up "
        "over the standard 3x3 convolution of the same shape, on one core, and set it beside the "
        "1 / (1/N + 1/9) that the multiply-adds predict.",
    )
    parser.add_argument("--isa", help="instruction set to force; the fastest by default")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less than a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, blocks: Sequence[_measure.Block] = _measure.MOBILENET_V1) -> int:
    """Measure, then print, write and draw; 1 if an output was wrong."""
    with needs_extra("cli"):
        from rich.console import Console

        if args.plot:
            from convkern.cli import _plot
    for path in filter(None, (args.json, args.plot)):
        check_writable(path)
    if args.plot:
        _plot.check_suffix(args.plot)

    rounds, naive_rounds = ROUNDS["quick" if args.quick else "full"]
    console = Console(highlight=False, markup=False)
    try:
        isa = ck.use_isa(args.isa or ck.isa())
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"--isa: {str(error).removeprefix('use_isa: ')}") from error
    with isa:
        console.print(
            f"Timing {len(blocks)} separable blocks against standard convolutions of the same "
            f"shape on one core of {ck.runtime.cpu_name()} with {ck.isa()}, in {rounds} rounds, "
            f"{naive_rounds} of them with textbook loops too.",
            soft_wrap=True,
        )
        try:
            samples = _collect(blocks, rounds, naive_rounds)
        except _measure.WrongResultError as error:
            print(f"convkern bench: WRONG RESULT, no times reported: {error}", file=sys.stderr)
            return 1
        report = _report(samples, rounds)

    console.print("", _table(report), "", sep="\n")
    for line in _notes(report):
        console.print(line, soft_wrap=True)
    try:
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")
        if args.plot:
            _plot.draw(report, args.plot)
    except OSError as error:
        raise CommandError(str(error)) from error
    console.print(verdict(report["rows"]), soft_wrap=True)
    return 0


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what came out, whichever way."""
    fractions = [row["fast_ratio"] / row["predicted"] for row in rows]
    short = sum(f < GOAL for f in fractions)
    return (
        f"A separable convolution is {median(row['fast_ratio'] for row in rows):.1f} times as fast "
        f"as the standard one (median; theory {median(row['predicted'] for row in rows):.1f}), "
        f"{min(fractions):.2f} to {max(fractions):.2f} of the prediction; "
        f"{short or 'none'} of {len(rows)} blocks below {GOAL} of it."
    )


def _collect(
    blocks: Sequence[_measure.Block], rounds: int, naive_rounds: int
) -> list[_measure.Sample]:
    """Measure behind a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    samples = []
    # No refreshing thread: it would take the interpreter lock in the middle of a sample.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        total = len(blocks) * (rounds + NAIVE_WEIGHT * naive_rounds)
        task = progress.add_task("checking and timing", total=total)
        progress.refresh()
        for sample in _measure.measure(blocks, rounds, naive_rounds):
            samples.append(sample)
            weight = 1 + NAIVE_WEIGHT * ("naive_standard" in sample.seconds)
            progress.update(task, advance=weight, description=sample.block.name, refresh=True)
    return samples


def _report(samples: Sequence[_measure.Sample], rounds: int) -> dict[str, Any]:
    config = ck.show_config(mode="dicts")
    assert config is not None
    return {
        "machine": {
            "cpu": ck.runtime.cpu_name(),
            "isa": ck.isa(),
            "peak_gflops": _rounded(max(s.peak_gflops for s in samples)),
            "nop_ghz": _rounded(max(s.nop_ghz for s in samples)),
            "threads": 1,
            "versions": {
                "convkern": ck.__version__,
                "compiler": config["compiler"],
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
        },
        "rounds": rounds,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "rows": [
            {key: _rounded(value) for key, value in row.items()}
            for row in _measure.summarize(samples)
        ],
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _table(report: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Fits 80 columns, which is what a pipe has.
    title = "Speed-up over the standard convolution"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=title)
    table.add_column("block", no_wrap=True)
    for heading in (
        "theory",
        "naive",
        "fast",
        "of\ntheory",
        "naive\nto fast",
        "sep\nms",
        "sep\nGFLOPS",
        "% peak\nstd sep",
        "quiet",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        fraction = row["fast_ratio"] / row["predicted"]
        style = "green" if fraction >= 1 else "" if fraction >= GOAL else "bold red"
        table.add_row(
            row["block"],
            f"{row['predicted']:.2f}",
            f"{row['naive_ratio']:.2f}",
            Text(f"{row['fast_ratio']:.2f}", style),
            Text(f"{fraction:.2f}", style),
            f"{row['cross_ratio']:.0f}",
            f"{row['separable_ms']:#.3g}",
            f"{row['gflops']:.0f}",
            f"{100 * row['standard_peak_fraction']:.0f} {100 * row['peak_fraction']:3.0f}",
            f"{row['quiet_rounds']}/{row['rounds']}",
        )
    return table


def _notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know to trust the table."""
    machine, rows = report["machine"], report["rows"]
    notes = [
        "fast: both convolutions by convkern's kernels. naive: both by textbook loops. naive to "
        "fast: from the naive standard to the fast separable one. std, sep: the fast ones.",
        f"Medians over the quiet rounds: nop rate within {1 - _measure.QUIET_FRACTION:.0%} of the "
        f"best, {machine['nop_ghz']:.1f} GHz. FMA peak at best {machine['peak_gflops']:.0f} "
        "GFLOP/s. Every output was checked.",
    ]
    contended = sum(row["quiet_rounds"] < _measure.MIN_QUIET_ROUNDS for row in rows)
    if contended:
        notes.append(
            f"The machine was busy: {contended} of {len(rows)} blocks had fewer than "
            f"{_measure.MIN_QUIET_ROUNDS} quiet rounds, so all of their rounds count."
        )
    return notes
