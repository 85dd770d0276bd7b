"""The tables: made at first, and agreed on by everybody who opens them.

Times are milliseconds since 1970, FOREVER for a time that never comes, as in the engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from stratakv.engram.postgres.address import Address
from stratakv.engram.postgres.connections import Connection, connected
from stratakv.engram.postgres.driver import psycopg
from stratakv.errors import DatabaseError, SettingsMismatchError

# What this program makes and reads. A change of TABLES is a new number, and a way there from the one before.
VERSION = 1
# The first pgvector with vectors of 16 bits.
PGVECTOR_MIN = (0, 7)
# pgvector's bound for vectors of 16 bits.
DIMENSION_MAX = 16_000
IDENTITY_BYTES_MAX = 1024
# What everybody who makes tables waits for: any number that others hardly choose.
LOCK = 0x5374726174614B56

TABLES = """
CREATE SCHEMA stratakv;

-- One row.
CREATE TABLE stratakv.settings (
    version integer NOT NULL,
    -- What made the vectors, and their elements; both or none.
    embedder text,
    dimension integer
);

CREATE SEQUENCE stratakv.changes;

-- Locked by whoever writes a user's memories.
CREATE TABLE stratakv.users (
    owner bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    next_id bigint NOT NULL,
    -- Another number after every write.
    change bigint NOT NULL DEFAULT nextval('stratakv.changes')
);

-- A scope that memories were written to, and what it holds, past versions included.
CREATE TABLE stratakv.scopes (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner bigint NOT NULL REFERENCES stratakv.users ON DELETE CASCADE,
    agent text,
    project text,
    session text,
    rows bigint NOT NULL DEFAULT 0,
    words bigint NOT NULL DEFAULT 0,
    -- Words of all windows, in the units of Question.WINDOW.
    window_words bigint NOT NULL DEFAULT 0,
    authors text[] NOT NULL DEFAULT '{}'
);
CREATE INDEX ON stratakv.scopes (owner, session);

CREATE TABLE stratakv.memories (
    owner bigint NOT NULL,
    id bigint NOT NULL,
    scope bigint NOT NULL REFERENCES stratakv.scopes ON DELETE CASCADE,
    -- Where it is in its session, from 0 on; elsewhere it has no neighbours, and this is -id.
    place bigint NOT NULL,
    text text NOT NULL,
    metadata text NOT NULL,
    source text,
    author text,
    valid_from bigint NOT NULL,
    valid_to bigint NOT NULL,
    recorded bigint NOT NULL,
    -- Until when it was true, as somebody said at `closed`; later versions are another matter.
    closed_to bigint NOT NULL,
    closed bigint NOT NULL,
    supersedes bigint,
    superseded_by bigint,
    -- The number of the first version of all that it is one of.
    fact bigint NOT NULL,
    words integer NOT NULL,
    window_words bigint NOT NULL,
    traits integer NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX ON stratakv.memories (scope, place);
CREATE INDEX ON stratakv.memories (owner, fact);

-- Which memories have a word, and how often.
CREATE TABLE stratakv.words (
    owner bigint NOT NULL,
    word text NOT NULL,
    id bigint NOT NULL,
    count integer NOT NULL,
    PRIMARY KEY (owner, word, id) INCLUDE (count)
);

-- Directions, of length 1: of the memory alone, and of the sum of its window.
CREATE TABLE stratakv.vectors (
    owner bigint NOT NULL,
    id bigint NOT NULL,
    scope bigint NOT NULL,
    direction halfvec NOT NULL,
    window_direction halfvec NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX ON stratakv.vectors (scope);

-- The planner's statistics keep samples of columns, also of what is forgotten since: none of these.
ALTER TABLE stratakv.users ALTER name SET STATISTICS 0;
ALTER TABLE stratakv.scopes
    ALTER agent SET STATISTICS 0, ALTER project SET STATISTICS 0,
    ALTER session SET STATISTICS 0, ALTER authors SET STATISTICS 0;
ALTER TABLE stratakv.memories
    ALTER text SET STATISTICS 0, ALTER metadata SET STATISTICS 0,
    ALTER source SET STATISTICS 0, ALTER author SET STATISTICS 0;
ALTER TABLE stratakv.words ALTER word SET STATISTICS 0;
ALTER TABLE stratakv.vectors
    ALTER direction SET STATISTICS 0, ALTER window_direction SET STATISTICS 0;
"""


def prepare(address: Address, embedder: tuple[str, int] | None) -> tuple[str, int] | None:
    """Makes the tables where there are none, and agrees on the embedder; the stored one.

    Raises:
        DatabaseError: the database can't be used; the message says what to do.
        SettingsMismatchError: its vectors are another embedder's.
        ValueError: an embedder that is not accepted.
    """
    if embedder is not None:
        check(*embedder)
    with connected(address) as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        _make_extension(connection, address)
        _make_tables(connection, address)
        return _agree(connection, address, embedder)


def check(identity: str, dimension: int) -> None:
    """Refuses an embedder that can't be stored.

    Raises:
        ValueError: the identity is too long, or the dimension too large.
    """
    if not 1 <= len(identity.encode()) <= IDENTITY_BYTES_MAX or not 1 <= dimension <= DIMENSION_MAX:
        raise ValueError(
            f"an embedder has an identity of 1 to {IDENTITY_BYTES_MAX} bytes and, in PostgreSQL, a dimension "
            f"of 1 to {DIMENSION_MAX}, not {dimension}"
        )


def _make_extension(connection: Connection, address: Address) -> None:
    """Sees to pgvector, in a version that has all that is used."""
    if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
        raise DatabaseError(f"{address.shown} does not store UTF-8: CREATE DATABASE ... ENCODING 'UTF8'")
    found = connection.execute(
        "SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if found is None:
        raise DatabaseError(
            f"the server of {address.shown} has no pgvector: install its package on the server "
            "(postgresql-<version>-pgvector, or an image such as pgvector/pgvector)"
        )
    available, installed = found
    if _numbers(installed or available) < PGVECTOR_MIN:
        least = ".".join(map(str, PGVECTOR_MIN))
        raise DatabaseError(
            f"{address.shown} has pgvector {installed or available}, needed is {least} or later: update its "
            "package on the server, and then ALTER EXTENSION vector UPDATE"
        )
    if installed is None:
        with permitted(address, "CREATE EXTENSION vector"):
            connection.execute("CREATE EXTENSION vector")


def _make_tables(connection: Connection, address: Address) -> None:
    if connection.execute("SELECT to_regclass('stratakv.settings')").fetchone() == (None,):
        with permitted(address, "GRANT CREATE ON DATABASE ... TO ..."):
            _make(connection)
        return
    row = connection.execute("SELECT version FROM stratakv.settings").fetchone()
    version = None if row is None else row[0]
    if version != VERSION:
        raise DatabaseError(
            f"the memories in {address.shown} have version {version}, this program knows {VERSION}: open "
            "them with a newer stratakv"
        )


def _make(connection: Connection) -> None:
    # The type's schema is where the extension is, and that may be anywhere.
    connection.execute(
        "SELECT set_config('search_path', quote_ident(nspname), true) "
        "FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
    )
    connection.execute(TABLES)
    connection.execute("INSERT INTO stratakv.settings (version) VALUES (%s)", (VERSION,))


def _agree(connection: Connection, address: Address, given: tuple[str, int] | None) -> tuple[str, int] | None:
    """What is there and what is asked for, as one; stored where it is new."""
    stored = embedder_of(connection)
    if given is None or stored == given:
        return stored
    if stored is not None:
        raise SettingsMismatchError(
            f"the memories in {address.shown} were embedded by {named(stored)}, not by {named(given)}: "
            "vectors of two embedders do not compare; open them with the first, or embed them anew: "
            "`stratakv memory reembed`, `Engram.reembed`"
        )
    connection.execute("UPDATE stratakv.settings SET embedder = %s, dimension = %s", given)
    return given


def embedder_of(connection: Connection) -> tuple[str, int] | None:
    """What made the vectors of a database that has the tables."""
    row = connection.execute("SELECT embedder, dimension FROM stratakv.settings").fetchone()
    assert row is not None
    return as_embedder(*row)


def as_embedder(identity: str | None, dimension: int | None) -> tuple[str, int] | None:
    """An embedder, as the settings have it in two columns: both, or none."""
    return None if identity is None or dimension is None else (identity, dimension)


def named(embedder: tuple[str, int]) -> str:
    """An embedder, for a message."""
    identity, dimension = embedder
    return f'"{identity}" ({dimension} elements)'


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@contextlib.contextmanager
def permitted(address: Address, needed: str) -> Iterator[None]:
    """Says who has to do what, where the user may not.

    Raises:
        DatabaseError: it was refused.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"{address.clean(error)}: let an administrator of {address.shown} run {needed}, and open it again"
        ) from None
