"""`stratakv eval memory`: how much of what answers a question is recalled from long conversations.

Every conversation is remembered in a directory of its own, turn by turn, and each of its questions is asked
once; nothing is extracted and no model writes an answer. Questions without evidence are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli import options
from stratakv.cli.embedders import add_embedder_option, embedder_of
from stratakv.cli.errors import UsageError
from stratakv.cli.output import Output, format_count, table
from stratakv.eval.conversations import FORMATS, Conversation, Said, read_conversations, shares

if TYPE_CHECKING:
    from stratakv.engram import Engram

__all__ = ["configure", "examine", "run"]

DEPTHS = (5, 10)
MEASURES = {
    "turn": "share of the turns with the answer that are among the first k",
    "session": "share of their sessions that one of the first k is from",
    "evidence": "share of questions of which all such turns are among the first k",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `eval memory`."""
    parser.add_argument("file", metavar="FILE", help="the collection's JSON file")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="whose file it is")
    parser.add_argument(
        "--k",
        type=_depths,
        default=DEPTHS,
        metavar="NUMBERS",
        help="how many memories are recalled, divided by commas (default: 5,10)",
    )
    parser.add_argument(
        "--limit", type=options.positive, metavar="N", help="the first conversations of the file only"
    )
    add_embedder_option(parser)
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="write the result as JSON"
    )
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _depths(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() and 1 <= int(part) <= 1000 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are numbers from 1 to 1000, such as 5,10")
    return tuple(sorted({int(part) for part in parts}))


def run(args: argparse.Namespace, out: Output) -> int:
    """Remembers and asks; reports."""
    from stratakv.engram import Engram

    try:
        conversations = read_conversations(Path(args.file), args.format)[: args.limit]
    except ValueError as error:
        raise UsageError(str(error), f"--format is one of {', '.join(FORMATS)}") from None
    results: list[dict[str, Any]] = []
    embedder = embedder_of(args.embedder)
    for number, conversation in enumerate(conversations, 1):
        with (
            tempfile.TemporaryDirectory() as scratch,
            out.busy(f"conversation {number} of {len(conversations)}"),
            Engram.open(scratch, embedder=embedder, durable=False) as memory,
        ):
            results.extend(examine(memory, conversation, args.k))
    if not results:
        raise UsageError(f"{args.file} has no question with evidence", "give another FILE")
    summary = _summary(results, args.k)
    if out.json_mode:
        identity = None if embedder is None else embedder.identity
        settings = {"format": args.format, "conversations": len(conversations), "embedder": identity}
        out.json({"settings": settings, "summary": summary, "results": results})
    else:
        _tell(summary, args.k, out)
    return 0


def examine(memory: Engram, conversation: Conversation, depths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Remembers a conversation as one user's, and asks its questions.

    Args:
        memory: where it goes; nobody of the conversation's name is in it.
        conversation: what was said, and what is asked.
        depths: how many memories are recalled, each k in 1 to 1,000.

    Yields:
        For each question that has evidence: its conversation, text and kind, and "turn@k", "session@k" and
        "evidence@k" in 0 to 1 for each k, see `shares`.
    """
    user, turns = conversation.name, {turn.id: turn for turn in conversation.turns}
    said: dict[int, Said] = {}
    # Empty turns are in some files, and are no memories.
    spoken = [turn for turn in conversation.turns if turn.text.strip()]
    for (session, time), some in groupby(spoken, key=lambda turn: (turn.session, turn.time)):
        part = list(some)
        numbers = memory.remember_many(
            [turn.text for turn in part],
            user=user,
            session=session,
            authors=[turn.author for turn in part],
            valid_from=time,
        )
        said |= dict(zip(numbers, part, strict=True))
    for asked in conversation.questions:
        if not asked.evidence:
            continue
        hits = memory.recall(asked.text, user=user, k=max(depths))
        found = [said[hit.memory.id] for hit in hits]
        result: dict[str, Any] = {"conversation": user, "question": asked.text, "kind": asked.kind}
        for k in depths:
            result |= {f"{name}@{k}": value for name, value in shares(asked, found[:k], turns).items()}
        yield result


def _summary(results: Sequence[dict[str, Any]], depths: Sequence[int]) -> list[dict[str, Any]]:
    """Means over all questions, and over those of each kind."""
    columns = [f"{name}@{k}" for name in MEASURES for k in depths]
    groups = {"all": list(results)}
    for kind in sorted({one["kind"] for one in results}):
        groups[kind] = [one for one in results if one["kind"] == kind]
    return [
        {
            "kind": kind,
            "questions": len(some),
            **{name: round(statistics.fmean(one[name] for one in some), 4) for name in columns},
        }
        for kind, some in groups.items()
    ]


def _tell(summary: Sequence[dict[str, Any]], depths: Sequence[int], out: Output) -> None:
    columns = [f"{name}@{k}" for name in MEASURES for k in depths]
    rows = [
        [one["kind"], format_count(one["questions"]), *(f"{one[name]:.3f}" for name in columns)]
        for one in summary
    ]
    lines = table(["kind", "questions", *columns], rows, right=range(1, len(columns) + 2))
    for number, line in enumerate(lines):
        out.result(out.style.bold(line) if number == 0 else line)
    for name, meaning in MEASURES.items():
        out.result(out.style.dim(f"{name}@k: {meaning}"))
