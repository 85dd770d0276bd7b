"""`stratakv memory`, and `chat` with a memory."""

from __future__ import annotations

import io
import json

import pytest

from stratakv.engram import AssistantMemory
from stratakv.engram.embedders import minilm

CARD = "4111 1111 1111 1111"


@pytest.fixture
def where(tmp_path):
    return ("--directory", tmp_path / "memory")


@pytest.fixture
def memory(run_json, where):
    """Runs an action for Ana, by words alone."""

    def call(action, *arguments, user="ana"):
        embedder = ("--embedder", "none") if action in ("remember", "recall", "import", "export") else ()
        of = ("--user", user) if action not in ("import", "erase", "audit") else ()
        return run_json("memory", action, *arguments, *of, *embedder, *where)

    return call


def test_what_is_remembered_is_recalled_with_its_history(memory):
    first = memory("remember", "We use Postgres", "--project", "shop", "--kind", "decision")["id"]
    memory("remember", "Ana has a cat", "--author", "Ana", "--source", "chat", "--valid-from", "2024-05-06")
    second = memory("remember", "We use SQLite", "--replaces", first)["id"]
    (found,) = memory("recall", "what do we use?", "-k", 5)
    assert (found["id"], found["text"], found["project"], found["user"]) == (
        second,
        "We use SQLite",
        "shop",
        "ana",
    )
    assert found["score"] > 0
    assert found["parts"]["bm25"] > 0
    assert found["age_seconds"] >= 0
    assert [one["id"] for one in memory("history", second)] == [first, second]
    assert memory("history", second)[0]["superseded_by"] == second
    assert [one["text"] for one in memory("list")] == ["Ana has a cat", "We use SQLite"]
    assert memory("list")[0]["valid_from"].startswith("2024-05-0")
    assert len(memory("list", "--past")) == 3
    assert memory("list", "--project", "shop", "--kind", "decision") == []
    assert memory("recall", "cat", "--tokens", 100)[0]["source"] == "chat"
    assert memory("recall", "cat", user="bob") == []
    assert memory("list", "--as-of", "2024-06-01") == [memory("list")[0]]


def test_memories_in_a_database_are_those_of_a_directory(run, run_json, tmp_path, database):
    where = ("--user", "ana", "--database", database, "--directory", tmp_path / "home")
    number = run_json("memory", "remember", "We use Postgres", "--embedder", "none", *where)["id"]
    (found,) = run_json("memory", "recall", "what do we use?", "--embedder", "none", *where)
    assert (found["id"], found["text"]) == (number, "We use Postgres")
    run_json("memory", "forget", number, *where)
    assert run_json("memory", "list", *where) == []
    assert (tmp_path / "home" / "audit").is_dir()
    assert "no memories of ana in the database" in run("memory", "list", *where)[2]


def test_an_address_that_nobody_answers_at_is_an_error_without_its_password(run, tmp_path):
    pytest.importorskip("psycopg_pool", reason="memories in PostgreSQL need stratakv[postgres]")
    address = f"postgresql://ana:hunter2@/none?host={tmp_path}"
    where = ("--database", address, "--directory", tmp_path / "home")
    code, out, err = run("memory", "list", "--user", "ana", *where)
    assert code == 1
    assert "can't connect to postgresql://ana@" in err
    assert "hunter2" not in err + out


def test_what_always_holds_is_in_the_profile(memory):
    number = memory("remember", "Always answer in German", "--kind", "instruction")["id"]
    memory("remember", "I prefer tea", "--kind", "preference")
    profile = memory("profile")
    assert "- Always answer in German" in profile["text"]
    assert (profile["ids"], profile["left_out"]) == ([number, number + 1], 0)
    assert memory("profile", "--tokens", 20)["left_out"] == 1
    assert memory("stats")["kinds"] == {"instruction": 1, "preference": 1}


def test_forgetting_and_erasing(memory, run, where, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    numbers = [memory("remember", f"xylophone {number}")["id"] for number in range(4)]
    memory("remember", "of bob's", user="bob")
    assert memory("forget", numbers[0], numbers[1]) == {"records": 2}
    for answer, code in (("n\n", 1), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert run("memory", "forget", "--everything", "--user", "ana", *where)[0] == code
    assert memory("list") == []
    memory("remember", "xylophone again")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = run("memory", "erase", "ana", *where)
    assert code == 2
    assert "--yes" in err
    assert memory("erase", "ana", "--yes") == {"records": 1}
    assert [one["text"] for one in memory("list", user="bob")] == ["of bob's"]
    files = [file for file in (tmp_path / "memory").rglob("*") if file.is_file()]
    assert not any(b"xylophone" in file.read_bytes() for file in files)


def test_export_and_import_move_a_user(memory, run_json, tmp_path):
    memory("remember", "We use Postgres")
    assert memory("export", tmp_path / "ana.jsonl")["memories"] == 1
    assert memory("import", tmp_path / "ana.jsonl")["memories"] == 1
    assert len(memory("list")) == 2
    other = ("--directory", tmp_path / "other")
    run_json("memory", "import", tmp_path / "ana.jsonl", "--embedder", "none", *other)
    assert len(run_json("memory", "list", "--user", "ana", *other)) == 1


def test_secrets_are_masked_refused_or_stored_as_asked(memory, run, where):
    memory("remember", f"card {CARD}")
    assert memory("list")[0]["text"] == "card [card number]"
    memory("remember", f"card {CARD}", "--policy", "card=store")
    assert memory("list")[1]["text"] == f"card {CARD}"
    of = ("--user", "ana", "--embedder", "none", *where)
    code, _, err = run("memory", "remember", f"card {CARD}", "--policy", "card=refuse", *of)
    assert code == 1
    assert "card number at characters 5 to 24" in err
    assert "--policy" in err
    assert run("memory", "remember", "x", "--policy", "card=drop", *of)[0] == 2


def test_the_audit_log_tells_what_was_done(memory):
    memory("remember", "the xylophone")
    memory("recall", "xylophone")
    memory("list", user="bob")
    memory("erase", "ana", "--yes")
    entries = memory("audit")
    assert [entry["action"] for entry in entries] == ["remember", "recall", "forget"]
    assert memory("audit", "--user", "bob") == []
    assert memory("audit", "--last", 1) == entries[-1:]
    assert "xylophone" not in json.dumps(entries)


def test_for_people(memory, run, where, monkeypatch):
    of = ("--user", "ana", *where)
    monkeypatch.setattr("sys.stdin", io.StringIO("We use\nPostgres\n"))
    code, out, _ = run("memory", "remember", "-", "--kind", "decision", "--embedder", "none", *of)
    assert (code, out) == (0, "1\n")
    _, out, _ = run("memory", "list", *of)
    header, row = out.splitlines()
    assert header.split() == ["ID", "KIND", "FROM", "TO", "TEXT"]
    assert row.split()[:2] == ["1", "decision"]
    assert row.endswith("We use Postgres")
    _, out, _ = run("memory", "recall", "postgres", "--embedder", "none", *of)
    assert out.splitlines()[0].split() == ["ID", "SCORE", "AGE", "TEXT"]
    _, out, _ = run("memory", "stats", *of)
    assert "1 decision" in out
    assert "turns that wait" in out
    _, out, err = run("memory", "profile", *of)
    assert out == ""
    assert "--kind instruction" in err
    _, _, err = run("memory", "list", "--user", "bob", *where)
    assert "no memories of bob" in err
    _, out, _ = run("memory", "audit", *where)
    assert out.splitlines()[0].split() == ["TIME", "ACTION", "USER", "WHAT"]
    code, out, _ = run("memory", "forget", 1, *of)
    assert out == "erased 1 record\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("history", "9", "--user", "ana"), 1, "memory list"),
        (("forget", "9", "--user", "ana"), 1, "9"),
        (("forget", "--user", "ana"), 2, "--everything"),
        (("forget", "1", "--everything", "--user", "ana"), 2, "--everything"),
        (("import", "/not/there.jsonl", "--embedder", "none"), 2, "/not/there.jsonl"),
        (("import", __file__, "--embedder", "none"), 2, "line 1: not JSON"),
        (("export", "/not/there.jsonl", "--user", "ana", "--embedder", "none"), 2, "no directory /not"),
        (("remember", "", "--user", "ana", "--embedder", "none"), 2, "text has 0 bytes"),
        (("list", "--user", "ana", "--database", "foo://x"), 2, "accepted is postgresql://"),
        (("remember", " ", "--user", "ana", "--embedder", "none", "--replaces", "7"), 1, "7"),
    ],
)
def test_mistakes_are_named(memory, run, where, arguments, code, said):
    memory("remember", "something")
    done, out, err = run("memory", *arguments, *where)
    assert (done, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list",), "--user"),
        (("recall", "x", "--user", "ana", "-k", "1", "--tokens", "5"), "not allowed with"),
        (("list", "--user", "ana", "--as-of", "noon"), "'noon' is no time"),
        (("remember", "x", "--user", "ana", "--kind", "rumour"), "rumour"),
        (("remember", "x", "--user", " "), "--user: it is empty"),
        ((), "ACTION"),
    ],
)
def test_wrong_usage(run, arguments, said):
    code, _, err = run("memory", *arguments)
    assert code == 2
    assert said in err


def test_reading_makes_no_directory_and_a_second_process_is_told(run, where, tmp_path):
    code, _, err = run("memory", "list", "--user", "ana", *where)
    assert code == 2
    assert "--directory" in err
    assert not (tmp_path / "memory").exists()
    with AssistantMemory.open(tmp_path / "memory", embedder=None):
        code, _, err = run("memory", "list", "--user", "ana", *where)
    assert code == 1
    assert "other process" in err


class TestChat:
    @pytest.fixture
    def chat(self, tiny_model, tmp_path, run, monkeypatch):
        monkeypatch.setattr(minilm, "is_installed", lambda: False)

        def call(lines, *more, session="chat"):
            monkeypatch.setattr("sys.stdin", io.StringIO(lines))
            code, out, err = run(
                "chat", "--model", tiny_model, "--directory", tmp_path / "sessions", "--dtype", "float32",
                "--max-new-tokens", 3, "--json", "--session", session, *more,
            )  # fmt: skip
            return code, [json.loads(line) for line in out.splitlines()], err

        return call

    def test_it_remembers_in_another_session(self, chat, memory, tmp_path):
        remembering = ("--memory", tmp_path / "memory", "--user", "ana")
        code, turns, err = chat("I live in Oslo.\nAlways be brief.\n", *remembering, session="one")
        assert code == 0, err
        assert turns[0]["recalled"] == []
        assert [one["text"] for one in memory("list", "--session", "one")][::2] == [
            "I live in Oslo.",
            "Always be brief.",
        ]
        facts = {one["text"]: one["id"] for one in memory("list") if one["metadata"]["kind"] != "turn"}
        assert set(facts) == {"I live in Oslo.", "Always be brief."}
        code, turns, err = chat("hello\nhello again\n", *remembering, session="two")
        assert code == 0, err
        assert set(turns[0]["recalled"]) >= set(facts.values())
        assert not set(turns[1]["recalled"]) & set(facts.values())
        plain = chat("hello\n", session="three")[1]
        assert turns[0]["tokens"]["prefilled"] > plain[0]["tokens"]["prefilled"] + 50
        texts = [one["text"] for one in memory("list", "--session", "two")]
        assert texts[0] == "hello"
        assert not any("stratakv-memory" in text for text in texts)

    def test_a_long_memory_is_put_whole_and_computed_once(self, chat, memory, tmp_path):
        note = "The harbour plan. " + " ".join(
            f"Pier {number} gets a crane of {number} tons." for number in range(40)
        )
        id = memory("remember", note)["id"]
        remembering = ("--memory", tmp_path / "memory", "--user", "ana")
        asked = "what does the harbour plan say of piers?\n"
        code, first, err = chat(asked, *remembering, "--whole", 4000, session="one")
        assert code == 0, err
        assert id in first[0]["recalled"]
        code, second, err = chat(asked + asked, *remembering, "--whole", 4000, session="two")
        assert code == 0, err
        tokens = first[0]["tokens"]
        assert tokens["spliced"] > 100
        assert second[0]["tokens"]["spliced"] >= tokens["spliced"]
        assert tokens["prefilled"] + tokens["spliced"] + tokens["answer"] == tokens["total"]
        # In the same session it is not put again.
        assert second[1]["tokens"]["spliced"] == 0
        assert list((tmp_path / "memory" / "pages").iterdir())
        # Shortened where that is asked for; and where no pages are kept it is computed.
        shortened = chat(asked, *remembering, "--whole", 0, session="three")[1][0]["tokens"]
        assert shortened["spliced"] == 0
        assert shortened["total"] < tokens["total"]
        computed = chat(asked, *remembering, "--whole", 4000, "--budget", "all", session="four")[1][0][
            "tokens"
        ]
        assert computed["spliced"] == 0
        assert computed["prefilled"] > tokens["spliced"]
        memory("forget", id)
        assert not list((tmp_path / "memory" / "pages").iterdir())

    def test_what_is_refused_is_said_and_the_conversation_goes_on(self, chat, memory, tmp_path):
        key = "-----BEGIN PRIVATE KEY-----"
        code, turns, err = chat(f"{key}\nhello\n", "--memory", tmp_path / "memory", "--user", "ana")
        assert code == 0
        assert len(turns) == 2
        assert "not remembered" in err
        assert memory("list")[0]["text"] == "hello"

    def test_a_memory_needs_a_user(self, chat, tmp_path):
        code, turns, err = chat("hello\n", "--memory", tmp_path / "memory")
        assert code == 2
        assert "--user" in turns[0]["error"]
        assert "--user" in err


def test_serving_without_the_sdk_says_what_to_install(run, where, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mcp" else found(name))
    code, out, err = run("memory", "serve", "--user", "ana", "--embedder", "none", *where)
    assert (code, out) == (1, "")
    assert "pip install 'stratakv[mcp]'" in err


class TestReembed:
    @pytest.fixture
    def model(self, tiny_model):
        return f"hidden-states:{tiny_model}"

    def test_by_a_language_model(self, memory, run, run_json, where, model):
        for text in ("Miez is a cat", "We use Postgres", "Ana lives in Rome"):
            memory("remember", text)
        # The first embedder that comes is the directory's.
        run_json("memory", "recall", "cat", "--user", "ana", "--embedder", model, *where)
        made = run_json("memory", "reembed", "--embedder", model, *where)
        assert made["memories"] == 3
        assert made["embedder"].startswith("hidden states ")
        assert run_json("memory", "reembed", "--embedder", model, *where)["memories"] == 0
        (found,) = run_json(
            "memory", "recall", "Miez is a cat", "-k", 1, "--user", "ana", "--embedder", model, *where
        )
        assert found["text"] == "Miez is a cat"
        assert found["parts"]["cosine"] > 0.99

    @pytest.mark.filterwarnings("ignore:.*opened without an embedder")
    def test_progress_and_ctrl_c(self, memory, run, where, model, monkeypatch):
        from stratakv.engram import HiddenStateEmbedder

        for text in ("Miez is a cat", "We use Postgres"):
            memory("remember", text)
        _, said, shown = run("memory", "reembed", "--embedder", model, "--progress", *where)
        assert "embed 2/2 memories" in shown
        assert said.startswith("embedded 2 memories by hidden states ")
        memory("remember", "Ana lives in Rome")

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(HiddenStateEmbedder, "embed", stop)
        code, _, said = run("memory", "reembed", "--embedder", model, *where)
        assert code == 130
        assert "0 of 1 memories are embedded anew; the same command goes on from there" in said

    def test_mistakes(self, memory, run, where, tmp_path, model):
        memory("remember", "Miez is a cat")
        run("memory", "reembed", "--embedder", model, *where)
        for arguments, code, said in (
            (("--embedder", "none", *where), 2, "there is no embedder to make vectors"),
            (("--embedder", "fast", *where), 2, "'fast': accepted are auto, none, minilm, sentence-tr"),
            (("--embedder", f"hidden-states:{tmp_path / 'no'}", *where), 2, "--embedder hidden-states:"),
            (("--embedder", model, "--directory", tmp_path / "no"), 2, "no such directory"),
        ):
            exited, _, told = run("memory", "reembed", *arguments)
            assert exited == code, told
            assert said in told
        if minilm.is_installed():
            exited, _, told = run("memory", "recall", "cat", "--user", "ana", *where)
            assert exited == 1
            assert "`stratakv memory reembed` makes the vectors anew" in told.replace("\n", " ")
