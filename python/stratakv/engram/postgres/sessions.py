"""Neighbours: what new memories add to those before them in their session, and what is left without some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stratakv.engram.postgres import windows
from stratakv.engram.postgres.connections import Cursor
from stratakv.engram.postgres.driver import pgvector
from stratakv.engram.postgres.windows import REACH, UNIT

_LAST = "SELECT coalesce(max(place), -1) FROM memories WHERE owner = %s AND scope = %s"
_NEIGHBOURS = """
SELECT id, memories.words, memories.window_words, direction
FROM memories LEFT JOIN vectors USING (owner, id)
WHERE owner = %s AND memories.scope = %s
ORDER BY place DESC
LIMIT %s
"""
_MOVE = """
UPDATE memories SET place = new.place, window_words = new.window_words
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS new(id, place, window_words)
WHERE memories.owner = %s AND memories.id = new.id
"""
_WIDEN = """
UPDATE memories SET window_words = new.window_words
FROM unnest(%s::bigint[], %s::bigint[]) AS new(id, window_words)
WHERE memories.owner = %s AND memories.id = new.id
"""
_TURN = "UPDATE vectors SET window_direction = %s WHERE owner = %s AND id = %s"


@dataclass(frozen=True)
class Joined:
    """What N new memories of a scope get.

    Args:
        places: where they are in it.
        window_words: of their windows, in units.
        directions: of each and of its window; None for one without a vector.
        added_window_words: of all windows of the scope, older ones too.
    """

    places: Sequence[int]
    window_words: Sequence[int]
    directions: Sequence[tuple[Any, Any] | None]
    added_window_words: int


def join(
    cursor: Cursor,
    owner: int,
    scope: int,
    is_session: bool,
    *,
    ids: Sequence[int],
    words: Sequence[int],
    vectors: Sequence[Any | None],
) -> Joined:
    """Puts memories behind those of their scope, and into the windows of these.

    Args:
        cursor: where the user's row is locked.
        owner: the user's number.
        scope: the scope's number.
        is_session: whether its memories are neighbours.
        ids: the memories' numbers.
        words: of each memory, how many it has.
        vectors: of each memory, (D,) or None.
    """
    new = np.asarray(words, dtype=np.int64)
    rows = _directions(vectors)
    if not is_session:
        window_words = new * UNIT
        places = [-id for id in ids]
        return Joined(places, window_words.tolist(), _pairs(vectors, rows, rows), int(window_words.sum()))
    row = cursor.execute(_LAST, (owner, scope)).fetchone()
    assert row is not None
    last = int(row[0])
    # The windows of the last ones change, and those reach as far back again.
    tail = cursor.execute(_NEIGHBOURS, (owner, scope, 2 * REACH)).fetchall()[::-1]
    counts = windows.sums(np.concatenate([[count for _, count, _, _ in tail], new]).astype(np.int64))
    changed = range(max(len(tail) - REACH, 0), len(tail))
    older = [tail[at][0] for at in changed]
    before = sum(tail[at][2] for at in changed)
    cursor.execute(_WIDEN, (older, counts[changed.start : changed.stop].tolist(), owner))
    around = np.zeros_like(rows)
    if rows.size:
        around = windows.directions(windows.sums(np.concatenate([_stored(tail, rows.shape[1]), rows])))
        _turn(cursor, owner, zip(older, around[changed.start : changed.stop], strict=True))
    return Joined(
        [last + at + 1 for at in range(len(new))],
        counts[len(tail) :].tolist(),
        _pairs(vectors, rows, around[len(around) - len(new) :]),
        int(counts[changed.start :].sum()) - before,
    )


def close_gaps(cursor: Cursor, owner: int, scope: int) -> None:
    """Makes neighbours of what is left of a session."""
    rows = cursor.execute(_NEIGHBOURS, (owner, scope, None)).fetchall()[::-1]
    if not rows:
        return
    ids = [row[0] for row in rows]
    window_words = windows.sums(np.asarray([row[1] for row in rows], dtype=np.int64)).tolist()
    cursor.execute(_MOVE, (ids, list(range(len(ids))), window_words, owner))
    dimension = next((row[3].dimensions() for row in rows if row[3] is not None), None)
    if dimension is not None:
        around = windows.directions(windows.sums(_stored(rows, dimension)))
        _turn(cursor, owner, zip(ids, around, strict=True))


def _turn(cursor: Cursor, owner: int, directions: Any) -> None:
    """Sets the directions of some windows; memories without a vector have none."""
    cursor.executemany(_TURN, [(pgvector.HalfVector(one), owner, id) for id, one in directions])


def _directions(vectors: Sequence[Any | None]) -> windows.Floats:
    """Rows (N, D), zeros where there is no vector; (N, 0) where nobody has one."""
    dimension = next((len(one) for one in vectors if one is not None), 0)
    return windows.directions([np.zeros(dimension) if one is None else one for one in vectors])


def _stored(rows: Sequence[tuple[Any, ...]], dimension: int) -> npt.NDArray[np.float32]:
    """The directions (N, D) of rows of _NEIGHBOURS."""
    made = np.zeros((len(rows), dimension), np.float32)
    for at, row in enumerate(rows):
        if row[3] is not None:
            made[at] = row[3].to_numpy()
    return made


def _pairs(
    vectors: Sequence[Any | None], rows: windows.Floats, around: windows.Floats
) -> list[tuple[Any, Any] | None]:
    return [
        None if vector is None else (pgvector.HalfVector(own), pgvector.HalfVector(window))
        for vector, own, window in zip(vectors, rows, around, strict=True)
    ]
