"""`ask`, `chat`, `sessions`, `bench` and `doctor` over a real store, with a tiny random model."""

from __future__ import annotations

import io
import json
import re

import pytest


@pytest.fixture
def ask(run_json, tiny_model, document, tmp_path):
    def call(question: str, *more: object, directory: str = "sessions"):
        return run_json(
            "ask", document, question, "--model", tiny_model, "--directory", tmp_path / directory,
            "--dtype", "float32", "--max-new-tokens", 5, *more,
        )  # fmt: skip

    return call


@pytest.fixture
def sessions(run_json, tmp_path):
    return lambda *arguments: run_json("sessions", *arguments, "--directory", tmp_path / "sessions")


@pytest.fixture
def chat(tiny_model, tmp_path, run, monkeypatch):
    def call(lines: str, *more: object):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code, out, err = run(
            "chat", "--model", tiny_model, "--directory", tmp_path / "sessions", "--dtype", "float32",
            "--max-new-tokens", 5, "--json", *more,
        )  # fmt: skip
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()], err

    return call


def test_a_second_question_needs_no_prefill_of_the_files(ask):
    first, second = ask("what jumps?"), ask("over whom?")
    assert first["tokens"]["reused"] == 0
    assert first["tokens"]["prefilled"] == first["tokens"]["context"] + first["tokens"]["question"]
    assert second["tokens"]["reused"] >= first["tokens"]["context"] - 1
    assert second["tokens"]["prefilled"] <= second["tokens"]["question"] + 1
    assert second["session"] == first["session"]


def test_the_answer_is_the_same_from_stored_pages(ask):
    fresh = ask("over whom?", directory="other")
    ask("what jumps?")
    again = ask("over whom?")
    assert again["answer"] == fresh["answer"]
    assert again["tokens"]["answer"] == fresh["tokens"]["answer"]


def test_more_files_reuse_the_pages_of_the_first(ask, document, run_json, tiny_model, tmp_path):
    ask("what jumps?")
    other = tmp_path / "more.txt"
    other.write_text("And the dog sleeps. " * 10)
    both = run_json(
        "ask", document, other, "who sleeps?", "--model", tiny_model, "--directory", tmp_path / "sessions",
        "--dtype", "float32", "--max-new-tokens", 2,
    )  # fmt: skip
    assert both["tokens"]["reused"] >= 64


@pytest.mark.parametrize("budget", ["256", "2048"])
def test_an_answer_names_lines_of_a_folder_and_draws_where_it_looked(run_json, tiny_model, tmp_path, budget):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.txt", "inner/a.txt"):
        (folder / name).write_text("\n".join(f"line {number} of {name}" for number in range(60)))
    page = tmp_path / "page.html"
    report = run_json(
        "ask", folder, "why?", "--model", tiny_model, "--directory", tmp_path / "s", "--dtype", "float32",
        "--max-new-tokens", 5, "--budget", budget, "--explain", page, "--sources", 2,
    )  # fmt: skip
    assert 1 <= len(report["sources"]) <= 2
    for source in report["sources"]:
        assert source["file"] in {"folder/b.txt", "folder/inner/a.txt"}
        assert 1 <= source["first_line"] <= source["last_line"] <= 60
        assert 0 < source["weight"] <= 1
    assert page.read_text().startswith("<!doctype html>")


def test_steps_that_read_everything_have_no_sources(ask, run, tiny_model, document, tmp_path):
    page = tmp_path / "page.html"
    assert ask("what?", "--budget", "all")["sources"] == []
    assert ask("what?", "--sources", 0)["sources"] == []
    code, _, err = run(
        "ask", document, "what?", "--model", tiny_model, "--directory", tmp_path / "s", "--max-new-tokens", 2,
        "--budget", "all", "--explain", page,
    )  # fmt: skip
    assert code == 0
    assert "was not written: steps that read everything do not tell where they look" in err
    assert not page.exists()


def test_ask_writes_the_answer_alone_to_stdout(run, tiny_model, document, tmp_path):
    code, out, err = run(
        "ask", document, "what?", "--model", tiny_model, "--directory", tmp_path / "s", "--max-new-tokens", 4
    )
    assert code == 0
    assert out.endswith("\n")
    assert err == ""


def test_a_text_of_one_word_is_no_trouble(ask, document):
    document.write_text("Nothing.")
    assert ask("what?")["tokens"]["answer"] > 0


def test_ask_reads_standard_input_and_shows_progress_when_asked(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Some text from a pipe. " * 30))
    code, _, err = run(
        "ask", "-", "what?", "--model", tiny_model, "--directory", tmp_path / "s", "--max-new-tokens", 2,
        "--progress", "--chunk", 256,
    )  # fmt: skip
    assert code == 0
    assert "prefill" in err
    assert "tokens/s" in err
    assert "ram" in err


def test_ask_warns_beyond_the_trained_window(run, tmp_path, tiny_model):
    long = tmp_path / "long.txt"
    long.write_text("word " * 900)
    code, _, err = run(
        "ask", long, "what?", "--model", tiny_model, "--directory", tmp_path / "s", "--max-new-tokens", 2,
        "--budget", "all",
    )  # fmt: skip
    assert code == 0
    assert "warning:" in err
    assert "4,096" in err


def test_ask_reads_a_part_of_a_long_text_and_goes_on_with_it(run_json, run, tmp_path, tiny_model, capsys):
    long = tmp_path / "long.txt"
    long.write_text("".join(f"Line {number} says {number * 7 % 13}. " for number in range(400)))

    def ask(*options):
        return run_json(
            "ask", long, "what?", "--model", tiny_model, "--directory", tmp_path / "s", "--max-new-tokens", 3,
            "--dtype", "float32", *options,
        )  # fmt: skip

    first = ask("--budget", 512)
    assert first["tokens"]["context"] > 4096
    assert first["reading"]["budget"] == 512
    # The guard may read up to twice the budget.
    assert 400 < first["reading"]["tokens"] <= 1024 + 64
    again = ask("--budget", 512)
    assert again["answer"] == first["answer"]
    assert again["tokens"]["reused"] >= first["tokens"]["context"] - 1
    whole = ask("--budget", "all")
    assert whole["session"] != first["session"]
    assert whole["reading"] == {
        "budget": None,
        "tokens": sum(whole["tokens"][of] for of in ("context", "question", "answer")),
        "unread_share": 0.0,
        "focus_blocks": 0,
    }
    code, _, err = run("ask", long, "what?", "--budget", 10)
    assert code == 2
    assert "from 256 on, and all" in err


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """The CPU stands in for a GPU: what a hot tier keeps is then kept in RAM, and read by plain PyTorch."""
    monkeypatch.setattr("stratakv.hf.arguments.is_gpu", lambda device: True)


@pytest.mark.usefixtures("cpu_as_gpu")
def test_a_hot_tier_answers_as_the_engine_does(run_json, chat, tmp_path, tiny_model):
    long = tmp_path / "long.txt"
    long.write_text("".join(f"Line {number} says {number * 7 % 13}. " for number in range(150)))

    def ask(*options):
        return run_json(
            "ask", long, "what?", "--model", tiny_model, "--directory", tmp_path / "s", "--max-new-tokens", 8,
            "--dtype", "float32", "--budget", 512, *options,
        )  # fmt: skip

    plain, hot = ask(), ask("--hot", "2MiB", "--device", "cpu")
    assert hot["answer"] == plain["answer"]
    assert hot["sources"] == plain["sources"]
    assert hot["device"] == plain["device"] == "cpu"
    assert "hot" not in plain
    assert hot["hot"]["limit_bytes"] == 2 << 20
    assert hot["hot"]["hits"] > 0
    _, said = chat("word " * 300 + "\n/stats\n", "--hot", "2MiB", "--budget", "256")
    assert re.search(r"hot \d+KiB of 2MiB, ram", said)
    assert "--hot" not in said
    chat("hello\n", "--budget", "all", "--session", "exact")
    _, said = chat("again\n", "--hot", "2MiB", "--session", "exact")
    assert "--hot keeps nothing" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hot", "1GiB", "--device", "cpu"], "leave --hot out: without a GPU"),
        (["--device", "cuda:999"], "PyTorch finds no such device here"),
        (["--device", "tpu"], "accepted are auto, cpu, cuda, cuda:N and mps"),
        (["--device", "cuda:x"], "accepted are auto"),
    ],
)
@pytest.mark.parametrize("command", [["ask", "TEXT", "what?"], ["chat"], ["eval"]])
def test_what_a_device_needs_is_said(command, arguments, said, run, document, tiny_model):
    command = [str(document) if word == "TEXT" else word for word in command]
    code, _, err = run(*command, "--model", tiny_model, *arguments)
    assert code == 2
    assert said in err


@pytest.mark.usefixtures("cpu_as_gpu")
def test_a_hot_tier_needs_a_budget(run, document, tiny_model):
    code, _, err = run("ask", document, "q", "--model", tiny_model, "--budget", "all", "--hot", "1GiB")
    assert code == 2
    assert "give --budget TOKENS, or leave --hot out" in err


def test_a_conversation_goes_on_as_it_was_begun(chat):
    chat("hello\n", "--budget", "all")
    turns, err = chat("still there?\n")
    assert turns[0]["tokens"]["prefilled"] < turns[0]["tokens"]["total"]
    assert "--budget all" in err


def test_a_model_that_cannot_be_attached_is_read_whole(chat, monkeypatch):
    from stratakv.hf import attachment, attention

    def refuse(*_):
        raise attention.UnsupportedModelError("strange positions")

    monkeypatch.setattr(attachment, "probe", refuse)
    turns, err = chat("hello\n")
    assert len(turns) == 1
    assert "strange positions" in err


def test_a_conversation_goes_on_where_it_stopped(chat):
    first, _ = chat("hello\nhow are you?\n")
    second, _ = chat("still there?\n")
    assert [turn["question"] for turn in first] == ["hello", "how are you?"]
    before, now = first[-1]["tokens"], second[0]["tokens"]
    assert now["total"] - now["answer"] - now["prefilled"] == before["total"] - 1  # its last token again


def test_a_resumed_conversation_says_what_an_unbroken_one_says(chat):
    whole, _ = chat("hello\nand then?\n", "--session", "whole")
    chat("hello\n", "--session", "broken")
    rest, _ = chat("and then?\n", "--session", "broken")
    assert rest[0]["answer"] == whole[1]["answer"]


def test_chat_commands(chat, sessions):
    turns, err = chat(
        "/help\n/fork\nhello\n/fork twin\n/fork twin\n/fork ../evil\n/stats\n/dance\n/exit\nnot read\n"
    )
    assert len(turns) == 1
    for said in (
        "/fork NAME",
        "kept a copy as session twin",
        "there is a session twin already",
        "tokens; ram",
        "/dance is no command",
        "../evil",
    ):
        assert said in err
    assert {session["name"] for session in sessions("list")} == {"chat", "twin"}


def test_sessions_of_another_model_or_settings_are_refused(chat, run, tiny_model, tmp_path, monkeypatch):
    chat("hello\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    code, out, err = run(
        "chat", "--model", tiny_model, "--directory", tmp_path / "sessions", "--dtype", "bfloat16"
    )
    assert (code, out) == (1, "")
    assert "dtype" in err or "model" in err


def test_list_show_fork_remove_verify_gc(ask, sessions, run, tmp_path):
    name = ask("what jumps?")["session"]
    (listed,) = sessions("list")
    assert listed["name"] == name
    assert listed["tokens"] > 100
    assert {"bytes", "shared_bytes", "created", "last_used", "model"} <= set(listed)
    assert sessions("show", name)["missing_pages"] == 0
    assert sessions("fork", name, "copy") == {"source": name, "target": "copy"}
    assert {session["name"] for session in sessions("list")} == {name, "copy"}
    report = sessions("verify")
    assert report["pages"] > 0
    assert (report["corrupt"], report["missing"], report["problems"]) == (0, 0, [])
    assert sessions("rm", "--yes", name, "copy") == {"removed": [name, "copy"]}
    assert sessions("list") == []
    assert sessions("gc")["freed_pages"] > 0


def test_sessions_for_people(ask, run, tmp_path):
    name = ask("what jumps?")["session"]
    where = ("--directory", tmp_path / "sessions")
    _, out, _ = run("sessions", "list", *where)
    header, row = out.splitlines()
    assert header.split() == ["NAME", "TOKENS", "SIZE", "SHARED", "USED", "MODEL"]
    assert row.startswith(name)
    _, out, _ = run("sessions", "show", name, *where)
    assert "missing pages" in out
    _, out, _ = run("sessions", "verify", name, *where)
    assert "0 corrupt, 0 missing" in out


def test_removing_asks_on_a_terminal_and_insists_elsewhere(ask, sessions, run, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    name = ask("what jumps?")["session"]
    where = ("--directory", tmp_path / "sessions")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = run("sessions", "rm", name, *where)
    assert code == 2
    assert "--yes" in err
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, _, err = run("sessions", "rm", name, *where)
    assert code == 1
    assert "nothing removed" in err
    assert len(sessions("list")) == 1
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run("sessions", "rm", name, *where)[0] == 0
    assert sessions("list") == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("show", "x"), 1), (("rm", "--yes", "x"), 1), (("fork", "x", "y"), 1), (("fork", "x", "../y"), 2)],
)
def test_unknown_sessions_are_named(ask, run, tmp_path, arguments, code):
    ask("what jumps?")
    done, out, err = run("sessions", *arguments, "--directory", tmp_path / "sessions")
    assert (done, out) == (code, "")
    assert arguments[-1] in err or arguments[-2] in err


def test_no_directory_is_a_usage_error(run, tmp_path):
    code, _, err = run("sessions", "list", "--directory", tmp_path / "none")
    assert code == 2
    assert "--directory" in err


def test_bench_compares_both_caches(run_json, run, tiny_model):
    arguments = (
        "bench", "--model", tiny_model, "--dtype", "float32", "--context", 300, "--tokens", 4, "--rounds", 2,
        "--ram", "8MiB",
    )  # fmt: skip
    report = run_json(*arguments)
    assert report["same_tokens"]
    assert report["context_tokens"] == 300
    for cache in ("DynamicCache", "TieredCache"):
        speed = report[cache]["decode_tokens_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    _, out, _ = run(*arguments)
    assert "TieredCache" in out
    assert "ratio" in out


def test_doctor_reports_and_leaves_nothing_behind(run_json, run, tmp_path):
    report = run_json("doctor", "--directory", tmp_path)
    assert report["problem"] is None
    assert report["cpu"]["simd"]
    assert report["disk"]["free_bytes"] > 0
    speeds = report["bandwidth_bytes_per_second"]
    assert speeds["memory_all_cores"] > 0
    assert speeds["disk_buffered"]["sequential_read"] > 0
    assert list(tmp_path.iterdir()) == []
    code, out, _ = run("doctor", "--no-measure", "--directory", tmp_path / "not" / "yet")
    assert code == 0
    assert "io_uring" in out
