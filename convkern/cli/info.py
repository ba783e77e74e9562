"""``convkern info``: what the CPU has, what is used, versions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import convkern as ck
from convkern.cli._errors import needs_extra


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to ``convkern``."""
    parser = subparsers.add_parser(
        "info",
        help="what the CPU has, what is used, versions",
        description="Show what the CPU has, what is used of it, and versions.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what `convkern.show_config` knows as a table."""
    with needs_extra("cli"):
        from rich.console import Console
        from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(ck.show_config(mode="dicts") or {}):
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)
    return 0


def _rows(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        name = prefix + key.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name} ")
        elif key.endswith("_bytes"):
            yield name, f"{value / 1024:,.0f} KiB"
        elif isinstance(value, (list, tuple)):
            yield name, " ".join(map(str, value))
        else:
            yield name, str(value)
