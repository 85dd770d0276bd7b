"""From a chat's messages to turns, and the journal in which they wait."""

from __future__ import annotations

import stat
from datetime import UTC, datetime

import pytest

from stratakv.engram import Scope
from stratakv.engram.journal import Journal
from stratakv.engram.turns import CLOSING, OPENING, Turn, turns_of

SCOPE = Scope(user="ana", project="shop", session="s1")
NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)


def _turn(number, user="ana"):
    return Turn(id=f"t{number}", role="user", text=f"text {number}\nü \x1e", time_ms=number, user=user)


def test_who_said_what_and_when():
    messages = [
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": " I live in Oslo ", "name": "Ana", "time": "2024-05-06T10:00:00+02:00"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": "", "extra": 1},
        {"role": "user", "content": "bye", "id": "m7"},
    ]  # fmt: skip
    first, second, third = turns_of(messages, SCOPE, now=NOON)
    assert (first.role, first.text, first.name) == ("user", "I live in Oslo", "Ana")
    assert first.time == datetime(2024, 5, 6, 8, tzinfo=UTC)
    assert first.scope == SCOPE
    assert (second.role, second.text, second.time) == ("assistant", "a\nb", NOON)
    assert (third.id, third.text) == ("m7", "bye")
    assert len({first.id, second.id, third.id}) == 3


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (f"{OPENING}\nAna lives in Oslo\n{CLOSING}\n\nhello", ["hello"]),
        (f"a {OPENING}x{CLOSING}b{OPENING}y{CLOSING} c", ["a b c"]),
        (f"hello\n{OPENING}\nthe rest is cut off", ["hello"]),
        (f"{OPENING}only this{CLOSING}", []),
    ],
)
def test_what_recall_put_in_is_taken_out(content, left):
    assert [turn.text for turn in turns_of([{"role": "user", "content": content}], SCOPE)] == left


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("text", r"messages\[0\].*got str"),
        ({"role": "robot", "content": "x"}, "role='robot'; accepted are user, assistant, system"),
        ({"role": "user", "content": 7}, "content=7; expected text"),
        ({"role": "user", "content": [{"text": 3}]}, "expected text"),
        ({"role": "user", "content": "x", "time": "yesterday"}, "ISO 8601"),
        ({"role": "user", "content": "x", "time": datetime(2024, 1, 1)}, "no time zone"),
        ({"role": "user", "content": "x", "id": ""}, "id='': expected text"),
        ({"role": "user", "content": "x", "name": "n" * 2000}, "name: 2000 bytes, expected at most 1024"),
        ({"role": "user", "content": "x" * (1 << 20) + "x"}, "content: 1048577 bytes"),
        ({"role": "user", "content": "\ud800"}, "not Unicode text"),
    ],
)
def test_messages_that_are_none_are_named(message, said):
    with pytest.raises(ValueError, match=said):
        turns_of([message], SCOPE)


def test_what_is_no_list_of_messages():
    for wrong in ("hello", {"role": "user", "content": "x"}, 3):
        with pytest.raises(ValueError, match="expected a list"):
            turns_of(wrong, SCOPE)
    with pytest.raises(ValueError, match="session: 2000 bytes"):
        turns_of([], Scope(user="ana", session="s" * 2000))


class TestJournal:
    def test_what_waits_is_there_after_reopening_in_order(self, tmp_path):
        journal = Journal(tmp_path / "turns")
        journal.append([_turn(1), _turn(2)])
        journal.append([_turn(3, "bob")])
        journal.append([_turn(4)])
        again = Journal(tmp_path / "turns")
        assert again.waiting("ana") == [_turn(1), _turn(2), _turn(4)]
        assert sorted(turn.id for turn in again.waiting()) == ["t1", "t2", "t3", "t4"]
        files = list((tmp_path / "turns").iterdir())
        assert len(files) == 2
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
        assert not any(b"ana" in file.name.encode() for file in files)

    def test_what_is_done_is_in_no_file(self, tmp_path):
        journal = Journal(tmp_path)
        journal.append([_turn(1), _turn(2), _turn(3)])
        journal.done("ana", ["t2", "unknown"])
        assert [turn.id for turn in Journal(tmp_path).waiting()] == ["t1", "t3"]
        assert not any(b"text 2" in file.read_bytes() for file in tmp_path.iterdir())
        journal.done("ana", ["t1", "t3"])
        assert journal.waiting() == []
        assert [file.stat().st_size for file in tmp_path.iterdir()] == [0]
        journal.append([_turn(5)])
        assert journal.erase("ana") == 1
        assert list(tmp_path.iterdir()) == []
        assert journal.erase("ana") == 0

    def test_new_are_those_that_neither_wait_nor_come_twice(self, tmp_path):
        journal = Journal(tmp_path)
        journal.append([_turn(1)])
        assert journal.new([_turn(1), _turn(2), _turn(2)]) == [_turn(2)]
        assert journal.new([]) == []

    def test_every_cut_and_every_flipped_byte_loses_one_turn_at_most(self, tmp_path):
        Journal(tmp_path).append([_turn(1), _turn(2)])
        (file,) = tmp_path.iterdir()
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            journal = Journal(tmp_path)
            first_there = length >= whole.index(b"\n") + 1
            assert journal.waiting() == ([_turn(1)] if first_there else [])
            journal.append([_turn(3)])
            assert Journal(tmp_path).waiting()[-1] == _turn(3)
        for place in range(0, len(whole), 3):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
            journal = Journal(tmp_path)
            assert set(journal.waiting()) < {_turn(1), _turn(2)}
            assert journal.damaged >= 1

    def test_a_file_that_was_being_made_is_removed(self, tmp_path):
        journal = Journal(tmp_path)
        journal.append([_turn(1)])
        (file,) = tmp_path.iterdir()
        file.with_suffix(".tmp").write_bytes(b"half")
        assert Journal(tmp_path).waiting() == [_turn(1)]
        assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]

    def test_a_turn_of_another_user_in_a_file_is_not_taken(self, tmp_path):
        journal = Journal(tmp_path)
        journal.append([_turn(1)])
        (ana,) = tmp_path.iterdir()
        journal.append([_turn(2, "bob")])
        bob = next(path for path in tmp_path.iterdir() if path != ana)
        bob.write_bytes(ana.read_bytes())
        again = Journal(tmp_path)
        assert again.waiting() == [_turn(1)]
        assert again.damaged == 1
