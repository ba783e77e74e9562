"""Make convkern's threads known to threadpoolctl, where that is installed.

`threadpoolctl.threadpool_limits` then limits them with those of BLAS and OpenMP, and
`threadpoolctl.threadpool_info` lists them.
"""

from __future__ import annotations

from . import runtime


def register() -> None:
    """Do nothing without threadpoolctl, or with one older than 3.2, which takes no controllers."""
    try:
        from threadpoolctl import LibController
        from threadpoolctl import register as add
    except ImportError:
        return

    class ConvkernController(LibController):  # type: ignore[misc]
        """The pool of csrc/ck_threads.c, found by the extension's file name and one symbol."""

        user_api = "convkern"
        internal_api = "convkern"
        filename_prefixes = ("_core.",)
        check_symbols = ("ck_compiler",)

        def get_num_threads(self) -> int:
            return runtime.get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            runtime.set_num_threads(num_threads)

        def get_version(self) -> str:
            from . import __version__

            return __version__

    add(ConvkernController)
