"""The command `python -m bench.peers`: what is asked, what is printed, written and drawn."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import convkern as ck
from convkern.cli._errors import CommandError, Parser, check_writable, needs_extra

from .libraries import PEERS, hold_to

if TYPE_CHECKING:
    from .measure import Contest, Sample
    from .workloads import Workload

ROUNDS = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then print, write and draw.

    Returns
    -------
    int
        The exit code: 0; 1 where a result turned out wrong; 2 for a mistake in what was asked, told
        in one line on stderr; 130 after an interrupt.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except CommandError as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m bench.peers",
        description="Time whole networks, and single operations, against other libraries: in "
        "interleaved rounds of one process, every output checked.",
    )
    parser.add_argument("--nets", type=_names, metavar="A,B", help="networks; all by default")
    parser.add_argument(
        "--ops", metavar="PATTERN", help="single operations, such as 'separable*', and no networks"
    )
    parser.add_argument(
        "--peers", type=_names, metavar="A,B", default=list(PEERS), help="all by default"
    )
    parser.add_argument(
        "--threads", type=_names, metavar="N,M", default=["1", "all"], help="1,all by default"
    )
    parser.add_argument("--isa", help="instruction set to force; the fastest by default")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"{ROUNDS} by default"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order within rounds"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table")
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    return parser


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _run(args: argparse.Namespace) -> int:
    with needs_extra("cli"):
        import rich  # noqa: F401

        if args.plot:
            from convkern.cli import _plot
    for path in filter(None, (args.json, args.plot)):
        check_writable(path)
    if args.plot:
        _plot.check_suffix(args.plot)
    if args.rounds < 1:
        raise CommandError(f"--rounds must be at least 1, not {args.rounds}")
    peers = _chosen("--peers", args.peers, PEERS)
    threads = _threads(args.threads)
    best = ck.available_isas()[-1]
    try:
        isa = ck.use_isa(args.isa or ck.isa())
    except (RuntimeError, ValueError) as error:
        raise CommandError(str(error).replace("use_isa:", "--isa:", 1)) from error
    with isa:
        fair = hold_to(ck.isa(), best)
        with needs_extra("test"):
            from . import measure, report
        try:
            workloads, skipped = _workloads(args)
            samples, lacking = _collect(workloads, peers, threads, args)
        except measure.WrongResultError as error:
            print(f"WRONG RESULT, no times reported: {error}", file=sys.stderr)
            return 1
        _show(report.make(samples, workloads, fair, skipped | lacking, args.seed), args)
    return 0


def _show(made: dict[str, Any], args: argparse.Namespace) -> None:
    from rich.console import Console

    from . import report

    console = Console(highlight=False, markup=False)
    console.print("", report.table(made), "", sep="\n")
    for line in report.notes(made):
        console.print(line, soft_wrap=True)
    if args.markdown:
        print("", *report.markdown(made), sep="\n")
    try:
        if args.json:
            args.json.write_text(json.dumps(made, indent=1) + "\n")
        if args.plot:
            from . import plot

            plot.draw(made, args.plot)
    except OSError as error:
        raise CommandError(str(error)) from error


def _chosen(option: str, names: Sequence[str], known: Sequence[str] | dict) -> list[str]:
    """Check names against what there is; keep the order of what there is."""
    for name in names:
        if name not in known:
            raise CommandError(f"{option}: no {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def _threads(names: Sequence[str]) -> list[int]:
    available = len(os.sched_getaffinity(0))
    numbers = []
    for name in names:
        if name != "all" and not (name.isascii() and name.isdigit() and int(name) >= 1):
            raise CommandError(f"--threads: {name!r} is neither a number from 1 on nor 'all'")
        numbers.append(available if name == "all" else int(name))
        if numbers[-1] > available:
            raise CommandError(f"--threads: {name} are more than the {available} CPUs there are")
    return list(dict.fromkeys(numbers))


def _workloads(args: argparse.Namespace) -> tuple[list[Workload], dict[str, str]]:
    """Make what is timed; and say why something is not."""
    from .workloads import NETWORKS, operations

    makes: list[tuple[str, Callable[[], Workload]]] = []
    if args.nets is not None or args.ops is None:
        names = _chosen("--nets", args.nets or list(NETWORKS), NETWORKS)
        makes += [(name, NETWORKS[name]) for name in names]
    if args.ops is not None:
        found = operations(args.ops)
        if not found:
            raise CommandError(f"--ops: no operation matches {args.ops!r}")
        makes += found
    workloads, skipped = [], {}
    for name, make in makes:
        try:
            workloads.append(make())
        except ImportError as error:
            skipped[name] = str(error)
    if not workloads:
        raise CommandError("; ".join(skipped.values()))
    return workloads, skipped


def _collect(
    workloads: Sequence[Workload],
    peers: Sequence[str],
    threads: Sequence[int],
    args: argparse.Namespace,
) -> tuple[list[Sample], dict[str, str]]:
    """Measure behind a progress bar on stderr; and say which peers are missing."""
    from rich.console import Console
    from rich.progress import Progress

    from .measure import Contest, rounds_of

    samples, lacking = [], {}
    # No refreshing thread: it would take the interpreter lock in the middle of a sample.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=len(threads) * len(workloads) * (args.rounds + 1))

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what, refresh=True)

        def contests(number: int) -> Iterator[Contest]:
            for workload in workloads:
                yield Contest(workload, peers, number)
                step(f"preparing and checking {workload.name}")

        for number in threads:
            prepared = list(contests(number))
            for contest in prepared:
                lacking |= contest.lacking
            for sample in rounds_of(prepared, args.rounds, args.seed):
                samples.append(sample)
                step(f"timing {sample.workload}, {number} thread(s)")
    return samples, lacking
