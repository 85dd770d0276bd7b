"""What a person or a program meets who gets something wrong: a line, a hint, a code, and JSON if asked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stratakv.cli import main

from .conftest import environment, run_child

# Where nothing is yet but `a.txt` with text, `zero.bin` with bytes of 0, `blank.txt` and the folder `empty`.
MISTAKES = [
    (["dance"], 2, "'dance'", "stratakv --help"),
    (["sessions"], 2, "ACTION is missing", "list, show"),
    (["ask", "a.txt"], 2, "question", "stratakv ask --help"),
    (["ask", "a.txt", "why?", "--speed", "3"], 2, "--speed", "stratakv ask --help"),
    (["ask", "a.txt", "why", "so?"], 2, "no such file: why", "in quotes"),
    (["ask", "a.txt", " "], 2, "the question is empty", "in quotes"),
    (["ask", "zero.bin", "why?"], 2, "zero.bin is no text", "UTF-8"),
    (["ask", "blank.txt", "why?"], 2, "no text", "hold some"),
    (["ask", "empty", "why?"], 2, "no text file in empty", "give a folder"),
    (["ask", "a.txt", "why?", "--ram", "4Go"], 2, "--ram: '4Go' is not a size", "stratakv ask --help"),
    (["ask", "a.txt", "why?", "--ram", "1"], 2, "at least 64KiB", "stratakv ask --help"),
    (["ask", "a.txt", "why?", "--directory", "a.txt"], 2, "a.txt is a file", "--directory"),
    (["ask", "a.txt", "why?", "--directory", "a.txt/deep"], 2, "a.txt is a file", "--directory"),
    (["ask", "a.txt", "why?", "--explain", "no/page.html"], 2, "no directory no", "make it first"),
    (["ask", "a.txt", "why?", "--explain", "empty"], 2, "empty is a directory", "--explain"),
    (["ask", "a.txt", "why?", "--model", "empty"], 2, "empty holds no model", "config.json"),
    (["chat", "--user", "", "--memory", "m"], 2, "--user", "give a name"),
    (["chat", "--user", "ana", "--memory", "a.txt"], 2, "a.txt is a file", "--memory"),
    (["sessions", "list"], 2, "no such directory: sessions", "stratakv ask"),
    (["sessions", "list", "--directory", "a.txt"], 2, "a.txt is a file", "--directory"),
    (["sessions", "show", "x", "--directory", "empty"], 1, 'named "x"', "stratakv sessions list"),
    (["memory", "list", "--user", "ana"], 2, "no such directory: memory", "stratakv memory remember"),
    (["eval", "--report", "no/report.json"], 2, "no directory no", "make it first"),
    (["train", "--text", "no.txt", "--out", "run"], 2, "no.txt", "exists"),
    (["train", "--text", "a.txt", "--out", "a.txt"], 2, "a.txt is a file", "--out"),
    (["train", "--text", "a.txt", "--out", "run", "--steps", "x"], 2, "'x' is not a whole number", "--help"),
    (["train", "--text", "a.txt", "--out", "run", "--config", "zero.bin"], 2, "zero.bin", ""),
]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "zero.bin").write_bytes(b"\xe5\0\1")
    (tmp_path / "blank.txt").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(("arguments", "code", "said", "hint"), MISTAKES, ids=lambda value: str(value))
def test_a_mistake_is_a_line_with_a_hint_and_json_if_asked(fresh, capsys, arguments, code, said, hint):
    before = sorted(fresh.iterdir())
    assert main(arguments) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert said in told.err
    assert hint in told.err
    assert sorted(fresh.iterdir()) == before  # nothing was begun
    assert main([*arguments, "--json"]) == code
    told = capsys.readouterr()
    outcome = json.loads(told.out)
    assert set(outcome) == {"error", "hint"}
    assert f"error: {outcome['error']}" in told.err


def test_no_command_shows_what_there_is(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "stratakv demo" in said.err


def test_a_run_that_cannot_begin_leaves_nothing(fresh, capsys):
    """A tokenizer that stayed would be that of the next run, over other text."""
    assert main(["train", "--text", "a.txt", "--out", "run"]) == 2
    assert "give more text" in capsys.readouterr().err
    assert not (fresh / "run").exists()
    (fresh / "run").mkdir()
    (fresh / "run" / "mine.txt").touch()
    assert main(["train", "--text", "a.txt", "--out", "run"]) == 2
    assert [path.name for path in (fresh / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("json_too", [False, True])
def test_ctrl_c_is_told_as_asked(monkeypatch, capsys, json_too):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stratakv.cli.doctor.run", stopped)
    assert main(["doctor", *(["--json"] if json_too else [])]) == 130
    said = capsys.readouterr()
    assert said.err == "stopped\n"
    assert said.out == ('{"error": "stopped", "hint": null}\n' if json_too else "")


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_closed_streams(fresh, descriptor):
    program = f"import os; os.close({descriptor}); os.execv({sys.executable!r}, [{sys.executable!r}, '-m', "
    program += "'stratakv', 'ask', '-', 'why?'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert ("the files hold no text" in done.stderr) == (descriptor != 2)


def test_no_bars_where_there_is_no_terminal(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("It was a dark and stormy night; the rain fell in torrents. " * 120)
    sizes = ("--vocab-size", "300", "--hidden-size", "32", "--num-layers", "1", "--num-heads", "2")
    run = (
        "--num-kv-heads",
        "1",
        "--batch",
        "2",
        "--length",
        "32",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "run"),
    )
    done = run_child("train", "--text", str(book), *sizes, *run)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr  # how large it is, and the last loss
    assert "\r" not in done.stderr
