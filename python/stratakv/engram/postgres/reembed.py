"""All vectors of a database made anew, while others go on with the old ones until they are whole.

New directions are collected in a table beside. When every memory has one, one transaction puts them in the
place of the old ones and names the new embedder; whoever has the database open with the old one is told so
at the next call. Whoever stops before that goes on where it was.
"""

from __future__ import annotations

import builtins

import numpy as np
import numpy.typing as npt

from stratakv import _native
from stratakv.engram.postgres import connections, schema, windows
from stratakv.engram.postgres.address import Address
from stratakv.engram.postgres.connections import Connection, Cursor, explained
from stratakv.engram.postgres.driver import pgvector, psycopg
from stratakv.engram.postgres.writing import copy_vectors
from stratakv.errors import DatabaseError

# Whoever makes vectors anew has this lock: any number that others hardly choose.
LOCK = schema.LOCK + 1

_TABLES = """
CREATE TABLE IF NOT EXISTS next_embedder (embedder text NOT NULL, dimension integer NOT NULL);
CREATE TABLE IF NOT EXISTS next_vectors (
    owner bigint NOT NULL,
    id bigint NOT NULL,
    direction halfvec NOT NULL,
    PRIMARY KEY (owner, id),
    -- What is forgotten meanwhile goes here too.
    FOREIGN KEY (owner, id) REFERENCES memories ON DELETE CASCADE
);
ALTER TABLE next_vectors ALTER direction SET STATISTICS 0;
"""
_DROP = "DROP TABLE IF EXISTS next_vectors, next_embedder"
_KEEP = "INSERT INTO next_vectors SELECT owner, id, direction FROM vectors ON CONFLICT DO NOTHING"
_COUNT = """
SELECT count(n.id) FILTER (WHERE NOT %(keeps)s OR v.id IS NULL),
       count(*) FILTER (WHERE NOT %(keeps)s OR v.id IS NULL)
FROM memories m LEFT JOIN next_vectors n USING (owner, id) LEFT JOIN vectors v USING (owner, id)
"""
_TEXTS = """
SELECT m.owner, m.id, m.text FROM memories m
WHERE (m.owner, m.id) > (%s, %s) AND NOT EXISTS (
    SELECT FROM next_vectors n WHERE n.owner = m.owner AND n.id = m.id
)
ORDER BY m.owner, m.id LIMIT %s
"""
# One that is being forgotten is waited for, and then not there.
_GIVE = """
INSERT INTO next_vectors (owner, id, direction)
SELECT m.owner, m.id, %s FROM memories m WHERE m.owner = %s AND m.id = %s FOR KEY SHARE
ON CONFLICT DO NOTHING
"""
_LEFT = """
SELECT count(*) FROM memories m
WHERE NOT EXISTS (SELECT FROM next_vectors n WHERE n.owner = m.owner AND n.id = m.id)
"""
_RECOUNT = """
UPDATE memories m SET traits = m.traits | %(has_vector)s,
    bytes = m.bytes + 4 * (%(dimension)s - CASE WHEN v.id IS NULL THEN 0 ELSE %(before)s END)
FROM next_vectors n LEFT JOIN vectors v USING (owner, id)
WHERE m.owner = n.owner AND m.id = n.id
"""
_SESSIONS = "SELECT owner, number FROM scopes WHERE session IS NOT NULL ORDER BY number"
_DIRECTIONS = """
SELECT m.id, n.direction FROM memories m JOIN next_vectors n USING (owner, id)
WHERE m.owner = %s AND m.scope = %s ORDER BY m.place
"""
# Without neighbours, a memory is its own window.
_ALONE = """
INSERT INTO vectors (owner, id, scope, direction, window_direction)
SELECT m.owner, m.id, m.scope, n.direction, n.direction
FROM memories m JOIN next_vectors n USING (owner, id) JOIN scopes ON scopes.number = m.scope
WHERE scopes.session IS NULL
"""


class PostgresReembedding:
    """`Reembedding` over a database; one process at a time, beside any number that use the memories.

    Use `PostgresReembedding.open`.
    """

    def __init__(
        self,
        address: Address,
        connection: Connection,
        embedder: tuple[str, int],
        *,
        before: tuple[str, int] | None,
    ) -> None:
        self._address = address
        self._connection = connection
        self._embedder = embedder
        self._before = before
        self._last = (0, 0)
        self._asked: builtins.list[tuple[int, int]] = []
        self._progress = (0, 0)
        self._is_done = False

    @classmethod
    def open(cls, url: str, *, embedder: tuple[str, int]) -> PostgresReembedding:
        """Begins, or goes on.

        Raises:
            DatabaseError: the database can't be used, or another process is at it.
            ValueError: an address or an embedder that is not accepted.
        """
        address = Address.of(url)
        schema.check(*embedder)
        schema.prepare(address, None)
        connection = psycopg.connect(address.conninfo, autocommit=True)
        try:
            with explained(address):
                _lock(address, connection)
                connections.configure(connection, durable=True)
                with schema.permitted(address, "GRANT CREATE ON SCHEMA stratakv TO ..."):
                    connection.execute(_TABLES)
                made = cls(address, connection, embedder, before=schema.embedder_of(connection))
                made._begin()
        except BaseException:
            connection.close()
            raise
        return made

    def progress(self) -> tuple[int, int]:
        """How many memories have their new vectors, of all that are to get one."""
        return self._progress

    def texts(self, limit: int) -> builtins.list[str]:
        """The next texts to embed; none when all have been."""
        if self._is_done:
            return []
        with explained(self._address):
            rows = self._connection.execute(_TEXTS, (*self._last, limit)).fetchall()
        self._asked = [(owner, id) for owner, id, _ in rows]
        return [text for _, _, text in rows]

    def give(self, vectors: npt.NDArray[np.float32]) -> None:
        """Takes the vectors (N, D) of the texts that were given out last, in their order.

        Raises:
            ValueError: another number of vectors, or one without a direction; none is taken then.
        """
        rows = np.asarray(vectors, dtype=np.float64)
        if rows.shape != (len(self._asked), self._embedder[1]):
            raise ValueError(
                f"vectors of shape {rows.shape}, expected {(len(self._asked), self._embedder[1])}"
            )
        norms = np.linalg.norm(rows, axis=1)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise ValueError("a vector needs a direction: finite elements, not all of them zero")
        given = [
            (pgvector.HalfVector(direction), owner, id)
            for (owner, id), direction in zip(self._asked, windows.directions(rows), strict=True)
        ]
        with explained(self._address), self._connection.transaction():
            self._connection.cursor().executemany(_GIVE, given)
        if self._asked:
            self._last = self._asked[-1]
        done, total = self._progress
        self._progress = (done + len(self._asked), total)
        self._asked = []

    def finish(self) -> bool:
        """Makes the new vectors those of the database; False where memories came meanwhile: go on then."""
        if self._is_done:
            return True
        with explained(self._address), self._connection.transaction():
            cursor = self._connection.cursor(binary=True)
            # Whoever writes has this table first, and then looks whose vectors it has.
            cursor.execute("LOCK TABLE vectors IN ACCESS EXCLUSIVE MODE")
            left = cursor.execute(_LEFT).fetchone()
            assert left is not None
            if left[0]:
                # They may be of users that were passed.
                self._last = (0, 0)
                self._count()
                return False
            sizes = {"dimension": self._embedder[1], "before": self._before[1] if self._before else 0}
            cursor.execute(_RECOUNT, sizes | {"has_vector": _native.Question.HAS_VECTOR})
            cursor.execute("TRUNCATE vectors")
            cursor.execute(_ALONE)
            for owner, scope in cursor.execute(_SESSIONS).fetchall():
                _put_session(cursor, owner, scope)
            cursor.execute("UPDATE settings SET embedder = %s, dimension = %s", self._embedder)
            cursor.execute("UPDATE users SET change = nextval('changes')")
            cursor.execute(_DROP)
        self._is_done = True
        return True

    def close(self) -> None:
        """Ends the connection. Closing twice is no error."""
        self._connection.close()

    @property
    def _keeps(self) -> bool:
        """Whether what is there is this embedder's own, and only what is missing is made."""
        return self._before == self._embedder

    def _begin(self) -> None:
        with self._connection.transaction():
            named = self._connection.execute("SELECT embedder, dimension FROM next_embedder").fetchone()
            if named != self._embedder:
                self._connection.execute("TRUNCATE next_embedder, next_vectors")
                self._connection.execute("INSERT INTO next_embedder VALUES (%s, %s)", self._embedder)
            if self._keeps:
                self._connection.execute(_KEEP)
        self._count()
        if self._keeps and self._progress[1] == 0:
            # Nothing is missing: what another embedder had begun is given up.
            self._connection.execute(_DROP)
            self._is_done = True

    def _count(self) -> None:
        """Looks at all memories: what is added meanwhile is counted when the rest is done."""
        row = self._connection.execute(_COUNT, {"keeps": self._keeps}).fetchone()
        assert row is not None
        self._progress = (int(row[0]), int(row[1]))


def _lock(address: Address, connection: Connection) -> None:
    """Keeps others from making vectors anew for as long as the connection lasts.

    Raises:
        DatabaseError: one of them is at it.
    """
    if connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone() != (True,):
        raise DatabaseError(
            f"another process is making the vectors in {address.shown} anew: wait until it is done"
        )


def _put_session(cursor: Cursor, owner: int, scope: int) -> None:
    """Stores the directions of a session's memories, and of their windows."""
    rows = cursor.execute(_DIRECTIONS, (owner, scope)).fetchall()
    own = np.stack([direction.to_numpy().astype(np.float32) for _, direction in rows])
    around = windows.directions(windows.sums(own))
    copy_vectors(
        cursor,
        (
            (owner, id, scope, direction, pgvector.HalfVector(window))
            for (id, direction), window in zip(rows, around, strict=True)
        ),
    )
