"""`--embedder`: what makes vectors, by its name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from stratakv.cli.errors import UsageError

if TYPE_CHECKING:
    from stratakv.engram import Embedder

NAMES = ("auto", "none", "minilm")
# With the name or the directory of a model behind each.
KINDS = ("sentence-transformers:", "hidden-states:")


def add_embedder_option(parser: argparse.ArgumentParser) -> None:
    """`--embedder`."""
    parser.add_argument(
        "--embedder",
        type=_name,
        default="auto",
        metavar="NAME",
        help="auto makes vectors where the offline embedder is installed; none finds by words alone; minilm, "
        "sentence-transformers:MODEL, hidden-states:MODEL (a language model's own; MODEL is a name or a "
        "directory)",
    )


def embedder_of(name: str) -> Embedder | None:
    """The embedder of a name that `--embedder` took.

    Raises:
        NotInstalledError: what it needs is not installed.
        UsageError: the model can't be loaded.
    """
    from stratakv.engram import embedder_named

    try:
        return embedder_named(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise UsageError(
            f"--embedder {name}: {reason}", "give a directory of a model, or a name that can be loaded here"
        ) from error


def _name(text: str) -> str:
    if text in NAMES or any(text.startswith(kind) and text != kind for kind in KINDS):
        return text
    accepted = ", ".join((*NAMES, *(f"{kind}MODEL" for kind in KINDS)))
    raise argparse.ArgumentTypeError(f"{text!r}: accepted are {accepted}")
