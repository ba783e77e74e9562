"""``convkern classify``: what a photo shows, by EfficientNet-Lite0."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import convkern as ck
from convkern.cli._errors import CommandError, needs_extra

if TYPE_CHECKING:
    from PIL import Image

# Timed runs, after one to warm up.
RUNS = 5


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to ``convkern``."""
    parser = subparsers.add_parser(
        "classify",
        help="what a photo shows",
        description="Name what a photo shows: the likeliest of the 1000 classes of ImageNet, by "
        "EfficientNet-Lite0.",
    )
    parser.add_argument("photo", metavar="PHOTO", help="an image file that Pillow can read")
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="how many classes to show; 5 by default"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the likeliest classes as a table, and how long it took."""
    with needs_extra("cli"):
        from rich.console import Console
        from rich.table import Table
    with needs_extra("zoo"):
        from PIL import Image  # noqa: F401
    from convkern.zoo import efficientnet_lite0

    try:
        net = efficientnet_lite0()
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    if not 1 <= args.top <= len(net.classes):
        raise CommandError(f"--top must be 1 to {len(net.classes)}, not {args.top}")
    photo = _open(args.photo)
    try:
        x, preprocess_ms = _timed(lambda: net.preprocess(photo))
    except ValueError as error:
        raise CommandError(f"{args.photo!r}: {error}") from error
    logits, network_ms = _timed(lambda: net(x))

    console = Console(highlight=False, markup=False, emoji=False)
    table = Table("class", title=repr(os.path.basename(args.photo)))  # a name may hold any bytes
    table.add_column("probability", justify="right")
    for name, probability in net.rank(logits)[: args.top]:
        table.add_row(name, f"{probability:.1%}")
    console.print(table)
    console.print(
        f"preprocessing {preprocess_ms:.1f} ms, network {network_ms:.1f} ms: medians of {RUNS} "
        f"runs with {ck.isa()}, {ck.get_num_threads()} thread(s)"
    )
    return 0


def _open(path: str) -> Image.Image:
    """Decode a photo upright; whatever may be wrong with the file becomes a `CommandError`."""
    from PIL import Image, ImageOps

    if not os.path.isfile(path):
        kind = "is not a file" if os.path.exists(path) else "does not exist"
        raise CommandError(f"{path!r} {kind}")
    try:
        with warnings.catch_warnings():
            # Pillow refuses bombs by itself, and warns of photos half as large, which do exist;
            # other warnings are of odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise what they like: SyntaxError, struct.error
        reason = " ".join(str(error).split())
        raise CommandError(f"{path!r} is not a readable image: {reason}") from error


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; return its result and the median of its times, in milliseconds."""
    result = function()
    times = []
    for _ in range(RUNS):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return result, median(times) * 1e3
