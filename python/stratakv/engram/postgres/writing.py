"""Writes: new memories, with all that they are found by.

Whoever writes a user's memories has the user's row locked until it is done: two processes wait for each
other, numbers are given once, and a memory is superseded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stratakv import _native
from stratakv.engram.engine import Draft, ScopeParts
from stratakv.engram.postgres import queries, schema, sessions
from stratakv.engram.postgres.connections import Cursor
from stratakv.engram.postgres.covered import Covered
from stratakv.engram.postgres.driver import psycopg
from stratakv.engram.postgres.reading import check_embedder, not_found

_SQL = psycopg.sql.SQL

# Locks the user's row, and takes numbers; undone with all else where the call fails.
_TAKE = _SQL("""
INSERT INTO users (name, next_id) VALUES (%(user)s, 1 + %(count)s)
ON CONFLICT (name) DO UPDATE SET next_id = users.next_id + %(count)s, change = nextval('changes')
RETURNING owner, next_id - %(count)s, {now},
    (SELECT embedder FROM settings), (SELECT dimension FROM settings)
""").format(now=queries.NOW)
# Before it is asked whose vectors there are: whoever puts others in their place waits, or has done so.
_LOCK_VECTORS = "LOCK TABLE vectors IN ROW EXCLUSIVE MODE"
_LOCK = "UPDATE users SET change = nextval('changes') WHERE name = %s"

_FIND_SCOPE = """
SELECT number FROM scopes
WHERE owner = %s AND agent IS NOT DISTINCT FROM %s AND project IS NOT DISTINCT FROM %s
  AND session IS NOT DISTINCT FROM %s
"""
_MAKE_SCOPE = "INSERT INTO scopes (owner, agent, project, session) VALUES (%s, %s, %s, %s) RETURNING number"
_COUNT = """
UPDATE scopes SET rows = rows + %s, words = words + %s, window_words = window_words + %s,
    authors = ARRAY(SELECT unnest(authors) UNION SELECT unnest(%s::text[]))
WHERE owner = %s AND number = %s
"""

_SUPERSEDED = """
SELECT id, fact, scope, session IS NOT NULL, superseded_by
FROM memories m JOIN scopes ON number = scope
WHERE m.owner = %(owner)s AND m.scope = ANY(%(scopes)s) AND id = ANY(%(ids)s)
"""
_SUPERSEDE = """
UPDATE memories SET superseded_by = newer.id
FROM unnest(%s::bigint[], %s::bigint[]) AS newer(id, older)
WHERE memories.owner = %s AND memories.id = newer.older
"""
_ENDED = "SELECT valid_from, superseded_by FROM memories m WHERE owner = %s AND scope = ANY(%s) AND id = %s"
_END = """
UPDATE memories SET closed_to = %s, closed = %s WHERE owner = %s AND scope = ANY(%s) AND id = %s
"""

_MEMORIES = """
COPY memories (owner, id, scope, place, text, metadata, source, author, valid_from, valid_to, recorded,
    closed_to, closed, supersedes, fact, words, window_words, traits, bytes) FROM STDIN
"""
_WORDS = "COPY words (owner, word, id, count) FROM STDIN"
_VECTORS = "COPY vectors (owner, id, scope, direction, window_direction) FROM STDIN (FORMAT BINARY)"
_VECTOR_TYPES = ("int8", "int8", "int8", "halfvec", "halfvec")


@dataclass(frozen=True)
class _Home:
    """Where a memory goes: the scope's number, whether it is a session, and the first version's number."""

    scope: int
    is_session: bool
    fact: int


@dataclass(frozen=True)
class _New:
    """A memory that is about to be stored.

    Args:
        id: its number.
        home: where it goes.
        draft: what was given.
        times: valid from, valid to, recorded.
        words: its stems, and how often each occurs.
        traits: what its text shows.
        num_bytes: of its record.
        vector: (D,), or None.
    """

    id: int
    home: _Home
    draft: Draft
    times: tuple[int, int, int]
    words: dict[str, int]
    traits: int
    num_bytes: int
    vector: Any | None

    @property
    def num_words(self) -> int:
        return sum(self.words.values())


def locked(cursor: Cursor, scope: ScopeParts) -> Covered:
    """What a scope covers, once nobody else writes the user's memories; who wants to waits for us then.

    Raises:
        ValueError: a name that is none.
    """
    _native.check_scope(scope)
    is_there = cursor.execute(_LOCK, (scope[0],)).rowcount
    covered = Covered.of(cursor, scope)
    # A user who was new a moment ago is not locked, and so nothing of it is changed.
    return covered if is_there else replace(covered, owner=0, scopes=())


def remember(
    cursor: Cursor,
    scope: ScopeParts,
    drafts: Sequence[Draft],
    vectors: Any | None,
    embedder: tuple[str, int] | None,
) -> list[int]:
    """Stores drafts with their vectors (N, D) by an embedder; their numbers.

    Raises:
        MemoryNotFoundError: one to supersede is not covered.
        SettingsMismatchError: the vectors there are another embedder's.
        ValueError: one is not accepted, or supersedes what was superseded.
    """
    _native.check_scope(scope)
    if vectors is not None:
        cursor.execute(_LOCK_VECTORS)
    taken = cursor.execute(_TAKE, {"user": scope[0], "count": len(drafts)}).fetchone()
    assert taken is not None
    owner, first, now, identity, elements = taken
    if vectors is not None:
        check_embedder(embedder, schema.as_embedder(identity, elements))
    dimension = None if embedder is None else embedder[1]
    prepared = _native.prepare_memories(scope, list(drafts), vectors, now=now, dimension=dimension)
    _check_texts(drafts)
    homes = _homes(cursor, scope, owner, range(first, first + len(drafts)), drafts)
    rows = [None] * len(drafts) if vectors is None else list(np.asarray(vectors))
    new = [
        _New(first + at, home, draft, (valid_from, valid_to, recorded), words, traits, num_bytes, vector)
        for at, (
            home,
            draft,
            vector,
            (valid_from, valid_to, recorded, words, traits, num_bytes),
        ) in enumerate(zip(homes, drafts, rows, prepared, strict=True))
    ]
    for number in dict.fromkeys(home.scope for home in homes):
        _store(cursor, owner, [one for one in new if one.home.scope == number])
    newer = [(one.id, one.draft[-1]) for one in new if one.draft[-1] is not None]
    if newer:
        cursor.execute(_SUPERSEDE, ([id for id, _ in newer], [older for _, older in newer], owner))
    return [one.id for one in new]


def end(cursor: Cursor, scope: ScopeParts, id: int, valid_to: int) -> None:
    """Notes that a memory is true until `valid_to` only.

    Raises:
        MemoryNotFoundError: it is not covered.
        ValueError: it was superseded, or begins later.
    """
    covered = locked(cursor, scope)
    row = cursor.execute(_ENDED, (covered.owner, list(covered.scopes), id)).fetchone()
    if row is None:
        raise not_found(covered, id)
    valid_from, superseded_by = row
    if valid_to < valid_from:
        raise ValueError(
            f"memory {id} is true from {valid_from} on, it can't end at {valid_to} (milliseconds since 1970)"
        )
    if superseded_by is not None:
        raise ValueError(f"memory {id} was superseded by {superseded_by}")
    cursor.execute(_END, (valid_to, covered.now, covered.owner, list(covered.scopes), id))


def flush(cursor: Cursor) -> None:
    """Makes all that was written before durable: who waits for the disk waits for what precedes, too."""
    cursor.execute("SET LOCAL synchronous_commit = on")
    cursor.execute("UPDATE settings SET version = version")


def copy_vectors(cursor: Cursor, rows: Iterable[tuple[Any, ...]]) -> None:
    """Stores directions: owner, id, scope, that of the memory and that of its window."""
    with cursor.copy(_VECTORS) as copy:
        # As text, a vector's elements would take longer than all else.
        copy.set_types(_VECTOR_TYPES)
        for row in rows:
            copy.write_row(row)


def _check_texts(drafts: Iterable[Draft]) -> None:
    for draft in drafts:
        for name, text in zip(("text", "metadata", "source", "author"), draft, strict=False):
            if isinstance(text, str) and "\0" in text:
                raise ValueError(f"{name} has a NUL character, which PostgreSQL does not store")


def _homes(cursor: Cursor, scope: ScopeParts, owner: int, ids: range, drafts: Sequence[Draft]) -> list[_Home]:
    """Where each draft goes: beside what it supersedes, else to the scope."""
    older = [draft[-1] for draft in drafts if draft[-1] is not None]
    found = _superseded(cursor, scope, older) if older else {}
    homes = []
    number = _scope(cursor, owner, scope) if len(older) < len(drafts) else 0
    for id, draft in zip(ids, drafts, strict=True):
        own = _Home(number, scope[3] is not None, id)
        homes.append(own if draft[-1] is None else found[draft[-1]])
    return homes


def _superseded(cursor: Cursor, scope: ScopeParts, ids: Sequence[int]) -> dict[int, _Home]:
    """Where what is to be superseded is, each once."""
    covered = Covered.of(cursor, scope)
    rows = cursor.execute(_SUPERSEDED, covered.named() | {"ids": list(ids)}).fetchall()
    found = {row[0]: row for row in rows}
    homes: dict[int, _Home] = {}
    for id in ids:
        if id not in found:
            raise not_found(covered, id)
        _, fact, number, is_session, by = found[id]
        if id in homes or by is not None:
            by = "one of the same batch" if by is None else by
            raise ValueError(f"memory {id} was superseded by {by}; update that one")
        homes[id] = _Home(number, is_session, fact)
    return homes


def _scope(cursor: Cursor, owner: int, scope: ScopeParts) -> int:
    """The number of a scope, which is made where it is new."""
    parts = (owner, *scope[1:])
    row = cursor.execute(_FIND_SCOPE, parts).fetchone() or cursor.execute(_MAKE_SCOPE, parts).fetchone()
    assert row is not None
    return int(row[0])


def _store(cursor: Cursor, owner: int, new: Sequence[_New]) -> None:
    """Stores memories of one scope."""
    home = new[0].home
    words = [one.num_words for one in new]
    joined = sessions.join(
        cursor,
        owner,
        home.scope,
        home.is_session,
        ids=[one.id for one in new],
        words=words,
        vectors=[one.vector for one in new],
    )
    with cursor.copy(_MEMORIES) as copy:
        for one, place, window_words in zip(new, joined.places, joined.window_words, strict=True):
            copy.write_row(_row(owner, one, place, window_words))
    with cursor.copy(_WORDS) as copy:
        for one in new:
            for word, times in one.words.items():
                copy.write_row((owner, word, one.id, times))
    directed = zip(new, joined.directions, strict=True)
    copy_vectors(cursor, ((owner, one.id, home.scope, *both) for one, both in directed if both is not None))
    authors = sorted({one.draft[3] for one in new if one.draft[3] is not None})
    totals = (len(new), sum(words), joined.added_window_words)
    cursor.execute(_COUNT, (*totals, authors, owner, home.scope))


def _row(owner: int, new: _New, place: int, window_words: int) -> tuple[Any, ...]:
    """In the order of _MEMORIES."""
    text, metadata, source, author, *_, supersedes = new.draft
    return (
        *(owner, new.id, new.home.scope, place, text, metadata, source, author),
        *(*new.times, _native.FOREVER, _native.FOREVER, supersedes, new.home.fact),
        *(new.num_words, window_words, new.traits, new.num_bytes),
    )
