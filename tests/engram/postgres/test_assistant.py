"""Assistants in several processes with one database."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from stratakv.engram import AssistantMemory, Engram
from stratakv.errors import LockedError

NOW = datetime(2024, 5, 6, 12, tzinfo=UTC)


def _open(url, directory, **options):
    options = {"embedder": None, "background": False} | options
    return AssistantMemory.open(url, directory=directory, **options)


def _say(memory, text):
    memory.observe([{"role": "user", "content": text}], user="ana", session="s", now=NOW)
    assert memory.drain()


def test_what_one_learns_the_other_knows(database, tmp_path):
    with _open(database, tmp_path / "a") as one, _open(database, tmp_path / "b") as other:
        assert other.profile(user="ana").text == ""
        _say(one, "Always answer in German. I live in Oslo.")
        assert "Always answer in German" in other.profile(user="ana").text
        _say(other, "I live in Bergen.")
        assert "Bergen" in one.profile(user="ana").text
        assert "Oslo" not in one.profile(user="ana").text
        # Said again to another process, it is known.
        _say(one, "Always answer in German.")
        facts = [fact for fact in one.list(user="ana") if fact.metadata["kind"] == "instruction"]
        assert len(facts) == 1
        other.erase("ana")
        assert one.profile(user="ana").text == ""
        assert one.users() == []


def test_turns_wait_in_the_directory_of_who_observed_them(database, tmp_path):
    with _open(database, tmp_path / "a") as one:
        one.observe([{"role": "user", "content": "We chose Postgres"}], user="ana", session="s", now=NOW)
        assert one.stats(user="ana")["waiting"] == 1
    with _open(database, tmp_path / "b") as other:
        assert other.stats(user="ana")["waiting"] == 0
        assert other.users() == []
    with _open(database, tmp_path / "a") as one:
        assert one.drain()
        assert [entry["action"] for entry in one.audit()].count("observe") == 1
    with Engram.open(database, embedder=None) as plain:
        assert "We chose Postgres" in [memory.text for memory in plain.list(user="ana")]


def test_a_directory_is_for_one_process(database, tmp_path):
    with _open(database, tmp_path):
        code = (
            "import sys\nfrom stratakv.engram import AssistantMemory\n"
            "from stratakv.errors import LockedError\n"
            "try: AssistantMemory.open(sys.argv[1], directory=sys.argv[2], embedder=None)\n"
            "except LockedError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, database, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert "is in use by process" in done.stdout
        with pytest.raises(LockedError):
            _open(database, tmp_path)
    with pytest.raises(ValueError, match="embedder='fast'"):
        _open(database, tmp_path, embedder="fast")
    with _open(database, tmp_path) as memory:
        assert memory.users() == []


def test_where_files_are_is_said_for_a_database_and_only_there(database, tmp_path):
    with pytest.raises(ValueError, match="memories in a database need directory="):
        AssistantMemory.open(database, embedder=None)
    with pytest.raises(ValueError, match="directory=.* is for memories in a database"):
        AssistantMemory.open(tmp_path / "a", directory=tmp_path / "b", embedder=None)
    assert list(tmp_path.iterdir()) == []
