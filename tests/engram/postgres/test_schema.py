"""What a database has to be, and what is said where it is not."""

from __future__ import annotations

import concurrent.futures

import pytest

from stratakv.engram import Engram, FunctionEmbedder
from stratakv.errors import DatabaseError

psycopg = pytest.importorskip("psycopg", reason="needs stratakv[postgres]")


def _run(database, *statements):
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def _as(database, role):
    return database.replace("tester@", f"{role}@")


def test_memories_of_a_newer_version_are_refused(database):
    Engram.open(database, embedder=None).close()
    _run(database, "UPDATE stratakv.settings SET version = 2")
    with pytest.raises(DatabaseError, match="have version 2, this program knows 1: open them with a newer"):
        Engram.open(database, embedder=None)


# A role whose path has a view of that name first is told what a server without it tells.
PRETEND = (
    "CREATE SCHEMA pretence",
    "CREATE VIEW pretence.pg_available_extensions AS {view}",
    "CREATE ROLE {role} LOGIN SUPERUSER",
    "ALTER ROLE {role} SET search_path = pretence, pg_catalog",
)


@pytest.mark.parametrize(
    ("role", "view", "message"),
    [
        (
            "bare",
            "SELECT * FROM pg_catalog.pg_available_extensions WHERE name <> 'vector'",
            "has no pgvector: install its package on the server",
        ),
        (
            "old",
            "SELECT 'vector'::name AS name, '0.4.4' AS default_version, NULL::text AS installed_version",
            "has pgvector 0.4.4, needed is 0.7 or later: .* ALTER EXTENSION vector UPDATE",
        ),
    ],
)
def test_servers_that_lack_something(database, role, view, message):
    _run(database, *(statement.format(role=role, view=view) for statement in PRETEND))
    with pytest.raises(DatabaseError, match=message):
        Engram.open(_as(database, role), embedder=None)


def test_who_may_not_make_tables_is_told_who_may(database):
    _run(database, "CREATE ROLE guest LOGIN", "CREATE EXTENSION vector")
    with pytest.raises(DatabaseError, match="let an administrator of .* run GRANT CREATE ON DATABASE"):
        Engram.open(_as(database, "guest"), embedder=None)
    _run(database, "DROP EXTENSION vector")
    with pytest.raises(DatabaseError, match="let an administrator of .* run CREATE EXTENSION vector"):
        Engram.open(_as(database, "guest"), embedder=None)


def test_a_database_of_another_encoding(server, database):
    name = f"latin_{database.rpartition('/')[2]}"
    _run(database, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(DatabaseError, match="ENCODING 'UTF8'"):
        Engram.open(f"{server}/{name}", embedder=None)


def test_the_extension_may_be_in_any_schema(database, embedder):
    _run(database, 'CREATE SCHEMA "Far away"', 'CREATE EXTENSION vector SCHEMA "Far away"')
    with Engram.open(database, embedder=embedder) as memory:
        memory.remember("We chose Postgres", user="ana")
        assert [one.text for one in memory.recall("database", user="ana")] == ["We chose Postgres"]


def test_an_embedder_that_comes_later(database, embedder):
    with Engram.open(database, embedder=None) as memory:
        memory.remember("words alone", user="ana", session="s")
    with Engram.open(database, embedder=embedder) as memory:
        memory.remember("We chose Postgres", user="ana", session="s")
        assert memory.stats(user="ana")["vectors"] == 1
        assert memory.recall("which database", user="ana")[0].text == "We chose Postgres"
        assert [one.has_vector for one in memory.list(user="ana")] == [False, True]


@pytest.mark.parametrize(("identity", "dimension"), [("", 3), ("x" * 1025, 3), ("x", 0), ("x", 16_001)])
def test_embedders_that_are_not_accepted(database, identity, dimension):
    wrong = FunctionEmbedder(function=len, identity=identity, dimension=dimension)
    with pytest.raises(
        ValueError, match="identity of 1 to 1024 bytes and, in PostgreSQL, a dimension of 1 to"
    ):
        Engram.open(database, embedder=wrong)


def test_many_open_an_empty_database_at_once(database, embedder):
    def remember(number):
        with Engram.open(database, embedder=embedder) as memory:
            return memory.remember(f"fact {number}", user="ana")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(remember, range(4)))
    assert sorted(numbers) == [1, 2, 3, 4]


def test_texts_that_postgresql_does_not_store(database, embedder):
    with Engram.open(database, embedder=embedder) as memory:
        for given in ({"text": "a\0b"}, {"text": "a", "source": "\0"}, {"text": "a", "author": "\0"}):
            with pytest.raises(ValueError, match="has a NUL character, which PostgreSQL does not store"):
                memory.remember(**given, user="ana")
        memory.remember("x", user="ana", metadata={"nul": "\0"})
        assert [one.metadata for one in memory.list(user="ana")] == [{"nul": "\0"}]
