"""How a command says that it cannot do what it was asked."""

from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(Exception):
    """A mistake in what was asked, told in one line; the command exits with code 2."""


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
