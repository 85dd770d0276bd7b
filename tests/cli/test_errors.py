from __future__ import annotations

import errno
import pickle

import pytest

from stratakv import errors
from stratakv.cli.errors import CommandError, UsageError, explain


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (CommandError("it broke", "mend it"), "it broke", "mend it"),
        (errors.LockedError("process 7 writes sessions/"), "process 7 writes sessions/", "--directory"),
        (errors.SessionNotFoundError("no session 'x'"), "no session 'x'", "sessions list"),
        (errors.DiskFullError("limit reached"), "limit reached", "--disk-limit"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/d/f"),
            "/d/f: No space left on device",
            "free disk",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
            "a.txt: No such file",
            "exists",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "d"),
            "d: Permission denied",
            "may read and write",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", None),
        (ZeroDivisionError("division by zero\nmore"), "ZeroDivisionError: division by zero", "--debug"),
    ],
)
def test_one_line_says_what_and_what_next(error, message, hint):
    said, advice = explain(error)
    assert said.startswith(message)
    assert "\n" not in said
    assert (advice is None) if hint is None else (hint in advice)


def test_usage_errors_exit_with_2(run, tmp_path):
    assert UsageError("x").exit_code == 2
    code, out, err = run("ask", tmp_path / "absent.txt", "why?", "--model", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_missing_model_is_named(run, document, tmp_path):
    code, out, err = run("ask", document, "why?", "--model", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(run, tmp_path):
    code, _, err = run("ask", tmp_path / "absent.txt", "why?", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "absent.txt" in err


def test_what_is_not_installed_says_how_to_install_it():
    error = errors.NotInstalledError(
        "memories in PostgreSQL need psycopg", "pip install 'stratakv[postgres]'"
    )
    assert explain(error) == ("memories in PostgreSQL need psycopg", "pip install 'stratakv[postgres]'")
    assert str(error) == "memories in PostgreSQL need psycopg: pip install 'stratakv[postgres]'"
    assert isinstance(error, ImportError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.hint) == (str(error), error.hint)
    # A message that only mentions the words has no hint by that.
    assert explain(OSError("pip install notes.txt")) == ("pip install notes.txt", None)
