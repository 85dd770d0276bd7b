"""Erasing: memories with all their versions, words and vectors.

When the transaction is done, no statement tells anything of them. What PostgreSQL keeps of their bytes, and
for how long, is in docs/memory.md; `vacuum` ends the part of it that can be ended while others work.
"""

from __future__ import annotations

from typing import Any

from stratakv.engram.engine import ScopeParts
from stratakv.engram.postgres import sessions
from stratakv.engram.postgres.connections import Cursor
from stratakv.engram.postgres.covered import Covered
from stratakv.engram.postgres.reading import not_found
from stratakv.engram.postgres.writing import locked

_FACTS = "SELECT id, fact FROM memories WHERE owner = %s AND scope = ANY(%s) AND id = ANY(%s)"
_OF_FACTS = "SELECT id FROM memories WHERE owner = %s AND scope = ANY(%s) AND fact = ANY(%s)"
_ALL = "SELECT id FROM memories WHERE owner = %s AND scope = ANY(%s)"

# What is beyond the limits, counted from the newest, and with each its older versions: what it took the
# place of must not become true again.
_BEYOND = """
WITH counted AS (
    SELECT id, fact, recorded, row_number() OVER newest AS count, sum(bytes) OVER newest AS bytes
    FROM memories
    WHERE owner = %(owner)s AND scope = ANY(%(scopes)s)
    WINDOW newest AS (ORDER BY id DESC)
), beyond AS (
    SELECT fact, max(id) AS id FROM counted
    WHERE count > %(count_max)s OR bytes > %(bytes_max)s OR recorded < %(oldest)s
    GROUP BY fact
)
SELECT counted.id FROM counted JOIN beyond USING (fact) WHERE counted.id <= beyond.id
"""

_ERASE = "DELETE FROM memories WHERE owner = %s AND scope = ANY(%s) AND id = ANY(%s) RETURNING scope"
_ERASE_WORDS = "DELETE FROM words WHERE owner = %s AND id = ANY(%s)"
_ERASE_VECTORS = "DELETE FROM vectors WHERE owner = %s AND id = ANY(%s)"
_SESSIONS = "SELECT number FROM scopes WHERE owner = %s AND number = ANY(%s) AND session IS NOT NULL"
_RECOUNT = """
UPDATE scopes SET (rows, words, window_words, authors) = (
    SELECT count(*), coalesce(sum(m.words), 0), coalesce(sum(m.window_words), 0),
           coalesce(array_agg(DISTINCT m.author) FILTER (WHERE m.author IS NOT NULL), '{}')
    FROM memories m WHERE m.owner = scopes.owner AND m.scope = scopes.number
)
WHERE owner = %s AND number = ANY(%s)
"""
_DROP_SCOPES = "DELETE FROM scopes WHERE owner = %s AND rows = 0"
_DROP_USER = "DELETE FROM users WHERE owner = %s AND NOT EXISTS (SELECT FROM scopes WHERE scopes.owner = %s)"


def forget(cursor: Cursor, scope: ScopeParts, ids: list[int] | None) -> int:
    """Erases memories with all their versions, or all of the scope; how many records went.

    Raises:
        MemoryNotFoundError: one is not covered, and nothing is erased.
    """
    covered = locked(cursor, scope)
    named = (covered.owner, list(covered.scopes))
    if ids is None:
        return _erase(cursor, covered, _column(cursor, _ALL, named))
    facts: dict[int, int] = dict(cursor.execute(_FACTS, (*named, ids)).fetchall())
    for id in ids:
        if id not in facts:
            raise not_found(covered, id)
    return _erase(cursor, covered, _column(cursor, _OF_FACTS, (*named, list(facts.values()))))


def retain(
    cursor: Cursor,
    scope: ScopeParts,
    *,
    age_ms_max: int | None,
    count_max: int | None,
    bytes_max: int | None,
) -> int:
    """Erases what is beyond the limits, the oldest first; how many records went.

    Raises:
        ValueError: no limit.
    """
    if age_ms_max is None and count_max is None and bytes_max is None:
        raise ValueError("a limit of age, count or bytes is needed")
    covered = locked(cursor, scope)
    oldest = None if age_ms_max is None else covered.now - age_ms_max
    limits = {"oldest": oldest, "count_max": count_max, "bytes_max": bytes_max}
    return _erase(cursor, covered, _column(cursor, _BEYOND, covered.named() | limits))


def vacuum(cursor: Cursor) -> None:
    """Takes erased rows out of tables and indexes, so that their space is written over.

    Others go on meanwhile. Rows that a transaction of theirs may still see stay until the next time.
    """
    cursor.execute("VACUUM (INDEX_CLEANUP ON) memories, words, vectors")
    # Where vectors are being made anew.
    if cursor.execute("SELECT to_regclass('next_vectors')").fetchone() != (None,):
        cursor.execute("VACUUM (INDEX_CLEANUP ON) next_vectors")


def _erase(cursor: Cursor, covered: Covered, ids: list[int]) -> int:
    if not ids:
        return 0
    owner = covered.owner
    touched = _column(cursor, _ERASE, (owner, list(covered.scopes), ids))
    cursor.execute(_ERASE_WORDS, (owner, ids))
    cursor.execute(_ERASE_VECTORS, (owner, ids))
    scopes = sorted(set(touched))
    for number in _column(cursor, _SESSIONS, (owner, scopes)):
        sessions.close_gaps(cursor, owner, number)
    cursor.execute(_RECOUNT, (owner, scopes))
    cursor.execute(_DROP_SCOPES, (owner,))
    cursor.execute(_DROP_USER, (owner, owner))
    return len(touched)


def _column(cursor: Cursor, query: Any, given: Any) -> list[int]:
    return [row[0] for row in cursor.execute(query, given).fetchall()]
