"""Memories as JSON Lines, one version of a memory a line, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from stratakv.engram.memory import Memory, Scope

NAMES = ("user", "agent", "project", "session")
TIMES = ("valid_from", "valid_to", "recorded", "closed")
# What a line may have, and what it must.
KEYS = frozenset({"id", "text", "metadata", "source", "author", "supersedes", *NAMES, *TIMES})
NEEDED = ("id", "text", "user")


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
