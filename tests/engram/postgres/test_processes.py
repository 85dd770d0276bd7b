"""Many processes, and many threads, on one database: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys

import pytest

from stratakv.engram import Engram

psycopg = pytest.importorskip("psycopg", reason="needs stratakv[postgres]")

WRITER = """
import sys
from stratakv.engram import Engram
url, name = sys.argv[1:]
with Engram.open(url, embedder=None) as memory:
    sys.stdin.readline()
    for number in range(30):
        memory.remember(f"{name} {number}", user="ana", session="s", author=name)
    won = 0
    for number in range(1, 11):
        try: memory.update(number, f"{name} was first", user="bob")
        except ValueError: continue
        won += 1
    for number in range(11, 21):
        memory.forget(number, user="bob") if name == "one" else memory.end(number + 10, user="bob")
print(won)
"""


def test_two_processes_lose_no_write(database):
    with Engram.open(database, embedder=None) as memory:
        memory.remember_many([f"fact {number}" for number in range(30)], user="bob")
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, database, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("one", "two")
        ]
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        won = [int(writer.communicate(timeout=120)[0]) for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0]
        # Of two who supersede one memory, one does.
        assert sum(won) == 10
        told = list(memory.list(user="ana"))
        assert [one.id for one in told] == list(range(1, 61))
        for name in ("one", "two"):
            mine = [one.text for one in told if one.author == name]
            assert mine == [f"{name} {number}" for number in range(30)]
        assert len(list(memory.list(user="bob", past=True))) == 30
        assert len(list(memory.list(user="bob"))) == 10
        assert {one.text for one in memory.list(user="bob")} <= {"one was first", "two was first"}
        _check_windows(database)


def _check_windows(database):
    """What is counted while others write is what is counted of what is there in the end."""
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT scope, place, m.words, m.window_words, session IS NOT NULL FROM stratakv.memories m "
            "JOIN stratakv.scopes ON number = scope ORDER BY scope, place"
        ).fetchall()
        sums = connection.execute(
            "SELECT number, rows, words, window_words FROM stratakv.scopes ORDER BY number"
        )
        for number, count, words, window_words in sums:
            mine = [row for row in rows if row[0] == number]
            assert count == len(mine)
            assert words == sum(row[2] for row in mine)
            assert window_words == sum(row[3] for row in mine)
    session = [row for row in rows if row[4]]
    assert [row[1] for row in session] == list(range(60))
    counts = [row[2] for row in session]
    units = {0: 8, 1: 4, 2: 2, 3: 1}
    for at, row in enumerate(session):
        near = range(max(at - 3, 0), min(at + 4, len(counts)))
        assert row[3] == sum(counts[other] * units[abs(at - other)] for other in near)


def test_more_threads_than_connections(database, embedder):
    with Engram.open(database, embedder=embedder) as memory:

        def work(number):
            user = f"user {number % 3}"
            id = memory.remember(f"the cat of {number}", user=user)
            return [one.memory.id for one in memory.recall("cat", user=user, k=50)].count(id)

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            assert list(pool.map(work, range(36))) == [1] * 36
        assert [memory.stats(user=user)["memories"] for user in memory.users()] == [12, 12, 12]


def test_a_connection_that_broke_is_replaced(database, embedder):
    with Engram.open(database, embedder=embedder) as memory:
        memory.remember("We chose Postgres", user="ana")
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert len(memory.recall("database", user="ana")) == 1


def test_a_batch_that_fails_leaves_nothing(database, embedder):
    with Engram.open(database, embedder=embedder) as memory:
        with pytest.raises(ValueError, match="text has 0 bytes"):
            memory.remember_many(["fine", ""], user="ana")
        assert memory.users() == []
        assert memory.remember("the first", user="ana") == 1


def test_a_forked_child_opens_its_own(database):
    code = (
        "import os, sys\n"
        "from stratakv.engram import Engram\n"
        "memory = Engram.open(sys.argv[1], embedder=None)\n"
        "if os.fork() == 0:\n"
        "    try: memory.users()\n"
        "    except RuntimeError as error: os._exit(7 if 'opens its own' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 7\n"
        "assert memory.users() == []\n"
        "memory.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, database], check=True)


def test_what_is_not_durable_is_after_flush(database):
    with Engram.open(database, embedder=None, durable=False) as memory:
        memory.remember("soon on disk", user="ana")
        memory.flush()
        with psycopg.connect(database) as connection:
            (behind,) = connection.execute(
                "SELECT pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn()"
            ).fetchone()
        assert behind
