"""The log of reads and writes: what is in it, what never is, and how it stays small."""

from __future__ import annotations

import json
import stat
import threading

import pytest

from stratakv.engram import Engram
from stratakv.engram.audit import AuditedEngine, AuditLog, ranges
from stratakv.errors import MemoryNotFoundError

SCOPE = ("ana", None, "shop", None)


def test_a_line_tells_who_what_and_when(tmp_path):
    log = AuditLog(tmp_path / "audit")
    log.write("recall", SCOPE, ids=[3, 1, 2, 9])
    log.write("forget", SCOPE, error=KeyError("the text"), records=0)
    first, second = log.read()
    assert first.pop("time") <= second.pop("time")
    assert first == {"action": "recall", "user": "ana", "project": "shop", "ids": "1-3,9"}
    assert second == {"action": "forget", "user": "ana", "project": "shop", "error": "KeyError", "records": 0}
    assert stat.S_IMODE((tmp_path / "audit" / "audit.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700


def test_it_goes_on_after_reopening_and_a_torn_line_is_told(tmp_path):
    log = AuditLog(tmp_path)
    log.write("one", SCOPE)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write("x", SCOPE)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"action": "to')
    log = AuditLog(tmp_path)
    log.write("two", SCOPE)
    assert [entry.get("action", entry.get("damaged")) for entry in log.read()] == ["one", True, "two"]


def test_it_rotates_at_its_limit_and_keeps_the_newest(tmp_path):
    log = AuditLog(tmp_path, bytes_max="4KiB", files_max=3)
    for number in range(400):
        log.write(f"call {number}", SCOPE)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(file.stat().st_size <= 4096 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    numbers = [int(entry["action"].split()[1]) for entry in log.read()]
    assert numbers == list(range(numbers[0], 400))
    assert 50 < len(numbers) < 400


def test_one_file_alone(tmp_path):
    log = AuditLog(tmp_path, bytes_max=4096, files_max=1)
    for number in range(100):
        log.write(f"call {number}", SCOPE)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]
    assert [*log.read()][-1]["action"] == "call 99"


@pytest.mark.parametrize(
    ("limits", "said"), [({"bytes_max": 100}, "bytes_max"), ({"files_max": 0}, "files_max=0")]
)
def test_limits_that_are_not_accepted(tmp_path, limits, said):
    with pytest.raises(ValueError, match=said):
        AuditLog(tmp_path, **limits)


def test_threads_share_it_without_mixing_lines(tmp_path):
    log = AuditLog(tmp_path, bytes_max="8KiB", files_max=100)

    def write(thread):
        for number in range(100):
            log.write("call", SCOPE, thread=thread, number=number)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = [(entry["thread"], entry["number"]) for entry in log.read()]
    assert sorted(entries) == [(thread, number) for thread in range(8) for number in range(100)]


def test_ranges():
    assert ranges([]) == ""
    assert ranges([5, 1, 2, 2, 3, 7, 8]) == "1-3,5,7-8"


def test_every_call_of_the_engine_is_noted_and_no_text(tmp_path):
    log = AuditLog(tmp_path / "audit")
    engram = Engram.open(tmp_path / "memory", embedder=None)
    memory = Engram(AuditedEngine(engram._engine, log), None)
    first, second = memory.remember_many(["a xylophone", "a trumpet"], user="ana", project="shop")
    memory.recall("which xylophone?", user="ana")
    newer = memory.update(first, "a newer xylophone", user="ana")
    memory.history(newer, user="ana")
    list(memory.list(user="ana"))
    memory.end(second, user="ana")
    with pytest.raises(MemoryNotFoundError):
        memory.forget(second, user="bob")
    memory.retain(user="ana", max_count=10)
    memory.forget(newer, user="ana")
    memory.forget(user="ana", everything=True)
    assert memory.stats(user="ana")["memories"] == 0
    memory.close()
    told = [(entry["action"], entry.get("ids"), entry.get("error")) for entry in log.read()]
    assert told == [
        ("remember", "1-2", None),
        ("recall", "1", None),
        ("remember", "3", None),
        ("history", "1,3", None),
        ("list", "2-3", None),
        ("end", "2", None),
        ("forget", None, "MemoryNotFoundError"),
        ("retain", None, None),
        ("forget", "3", None),
        ("forget", None, None),
    ]
    last = [*log.read()][-1]
    assert (last["everything"], last["records"]) == (True, 1)
    assert "xylophone" not in json.dumps([*log.read()])
