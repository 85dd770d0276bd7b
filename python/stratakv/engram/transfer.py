"""Memories as files of JSON Lines, one version of a memory a line, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stratakv.engram.drafts import draft_of
from stratakv.engram.engine import Draft
from stratakv.engram.memory import Memory, Scope

NAMES = ("user", "agent", "project", "session")
TIMES = ("valid_from", "valid_to", "recorded", "closed")
# What a line may have, and what it must.
KEYS = frozenset({"id", "text", "metadata", "source", "author", "supersedes", *NAMES, *TIMES})
NEEDED = ("id", "text", "user")


def write(memories: Iterable[Memory], path: str | os.PathLike[str]) -> int:
    """Writes memories into a file that is private to its owner and replaced whole; how many."""
    target = Path(path)
    beside = target.with_name(f"{target.name}.tmp")
    number = 0
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
        for memory in memories:
            file.write(to_line(memory) + "\n")
            number += 1
    beside.replace(target)
    return number


def read(path: str | os.PathLike[str]) -> list[Memory]:
    """The memories of a file; all lines are read and checked.

    Raises:
        ValueError: a line that is not accepted; the message has its number.
    """
    with Path(path).open(encoding="utf-8") as file:
        return from_lines(file, name=str(path))


def to_line(memory: Memory) -> str:
    """One line, without its end. Vectors are left out: they are made again from the text."""
    entry: dict[str, Any] = {"id": memory.id, "text": memory.text}
    entry |= {name: getattr(memory.scope, name) for name in NAMES}
    entry |= {"metadata": dict(memory.metadata), "source": memory.source, "author": memory.author}
    entry["supersedes"] = memory.supersedes
    for name in TIMES:
        time: datetime | None = getattr(memory, name)
        entry[name] = None if time is None else time.isoformat()
    return json.dumps(
        {key: value for key, value in entry.items() if value not in (None, {})}, ensure_ascii=False
    )


def from_lines(lines: Iterable[str], *, name: str) -> list[Memory]:
    """Memories of some lines; empty lines are skipped.

    Raises:
        ValueError: a line that is none of `to_line`'s; the message has its number.
    """
    return [
        _from_line(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]


def _from_line(line: str, where: str) -> Memory:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object")  # noqa: TRY004
    missing = [key for key in NEEDED if key not in entry]
    unknown = sorted(set(entry) - KEYS)
    if missing or unknown:
        raise ValueError(f"{where}: missing {missing}, unknown {unknown}; accepted are {sorted(KEYS)}")
    try:
        times: dict[str, Any] = {
            key: datetime.fromisoformat(entry[key]) if key in entry else None for key in TIMES
        }
        names: dict[str, Any] = {key: entry.get(key) for key in NAMES}
        scope = Scope(**names)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    return Memory(
        id=entry["id"],
        text=entry["text"],
        scope=scope,
        metadata=entry.get("metadata", {}),
        source=entry.get("source"),
        author=entry.get("author"),
        supersedes=entry.get("supersedes"),
        **times,
    )


def again(memory: Memory, numbers: Mapping[tuple[str, int], int]) -> Draft:
    """The draft of a memory that was exported.

    Args:
        memory: as it was read.
        numbers: of memories that were stored again, by user and the number that they had.
    """
    old = None if memory.supersedes is None else numbers.get((memory.scope.user, memory.supersedes))
    return draft_of(
        memory.text,
        memory.metadata,
        memory.source,
        author=memory.author,
        valid_from=memory.valid_from,
        # One that was ended later was open when it was recorded: its end comes again with what ended it.
        valid_to=None if memory.closed is not None else memory.valid_to,
        recorded=memory.recorded,
        supersedes=old,
    )


def chunks(memories: Sequence[Memory], length: int) -> Iterator[list[Memory]]:
    """Runs of one scope, at most so long, of which none supersedes another of the same run."""
    chunk: list[Memory] = []
    ids: set[int] = set()
    for memory in memories:
        apart = chunk and (memory.scope != chunk[0].scope or memory.supersedes in ids or len(chunk) == length)
        if apart:
            yield chunk
            chunk, ids = [], set()
        chunk.append(memory)
        ids.add(memory.id)
    if chunk:
        yield chunk
