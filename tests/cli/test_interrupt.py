"""Ctrl-C of a real process, and what is left of its work."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from .conftest import command, environment, run_child, save_tiny_model


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory) -> str:
    """Slow enough to be stopped half-way, with chunks of 64."""
    return save_tiny_model(tmp_path_factory.mktemp("slow"), num_layers=12, hidden=128, window=8192)


def _wait_for_progress(child: subprocess.Popen[str]) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        line = child.stderr.readline()
        if line.startswith("prefill") or not line:
            return line
    raise AssertionError("no progress")


def test_ctrl_c_keeps_what_was_read_and_the_same_command_goes_on(slow_model, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("Many words that take a while. " * 150)
    arguments = (
        "ask", str(text), "what?", "--model", slow_model, "--directory", str(tmp_path / "sessions"),
        "--dtype", "float32", "--chunk", "64", "--max-new-tokens", "2",
    )  # fmt: skip
    child = subprocess.Popen(
        command(*arguments, "--progress"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert _wait_for_progress(child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "the same command goes on from there" in err

    again = run_child(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    tokens = json.loads(again.stdout)["tokens"]
    assert 63 <= tokens["reused"] < tokens["context"]
    assert tokens["prefilled"] == tokens["context"] + tokens["question"] - tokens["reused"]
