"""`stratakv eval` on a tiny random model: what it reports, keeps, refuses and goes on from."""

from __future__ import annotations

import json

import pytest

from stratakv.cli import main
from stratakv.cli.eval import TASKS
from stratakv.cli.eval_report import Report

from .conftest import run_child


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {index} is plain." for index in range(900)))
    return str(path)


@pytest.fixture
def asked(tiny_model, text, tmp_path):
    """Runs `eval` in this process; the exit code."""

    def run(*arguments, directory="kept"):
        fixed = ["--model", tiny_model, "--dtype", "float32", "--text", text, "--ram", "64MiB", "--json"]
        return main(["eval", *fixed, "--directory", str(tmp_path / directory), *arguments])

    return run


def test_every_task_is_asked_and_reported(asked, capsys, tmp_path):
    assert asked("--tasks", "all", "--lengths", "2K,3072", "--count", "4", "--budget", "256") == 0
    report = json.loads(capsys.readouterr().out)
    of = {(one["family"], one["length"]): one for one in report["summary"]}
    families = {"needle": 4, "facts": 4, "keys": 4, **dict.fromkeys(TASKS[3:], 1)}
    assert {key: one["questions"] for key, one in of.items()} == {
        (family, length): count for family, count in families.items() for length in (2048, 3072)
    }
    for one in report["results"]:
        if one["family"] == "perplexity":
            # The tiny model knows nothing: about its vocabulary of bytes.
            assert 100 < of["perplexity", one["length"]]["perplexity"] < 600
        else:
            # The tiny model has a token per byte: its questions are longer than what is left for them.
            assert one["prompt_tokens"] <= one["length"] + 160
            assert 0 < one["read_tokens"] <= 512
            assert one["score"] == 0
    assert report["reading"].keys() == {
        f"{task} {length}"
        for task in (*(f"needle-{number}" for number in range(1, 5)), *TASKS[1:])
        for length in (2048, 3072)
    }


def test_a_hot_tier_predicts_as_the_engine_does(asked, capsys, monkeypatch, tmp_path):
    # The CPU stands in for a GPU.
    monkeypatch.setattr("stratakv.hf.arguments.is_gpu", lambda device: True)
    scores = []
    for number, hot in enumerate(([], ["--hot", "2MiB"])):
        assert asked("--tasks", "perplexity", "--lengths", "1K", "--budget", "256", *hot, "--report",
                     str(tmp_path / f"report-{number}.json")) == 0  # fmt: skip
        report = json.loads(capsys.readouterr().out)
        scores.append(report["results"][0]["score"])
        assert report["settings"]["hot"] == (2 << 20 if hot else None)
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert asked("--tasks", "perplexity", "--lengths", "1K", "--budget", "256", "--hot", "24KiB") == 1
    assert "raise hot=" in capsys.readouterr().err


def test_the_texts_are_removed_when_all_is_answered(asked, capsys, tmp_path):
    assert asked("--lengths", "1K", "--count", "4") == 0
    capsys.readouterr()
    assert main(["sessions", "list", "--json", "--directory", str(tmp_path / "kept")]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_run_goes_on_from_its_report(asked, capsys, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    arguments = ["--lengths", "1K", "--count", "8", "--report", str(report)]
    assert asked(*arguments) == 0
    whole = json.loads(capsys.readouterr().out)
    half = json.loads(report.read_text())
    half["results"] = half["results"][:3]
    report.write_text(json.dumps(half))
    added = []
    add = Report.add
    monkeypatch.setattr(Report, "add", lambda self, result: (added.append(result), add(self, result)))
    assert asked(*arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert [one["question"] for one in added] == [one["question"] for one in whole["results"][3:]]
    assert [one["reply"] for one in again["results"]] == [one["reply"] for one in whole["results"]]


def test_a_report_of_other_settings_is_refused_and_left_alone(asked, capsys, tmp_path):
    report = tmp_path / "report.json"
    assert asked("--lengths", "1K", "--count", "4", "--report", str(report)) == 0
    before = report.read_bytes()
    assert asked("--lengths", "1K", "--count", "5", "--report", str(report)) == 2
    assert "count 4 there, 5 here" in capsys.readouterr().err
    assert report.read_bytes() == before
    report.write_text("[]")
    assert asked("--lengths", "1K", "--count", "5", "--report", str(report)) == 2
    assert "is not a report of `stratakv eval`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "needle,hay"], "'hay' is no task: there are needle, facts,"),
        (["--lengths", "12"], "accepted are whole numbers of tokens from 1024 on"),
        (["--lengths", "4KiB"], "such as 4096, 16K or 1M"),
        (["--count", "3"], "'3' is not a whole number from 4 to 40"),
    ],
)
def test_bad_arguments_are_named(asked, capsys, arguments, message):
    assert asked(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_text_that_is_too_short_is_an_error_of_use(asked, capsys):
    assert asked("--lengths", "64K") == 2
    assert "give more --text, or shorter --lengths" in capsys.readouterr().err


def test_the_table_has_a_row_per_task_and_a_column_per_length(tiny_model, text, tmp_path):
    done = run_child(
        "eval", "--model", tiny_model, "--dtype", "float32", "--text", text, "--lengths", "1K,2K",
        "--tasks", "needle,perplexity", "--count", "4", "--directory", str(tmp_path / "d"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["FAMILY", "1,024", "2,048"]
    assert lines[1] == ["needle", "0", "%", "of", "4", "0", "%", "of", "4"]
    assert lines[2][0] == "perplexity"
