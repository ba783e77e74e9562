"""How a command says that it cannot do what it was asked."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


class CommandError(Exception):
    """A mistake in what was asked, told in one line; the command exits with code 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def check_writable(path: Path) -> None:
    """Fail now rather than after the measurement; leave the file as it was."""
    existed = path.exists()
    try:
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import into the command that installs what is missing.

    >>> with needs_extra("cli"):  # doctest: +ELLIPSIS
    ...     import no_such_package
    Traceback (most recent call last):
        ...
    convkern.cli._errors.CommandError: No module named 'no_such_package': pip install ...
    """
    try:
        yield
    except ImportError as error:
        raise CommandError(f"{error}: pip install 'convkern[{extra}]'") from error
