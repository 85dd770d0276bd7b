"""Export and import."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from stratakv.engram import Engram

THEN = datetime(2024, 5, 1, tzinfo=UTC)


def _story(memory):
    """Facts of all kinds of one user."""
    first = memory.remember("Ana lives in Oslo", user="ana", valid_from=THEN, metadata={"n": 1})
    memory.remember("something between", user="ana", project="x", session="s", source="turn 3", author="Bob")
    second = memory.update(first, "Ana lives in Bergen", user="ana", valid_from=THEN + timedelta(days=9))
    memory.update(second, "Ana lives in Rome", user="ana")
    over = memory.remember("Ana has a bicycle", user="ana", valid_from=THEN)
    memory.end(over, user="ana", valid_to=THEN + timedelta(days=99))


def _plain(memories):
    """What must not change: all but the time at which an end was noted."""
    return [replace(one, closed=None) for one in memories]


def test_everything_comes_back(tmp_path, make_place, embedder):
    with Engram.open(make_place(), embedder=embedder) as memory:
        _story(memory)
        assert memory.export(tmp_path / "ana.jsonl", user="ana") == 5
        before = list(memory.list(user="ana", past=True))
    assert (tmp_path / "ana.jsonl").stat().st_mode & 0o777 == 0o600
    with Engram.open(make_place(), embedder=embedder) as memory:
        assert memory.import_(tmp_path / "ana.jsonl") == 5
        after = list(memory.list(user="ana", past=True))
        assert _plain(after) == _plain(before)
        assert [one.closed is None for one in after] == [one.closed is None for one in before]
        assert len(memory.history(1, user="ana")) == 3


def test_imported_twice_it_is_there_twice(tmp_path, memory):
    _story(memory)
    memory.export(tmp_path / "ana.jsonl", user="ana")
    memory.import_(tmp_path / "ana.jsonl")
    assert len(list(memory.list(user="ana", past=True))) == 10
    assert [one.text for one in memory.history(6, user="ana")][-1] == "Ana lives in Rome"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object"),
        ('{"id": 1, "text": "x"}', r"line 2: missing \['user'\]"),
        ('{"id": 1, "text": "x", "user": "ana", "colour": 1}', r"unknown \['colour'\]"),
        ('{"id": 1, "text": "x", "user": "ana", "recorded": "yesterday"}', "line 2: Invalid isoformat"),
        ('{"id": 1, "text": "x", "user": ""}', "line 2: user is empty"),
    ],
)
def test_lines_that_are_not_accepted(tmp_path, memory, line, message):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"id": 1, "text": "fine", "user": "ana"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        memory.import_(file)
    assert memory.users() == []
