"""`PostgresEngine`: an engine of memories over a database that many processes share."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator
from typing import Any

from stratakv import _native
from stratakv.engram.engine import Draft, ScopeParts, Told, When
from stratakv.engram.postgres import erasing, queries, reading, schema, writing
from stratakv.engram.postgres.address import Address
from stratakv.engram.postgres.connections import Connections, Cursor
from stratakv.engram.postgres.covered import Covered


class PostgresEngine:
    """Memories in a PostgreSQL database with pgvector; `Engine` says what each call does.

    Use `PostgresEngine.open`.
    """

    def __init__(
        self, address: Address, connections: Connections, embedder: tuple[str, int] | None, *, durable: bool
    ) -> None:
        self._address = address
        self._connections = connections
        self._embedder = embedder
        self._durable = durable

    @classmethod
    def open(
        cls, url: str, *, embedder: tuple[str, int] | None = None, durable: bool = True
    ) -> PostgresEngine:
        """Opens a database of memories, making the tables where there are none.

        Args:
            url: postgresql://user@host:port/database.
            embedder: identity and dimension of what makes the vectors, stored at first.
            durable: whether a call that remembers comes back only when a power cut can't undo it.

        Raises:
            DatabaseError: the database can't be used; the message says what to do.
            SettingsMismatchError: its vectors are another embedder's.
            ValueError: an address or an embedder that is not accepted.
        """
        address = Address.of(url)
        stored = schema.prepare(address, embedder)
        return cls(address, Connections(address, durable=durable), stored, durable=durable)

    def __repr__(self) -> str:
        return f"PostgresEngine({self._address.shown!r})"

    @property
    def embedder(self) -> tuple[str, int] | None:
        """Identity and dimension of what made the vectors."""
        return self._embedder

    def remember(
        self, scope: ScopeParts, drafts: builtins.list[Draft], vectors: Any | None = None
    ) -> builtins.list[int]:
        """Stores drafts, all or none of them, with vectors float32 (N, D); their numbers."""
        if not drafts:
            return []
        with self._connections.writing() as cursor:
            return writing.remember(cursor, scope, drafts, vectors, self._embedder)

    def recall(
        self,
        scope: ScopeParts,
        *,
        text: str | None = None,
        vector: Any | None = None,
        k: int,
        when: When | None = None,
        weights: dict[str, float] | None = None,
    ) -> builtins.list[tuple[Told, float, dict[str, float]]]:
        """The best `k`: memory, score and signals; `vector` is float32 (1, D)."""
        with self._connections.reading() as cursor:
            covered = Covered.of(cursor, scope)
            if vector is not None:
                reading.check_embedder(self._embedder, covered.embedder)
            question = _native.Question(
                text=text,
                vector=vector,
                k=k,
                weights=weights,
                authors=list(covered.authors),
                dimension=self._dimension,
            )
            rated = reading.rated(cursor, covered, question, vector, when)
            told = {one["id"]: one for one in reading.some(cursor, covered, [id for id, _, _ in rated[:k]])}
        # One that was forgotten meanwhile is not told.
        return [(told[id], score, signals) for id, score, signals in rated[:k] if id in told]

    def get(self, scope: ScopeParts, id: int) -> Told:
        """One memory, past or present."""
        with self._covered(scope) as (cursor, covered):
            for told in reading.some(cursor, covered, [id]):
                return told
            raise reading.not_found(covered, id)

    def list(
        self, scope: ScopeParts, *, when: When | None = None, after: int = 0, limit: int
    ) -> builtins.list[Told]:
        """Memories whose numbers are larger than `after`, in order."""
        with self._covered(scope) as (cursor, covered):
            return reading.listed(cursor, covered, when, after, limit)

    def history(self, scope: ScopeParts, id: int) -> builtins.list[Told]:
        """All versions of a memory, the oldest first."""
        with self._covered(scope) as (cursor, covered):
            return reading.versions(cursor, covered, id)

    def end(self, scope: ScopeParts, id: int, valid_to: int) -> None:
        """Notes that a memory is true until `valid_to` only."""
        with self._connections.writing() as cursor:
            writing.end(cursor, scope, id, valid_to)

    def forget(self, scope: ScopeParts, ids: builtins.list[int] | None = None) -> int:
        """Erases memories with all their versions, or all of the scope; how many records went."""
        with self._connections.writing() as cursor:
            records = erasing.forget(cursor, scope, ids)
        return self._vacuumed(records)

    def retain(
        self,
        scope: ScopeParts,
        *,
        age_ms_max: int | None = None,
        count_max: int | None = None,
        bytes_max: int | None = None,
    ) -> int:
        """Erases what is beyond the limits, the oldest first; how many records went."""
        with self._connections.writing() as cursor:
            records = erasing.retain(
                cursor, scope, age_ms_max=age_ms_max, count_max=count_max, bytes_max=bytes_max
            )
        return self._vacuumed(records)

    def optimize(self, scope: ScopeParts) -> tuple[int, int]:
        """Nothing: every vector that a call covers is looked at."""
        memories = self.stats((scope[0], None, None, None))["memories"]
        return memories, memories

    def stats(self, scope: ScopeParts) -> dict[str, int]:
        """`memories`, `present`, `vectors`, `log_bytes` and `damaged`."""
        with self._covered(scope) as (cursor, covered):
            return reading.stats(cursor, covered)

    def users(self) -> builtins.list[str]:
        """Everybody who has memories, sorted."""
        with self._connections.reading() as cursor:
            return [row[0] for row in cursor.execute(queries.USERS).fetchall()]

    def change(self, user: str) -> int:
        """A number that is another one after every write of a user's memories."""
        with self._connections.reading() as cursor:
            row = cursor.execute(queries.CHANGE, (user,)).fetchone()
        return 0 if row is None else int(row[0])

    def flush(self) -> None:
        """Makes everything durable that `durable=False` has not."""
        if not self._durable:
            with self._connections.writing() as cursor:
                writing.flush(cursor)

    def close(self) -> None:
        """Closes the connections. Closing twice is no error."""
        if self._connections.is_closed:
            return
        try:
            self.flush()
        finally:
            self._connections.close()

    @property
    def _dimension(self) -> int | None:
        return None if self._embedder is None else self._embedder[1]

    @contextlib.contextmanager
    def _covered(self, scope: ScopeParts) -> Iterator[tuple[Cursor, Covered]]:
        with self._connections.reading() as cursor:
            yield cursor, Covered.of(cursor, scope)

    def _vacuumed(self, records: int) -> int:
        if records:
            with self._connections.reading() as cursor:
                erasing.vacuum(cursor)
        return records
