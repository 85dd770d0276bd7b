"""What is forgotten is in no table, and what it takes until it is in no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.engram import Engram

psycopg = pytest.importorskip("psycopg", reason="needs stratakv[postgres]")

TABLES = ("settings", "users", "scopes", "memories", "words", "vectors")


def _dump(database):
    """All rows of all tables, and the planner's samples of them, as text."""
    sources = [f"stratakv.{table}" for table in TABLES] + ["pg_stats"]
    with psycopg.connect(database) as connection:
        return "\n".join(
            row for source in sources for (row,) in connection.execute(f"SELECT t::text FROM {source} t")
        )


def _rows(database):
    with psycopg.connect(database) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM stratakv.{table}").fetchone()[0]
            for table in TABLES
        }


def _fill(memory):
    memory.remember("a cat stays", user="ana", session="s")
    secret = memory.remember(
        "the xylophone cat", user="ana", session="s", author="Zeno", source="quagga", metadata={"k": "okapi"}
    )
    memory.remember("a pet stays", user="ana", session="s")
    return secret


def test_what_is_forgotten_is_in_no_table(database, embedder):
    with Engram.open(database, embedder=embedder) as memory:
        secret = _fill(memory)
        with psycopg.connect(database) as connection:
            # Samples of before stay until the next time.
            connection.execute("ANALYZE")
        with Engram.open(database, embedder=embedder) as other:
            assert other.recall("xylophone", user="ana", k=1)[0].memory.id == secret
        kept = _dump(database)
        # The stem is what the word is found by.
        assert all(text in kept for text in ("xylophone", "xylophon,", "Zeno", "quagga", "okapi"))
        newer = memory.update(secret, "the xylophone broke", user="ana")
        assert memory.forget(newer, user="ana") == 2
        kept = _dump(database).lower()
        assert not any(text in kept for text in ("xylophon", "zeno", "quagga", "okapi", "broke"))
        left = {"users": 1, "scopes": 1, "memories": 2, "words": 4, "vectors": 2}
        assert _rows(database) == {"settings": 1} | left
        assert [one.text for one in memory.list(user="ana")] == ["a cat stays", "a pet stays"]
        assert memory.forget(user="ana", everything=True) == 2
        assert _rows(database) == dict.fromkeys(TABLES, 0) | {"settings": 1}


def test_dead_rows_are_taken_out_at_once(database, embedder):
    with Engram.open(database, embedder=embedder) as memory:
        memory.forget(_fill(memory), user="ana")
        with psycopg.connect(database) as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
            dead = connection.execute(
                "SELECT relname, n_dead_tup, last_vacuum IS NOT NULL FROM pg_stat_user_tables "
                "WHERE relname IN ('memories', 'words', 'vectors') ORDER BY relname"
            ).fetchall()
    assert dead == [("memories", 0, True), ("vectors", 0, True), ("words", 0, True)]


def test_after_a_rewrite_it_is_in_no_file_of_a_table(database, embedder):
    """As docs/memory.md says: VACUUM FULL, and a checkpoint. The log of writes is another matter."""
    with Engram.open(database, embedder=embedder) as memory:
        secret = _fill(memory)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            (home,) = connection.execute("SELECT current_setting('data_directory')").fetchone()
            (oid,) = connection.execute(
                "SELECT oid::text FROM pg_database WHERE datname = current_database()"
            ).fetchone()
            tables = Path(home) / "base" / oid
            assert _is_in_a_file(tables, b"xylophone")
            memory.forget(secret, user="ana")
            for table in ("memories", "words", "vectors"):
                connection.execute(f"VACUUM FULL stratakv.{table}")
            connection.execute("CHECKPOINT")
            assert not _is_in_a_file(tables, b"xylophon")


def _is_in_a_file(directory, text):
    return any(text in path.read_bytes() for path in directory.rglob("*") if path.is_file())
