"""What is remembered, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from stratakv.engram.times import from_ms


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whose memories a call is about: a user's, or a part of them.

    Written to, it is where the memory is from then on. Read, it covers the user's memories whose
    agent, project and session are those that it names: `Scope(user="ana")` covers all of Ana's,
    `Scope(user="ana", project="shop")` those of that project and no others.

    Raises:
        ValueError: a name that is empty or no text.
    """

    user: str
    agent: str | None = None
    project: str | None = None
    session: str | None = None

    def __post_init__(self) -> None:
        for name in ("user", "agent", "project", "session"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name == "user" or value is not None):
                raise ValueError(f"{name}={value!r}: expected text")
            if value == "":
                raise ValueError(f"{name} is empty")

    def parts(self) -> tuple[str, str | None, str | None, str | None]:
        """As the engine takes it."""
        return (self.user, self.agent, self.project, self.session)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One version of a memory.

    `valid_from` and `valid_to` say when it is true in the world; `recorded` and `closed` when that, and
    its end, became known here. None: open, or not known.
    """

    id: int
    text: str
    scope: Scope
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    author: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    recorded: datetime | None = None
    closed: datetime | None = None
    supersedes: int | None = None
    superseded_by: int | None = None
    has_vector: bool = False

    @classmethod
    def of(cls, told: dict[str, Any]) -> Memory:
        """What the engine tells of a memory."""
        scope = Scope(**{name: told[name] for name in ("user", "agent", "project", "session")})
        times: dict[str, Any] = {
            name: from_ms(told[name]) for name in ("valid_from", "valid_to", "recorded", "closed")
        }
        same = ("id", "text", "source", "author", "supersedes", "superseded_by", "has_vector")
        metadata = json.loads(told["metadata"]) if told["metadata"] else {}
        return cls(scope=scope, metadata=metadata, **times, **{name: told[name] for name in same})


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A memory that answers a query.

    `score` is the weighted sum of where it is among what was found, by words and by meaning, and of what
    the query asks for besides (docs/memory.md). `parts` are the signals: `bm25`, `bm25_window`, `cosine`,
    `cosine_window`, `author`, `date`, `asks`, `answers`, `when`.
    """

    memory: Memory
    score: float
    parts: Mapping[str, float]

    @property
    def text(self) -> str:
        """The memory's text."""
        return self.memory.text

    @property
    def age_seconds(self) -> float:
        """Seconds since it was recorded."""
        recorded = self.memory.recorded
        return 0.0 if recorded is None else (datetime.now(UTC) - recorded).total_seconds()
