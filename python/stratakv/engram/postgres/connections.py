"""Connections to the server: a few, shared by all threads, with errors that say what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

from stratakv.engram.postgres.address import Address
from stratakv.engram.postgres.driver import pgvector, psycopg, psycopg_pool
from stratakv.errors import DatabaseError

# A server allows a hundred by default, for all processes.
CONNECTIONS_MAX = 4
# Seconds that a call waits for one of them.
WAIT_S = 30.0

Cursor: TypeAlias = "psycopg.Cursor[tuple[Any, ...]]"
Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

# The extension may be in any schema. Plans are made for the values at hand: a scope may be all of a
# database, or a hair of it. Compiling one, or starting workers for it, takes longer than running it.
_SETTINGS = """
SELECT set_config('search_path', format('stratakv, %%I', nspname), false),
       set_config('plan_cache_mode', 'force_custom_plan', false),
       set_config('jit', 'off', false),
       set_config('max_parallel_workers_per_gather', '0', false),
       set_config('synchronous_commit', %s, false)
FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'vector'
"""


@contextlib.contextmanager
def explained(address: Address) -> Iterator[None]:
    """Makes errors of the driver errors of ours, which name the database and no password."""
    try:
        yield
    except psycopg_pool.PoolTimeout:
        raise DatabaseError(
            f"{address.shown} gave no connection within {WAIT_S:.0f} s: see that the server runs and has "
            "connections to give"
        ) from None
    except psycopg.Error as error:
        raise DatabaseError(f"{address.shown}: {address.clean(error)}") from None


@contextlib.contextmanager
def connected(address: Address) -> Iterator[Connection]:
    """One connection, as the server has it, for what comes before all others.

    Raises:
        DatabaseError: nobody answers there, or the server does not let us in.
    """
    try:
        connection = psycopg.connect(address.conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        raise DatabaseError(
            f"can't connect to {address.shown} ({address.clean(error)}): see that the server runs there, "
            "that the database exists, and that user and password are right"
        ) from None
    with connection, explained(address):
        yield connection


class Connections:
    """A pool of connections to a database whose tables are there. Calls may come from any thread."""

    def __init__(self, address: Address, *, durable: bool) -> None:
        self._address = address
        self._durable = durable
        self._process = os.getpid()
        self._closed = False
        self._pool: Any = psycopg_pool.ConnectionPool(
            address.conninfo,
            min_size=1,
            max_size=CONNECTIONS_MAX,
            timeout=WAIT_S,
            kwargs={"autocommit": True},
            configure=self._configure,
            # A server that was restarted is no error of the next call.
            check=psycopg_pool.ConnectionPool.check_connection,
            open=True,
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[Cursor]:
        """A cursor of which each statement is by itself."""
        self._check_open()
        with explained(self._address), self._pool.connection() as connection:
            yield connection.cursor(binary=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Cursor]:
        """A cursor whose statements are done together or not at all."""
        with self.reading() as cursor, cursor.connection.transaction():
            yield cursor

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._closed

    def close(self) -> None:
        """Closes all of them. Closing twice is no error."""
        if not self._closed:
            self._check_open()
            self._closed = True
            self._pool.close()

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"these memories belong to process {self._process}, and this is process {os.getpid()}: a "
                "forked child opens its own"
            )
        if self._closed:
            raise ValueError("these memories are closed")

    def _configure(self, connection: Connection) -> None:
        configure(connection, durable=self._durable)


def configure(connection: Connection, *, durable: bool) -> None:
    """Makes a connection to a database whose tables are there one that finds them."""
    connection.execute(_SETTINGS, ("on" if durable else "off",))
    pgvector.psycopg.register_vector(connection)
