"""The ``convkern`` command: ``convkern bench | classify | info``."""

import argparse
import sys
from collections.abc import Sequence

import convkern as ck
from convkern.cli import bench, classify, info
from convkern.cli._errors import CommandError, Parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        The exit code: 0; 1 where a result turned out wrong; 2 for a mistake in what was asked,
        told in one line on stderr; 130 after an interrupt.

    Raises
    ------
    SystemExit
        For ``--help`` and ``--version`` (0) and arguments that do not parse (2).
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        _check_environment()
        code: int = args.run(args)
        return code
    except CommandError as error:
        line = str(error).replace("\n", " ")  # file names and import errors may hold several
        print(f"convkern {args.command}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _check_environment() -> None:
    try:
        ck.isa()
    except (ValueError, RuntimeError) as error:
        raise CommandError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="convkern", description="The convolutions of light networks, fast.")
    parser.add_argument("--version", action="version", version=f"convkern {ck.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in (bench, classify, info):
        command.add_parser(subparsers)
    return parser
