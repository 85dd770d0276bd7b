"""What a call covers: asked once, and named by every statement that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stratakv import _native
from stratakv.engram.engine import ScopeParts, When
from stratakv.engram.postgres import queries
from stratakv.engram.postgres.connections import Cursor
from stratakv.engram.postgres.schema import as_embedder


@dataclass(frozen=True)
class Covered:
    """A user's scopes that a call covers, and the sums of what they hold.

    Args:
        user: whose they are.
        owner: the user's number; 0, which nobody has, where nothing is covered.
        scopes: their numbers.
        rows: memories in them, past versions included.
        words: of these.
        window_words: of their windows, in units.
        authors: who said something, each once.
        now: the server's time, in milliseconds since 1970.
        embedder: what made the vectors that are there.
    """

    user: str
    owner: int
    scopes: Sequence[int]
    rows: int
    words: float
    window_words: float
    authors: Sequence[str]
    now: int
    embedder: tuple[str, int] | None

    @classmethod
    def of(cls, cursor: Cursor, scope: ScopeParts) -> Covered:
        """What a scope covers.

        Raises:
            ValueError: a name that is none.
        """
        _native.check_scope(scope)
        names = dict(zip(("user", "agent", "project", "session"), scope, strict=True))
        row = cursor.execute(queries.COVERED, names).fetchone()
        assert row is not None
        owner, scopes, rows, words, window_words, authors, now, identity, dimension = row
        embedder = as_embedder(identity, dimension)
        return cls(scope[0], owner, scopes, rows, words, window_words, authors, now, embedder)

    def named(self) -> dict[str, Any]:
        """As all statements name it."""
        return {"owner": self.owner, "scopes": list(self.scopes)}

    def present(self, when: When | None) -> dict[str, Any]:
        """What counts as present: now, or as is said."""
        as_of, known_at, is_any = when or (None, None, False)
        if (as_of, known_at, is_any) == (None, None, False):
            known_at = self.now
        elif known_at is None:
            # Known until ever, but not what never becomes known.
            known_at = _native.FOREVER - 1
        return {"as_of": as_of, "known_at": known_at, "any": is_any, "now": self.now}
