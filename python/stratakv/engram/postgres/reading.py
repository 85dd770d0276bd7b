"""Reads: memories by their numbers, in order, as versions, and as answers to a query."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratakv import _native
from stratakv.engram.engine import Told, When
from stratakv.engram.postgres import queries
from stratakv.engram.postgres.connections import Cursor
from stratakv.engram.postgres.covered import Covered
from stratakv.engram.postgres.driver import pgvector, psycopg
from stratakv.engram.postgres.schema import named
from stratakv.engram.postgres.windows import STEPS, UNIT, UNITS, directions
from stratakv.errors import MemoryNotFoundError, SettingsMismatchError


def some(cursor: Cursor, covered: Covered, ids: list[int]) -> list[Told]:
    """Those of some memories that are covered, by their numbers."""
    return _tell(cursor, covered, queries.SOME, ids=ids)


def listed(cursor: Cursor, covered: Covered, when: When | None, after: int, limit: int) -> list[Told]:
    """Memories whose numbers are larger than `after`, in order."""
    return _tell(cursor, covered, queries.LISTED, limit, after=after, **covered.present(when))


def versions(cursor: Cursor, covered: Covered, id: int) -> list[Told]:
    """All versions of a memory, the oldest first.

    Raises:
        MemoryNotFoundError: it is not covered.
    """
    told = _tell(cursor, covered, queries.VERSIONS, id=id)
    if not told:
        raise not_found(covered, id)
    return told


def stats(cursor: Cursor, covered: Covered) -> dict[str, int]:
    """What `Engine.stats` tells."""
    row = cursor.execute(queries.STATS, covered.named() | covered.present(None)).fetchone()
    assert row is not None
    return dict(zip(("memories", "present", "vectors", "log_bytes"), row, strict=True)) | {"damaged": 0}


def rated(
    cursor: Cursor, covered: Covered, question: _native.Question, vector: Any | None, when: When | None
) -> list[tuple[int, float, dict[str, float]]]:
    """Numbers of the memories that are rated, with scores and signals, the best first.

    Args:
        cursor: where it is asked.
        covered: what may be found.
        question: what is asked.
        vector: its embedding (1, D), or None.
        when: what counts as present.
    """
    words = question.words
    asked = {
        "words": list(words),
        "times": list(words.values()),
        "vector": None if vector is None else pgvector.HalfVector(directions(np.asarray(vector))[0]),
        "pool": question.pool,
        "rows": covered.rows,
        "mean_words": _mean(covered.words, covered.rows),
        "mean_window_words": _mean(covered.window_words / UNIT, covered.rows),
        "k1": question.BM25_K1,
        "b": question.BM25_B,
        "steps": STEPS,
        "units": UNITS,
        "unit": UNIT,
    }
    rows = cursor.execute(queries.RATED, asked | covered.named() | covered.present(when)).fetchall()
    ranked = question.rank([row[1:] for row in rows])
    return [(rows[index][0], score, signals) for index, score, signals in ranked]


def check_embedder(ours: tuple[str, int] | None, stored: tuple[str, int] | None) -> None:
    """Refuses vectors of one embedder where those that are stored are another's.

    Raises:
        SettingsMismatchError: they are: somebody made them anew.
    """
    if stored is not None and ours != stored:
        raise SettingsMismatchError(
            f"the memories were meanwhile embedded anew by {named(stored)}: open them again, with that one"
        )


def not_found(covered: Covered, id: int) -> MemoryNotFoundError:
    """What is raised for a number that the scope does not cover, the same whoever has it."""
    return MemoryNotFoundError(f'no memory {id} in this scope of "{covered.user}"')


def _mean(total: float, rows: int) -> float:
    return max(total / max(rows, 1), 1.0)


def _tell(
    cursor: Cursor, covered: Covered, query: psycopg.sql.Composed, limit: int | None = None, **given: Any
) -> list[Told]:
    rows = cursor.execute(query, covered.named() | given | {"limit": limit}).fetchall()
    return [_told(covered.user, row) for row in rows]


def _told(user: str, row: tuple[Any, ...]) -> Told:
    told: Told = {"user": user} | dict(zip(queries.TOLD, row, strict=True))
    for end in ("valid_to", "closed"):
        if told[end] == _native.FOREVER:
            told[end] = None
    return told
