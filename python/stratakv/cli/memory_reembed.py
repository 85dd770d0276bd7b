"""`stratakv memory reembed`: vectors made anew, by another embedder or where they are missing."""

from __future__ import annotations

import argparse

from stratakv.cli.embedders import embedder_of
from stratakv.cli.errors import UsageError
from stratakv.cli.memory import check_memories
from stratakv.cli.output import Output, format_count
from stratakv.cli.progress import Progress

__all__ = ["reembed"]


def reembed(args: argparse.Namespace, out: Output) -> int:
    """Embeds until all is done; what was done is kept where it is interrupted.

    Raises:
        UsageError: there are no memories, or no embedder.
    """
    check_memories(args)
    from stratakv.engram import Engram

    with out.busy("loading the embedder"):
        embedder = embedder_of(args.embedder)
    if embedder is None:
        raise UsageError("there is no embedder to make vectors", "--embedder names one; see --help")
    bar = Progress(out.stderr, label="embed", total=0, unit="memories", show=args.progress)
    place = args.directory if args.database is None else args.database
    reached = (0, 0)

    def show(done: int, total: int) -> None:
        nonlocal reached
        reached = (done, total)
        bar.total = total
        bar.update(done)

    try:
        with bar:
            number = Engram.reembed(place, embedder=embedder, progress=show)
    except KeyboardInterrupt:
        done, total = map(format_count, reached)
        out.note(f"{done} of {total} memories are embedded anew; the same command goes on from there")
        raise
    if out.json_mode:
        out.json({"memories": number, "embedder": embedder.identity})
    else:
        what = "memory" if number == 1 else "memories"
        out.result(f"embedded {format_count(number)} {what} by {embedder.identity}")
    return 0
