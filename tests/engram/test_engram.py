"""Remembering, recalling, changing and forgetting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import stratakv
from stratakv.engram import Engram, FunctionEmbedder, Scope
from stratakv.errors import LockedError, MemoryNotFoundError, SettingsMismatchError


def _texts(recalled):
    return [one.text for one in recalled]


def test_the_example_of_the_design(place):
    memory = stratakv.Engram.open(place, embedder=None)
    memory.remember("We chose Postgres over MySQL because of JSONB", user="ana", project="shop")
    found = memory.recall("did we choose postgres?", user="ana", k=5)
    assert _texts(found) == ["We chose Postgres over MySQL because of JSONB"]
    assert found[0].memory.scope == Scope(user="ana", project="shop")
    assert found[0].parts["bm25"] > 0
    assert 0 <= found[0].age_seconds < 600
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.recall("x", user="ana")


def test_meaning_finds_what_words_do_not(memory):
    memory.remember_many(["We chose Postgres", "Miez is our cat", "We ship on Tuesdays"], user="ana")
    found = memory.recall("which database", user="ana", k=1)
    assert _texts(found) == ["We chose Postgres"]
    assert found[0].parts["cosine"] > 0.9
    assert found[0].parts["bm25"] == 0
    assert len(memory.recall("nothing in common", user="ana", k=3)) == 3


def test_it_is_there_after_reopening(place, embedder):
    with Engram.open(place, embedder=embedder) as memory:
        number = memory.remember(
            "a fact", user="ana", agent="a", session="s", metadata={"ü": [1, None]}, source="turn 7"
        )
    with Engram.open(place, embedder=embedder) as memory:
        (found,) = memory.list(user="ana")
        assert (found.id, found.text, found.source) == (number, "a fact", "turn 7")
        assert (found.scope.agent, found.scope.session, found.metadata) == ("a", "s", {"ü": [1, None]})
        assert found.has_vector
        assert abs(datetime.now(UTC) - found.recorded) < timedelta(minutes=10)


def test_users_and_projects_are_apart(memory):
    memory.remember("the secret is blue", user="ana", project="x")
    memory.remember("the secret is red", user="ana", project="y")
    number = memory.remember("the secret is green", user="bob")
    assert _texts(memory.recall("secret", user="bob")) == ["the secret is green"]
    assert _texts(memory.recall("secret", user="ana", project="x")) == ["the secret is blue"]
    assert len(memory.recall("secret", user="ana")) == 2
    with pytest.raises(MemoryNotFoundError):
        memory.history(number + 5, user="ana")
    with pytest.raises(MemoryNotFoundError):
        memory.forget(2, user="ana", project="x")
    assert memory.users() == ["ana", "bob"]
    assert memory.stats(user="ana", project="x")["memories"] == 1


def test_a_fact_that_changed(memory):
    then = datetime(2024, 5, 1, tzinfo=UTC)
    first = memory.remember("Ana lives in Oslo", user="ana", valid_from=then)
    second = memory.update(first, "Ana lives in Bergen", user="ana", valid_from=then + timedelta(days=30))
    assert _texts(memory.recall("Where does Ana live?", user="ana")) == ["Ana lives in Bergen"]
    past = memory.recall("Where does Ana live?", user="ana", as_of=then + timedelta(days=3))
    assert _texts(past) == ["Ana lives in Oslo"]
    old, new = memory.history(second, user="ana")
    assert (old.superseded_by, new.supersedes) == (second, first)
    assert old.valid_to == new.valid_from == then + timedelta(days=30)
    assert new.valid_to is None
    memory.end(second, user="ana", valid_to=then + timedelta(days=60))
    assert list(memory.list(user="ana")) == []
    assert len(list(memory.list(user="ana", past=True))) == 2


def test_what_is_forgotten_is_in_no_file(tmp_path, embedder):
    with Engram.open(tmp_path, embedder=embedder) as memory:
        numbers = memory.remember_many(["keep", "the xylophone combination"], user="ana")
        assert memory.forget(numbers[1], user="ana") == 1
        assert not any(b"xylophone" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert [one.text for one in memory.list(user="ana")] == ["keep"]
        assert memory.forget(user="ana", everything=True) == 1
        assert memory.users() == []
        for wrong in ({}, {"ids": [1], "everything": True}):
            with pytest.raises(ValueError, match="everything=True"):
                memory.forget(user="ana", **wrong)


def test_who_said_it_and_when(memory):
    texts = ["I love hiking", "Hiking is not for me", "Hiking again?", "Hiking with the dog"]
    memory.remember_many(texts, user="ana", authors=["Ana", "Bob", "Bob", None])
    memory.remember("hiking, long ago", user="ana", valid_from=datetime(2021, 5, 7, tzinfo=UTC))
    found = memory.recall("What does Bob think of hiking?", user="ana")
    assert found[0].text == "Hiking is not for me"
    assert found[0].parts["author"] == 1
    assert next(one for one in found if one.text == "Hiking again?").parts["asks"] == 1
    found = memory.recall("Where did we go hiking on May 7th, 2021?", user="ana")
    assert found[0].text == "hiking, long ago"
    assert found[0].parts["date"] == 1
    only = memory.recall("hiking Bob", user="ana", weights={"author": 0, "asks": 0, "cosine_window": 0})
    assert only[0].parts["author"] in (0, 1)


def test_limits(memory):
    memory.remember_many([f"fact {number}" for number in range(5)], user="ana")
    assert memory.retain(user="ana", max_count=3) == 2
    assert memory.retain(user="ana", max_age=timedelta(days=1), max_bytes="1MiB") == 0
    assert [one.text for one in memory.list(user="ana")] == ["fact 2", "fact 3", "fact 4"]
    assert memory.retain(user="ana", max_bytes=0) == 3
    with pytest.raises(ValueError, match="a limit of age, count or bytes"):
        memory.retain(user="ana")
    with pytest.raises(ValueError, match="max_age"):
        memory.retain(user="ana", max_age=timedelta(days=-1))


def test_optimize_is_nothing_for_few(memory):
    memory.remember_many(["one", "two"], user="ana")
    steps = []
    memory.optimize(user="ana", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(2, 2)]


def test_a_budget_of_tokens(memory):
    memory.remember_many(["cat " + "long " * 50, "cat short", "cat tiny"], user="ana")
    found = memory.recall("cat", user="ana", tokens=6)
    assert sorted(_texts(found)) == ["cat short", "cat tiny"]
    assert _texts(memory.recall("cat", user="ana", tokens=2, count=lambda _: 1))
    with pytest.raises(ValueError, match="not both"):
        memory.recall("cat", user="ana", tokens=2, k=2)


def test_many_are_listed_in_order(memory):
    memory.remember_many([f"fact {number}" for number in range(1300)], user="ana")
    assert [one.text for one in memory.list(user="ana")] == [f"fact {number}" for number in range(1300)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.remember("", user="ana"), "text has 0 bytes"),
        (lambda m: m.remember(3, user="ana"), "text=3"),
        (lambda m: m.remember("x", user=""), "user is empty"),
        (lambda m: m.remember("x", user=None), "user=None: expected text"),
        (lambda m: m.remember("x", user="a\0b"), "no NUL"),
        (lambda m: m.recall("x", user="a\0b"), "no NUL"),
        (lambda m: m.forget(user="a\0b", everything=True), "no NUL"),
        (lambda m: m.remember("x", user="ana", metadata={"a": object()}), "what JSON holds"),
        (lambda m: m.remember("x", user="ana", valid_from=datetime(2024, 1, 1)), "no time zone"),
        (lambda m: m.remember("x", user="ana", valid_to=datetime(1999, 1, 1, tzinfo=UTC)), "is not after"),
        (lambda m: m.remember_many("x", user="ana"), "one text"),
        (lambda m: m.remember_many(["x"], user="ana", metadata=[]), "0 entries for 1 texts"),
        (
            lambda m: m.remember_many(["x"], user="ana", authors=["a", "b"]),
            "authors has 2 entries for 1 texts",
        ),
        (lambda m: m.remember("x", user="ana", author=""), "author has 0 bytes"),
        (lambda m: m.recall("x", user="ana", weights={"fame": 1}), 'weight "fame": accepted are bm25,'),
        (lambda m: m.recall("x", user="ana", weights={"date": float("nan")}), "weights are finite"),
        (lambda m: m.recall("x", user="ana", k=0), "k=0: accepted are 1 to 10000"),
    ],
)
def test_what_is_not_accepted(memory, call, message):
    with pytest.raises(ValueError, match=message):
        call(memory)
    assert list(memory.list(user="ana", past=True)) == []


def test_one_embedder_for_all(place, embedder):
    with Engram.open(place, embedder=embedder) as memory:
        memory.remember("We chose Postgres", user="ana")
    other = FunctionEmbedder(function=embedder.function, identity="other", dimension=3)
    with pytest.raises(SettingsMismatchError, match=r'embedded by "meanings" \(3 elements\), not by "other"'):
        Engram.open(place, embedder=other)
    with pytest.warns(UserWarning, match="by their words alone"):
        plain = Engram.open(place, embedder=None)
    assert _texts(plain.recall("postgres", user="ana")) == ["We chose Postgres"]
    assert plain.stats(user="ana")["embedder"] == "meanings"
    plain.close()
    wrong = FunctionEmbedder(function=lambda texts: np.zeros((1, 2)), identity="meanings", dimension=3)
    with (
        Engram.open(place, embedder=wrong) as memory,
        pytest.raises(ValueError, match=r"gave shape \(1, 2\), expected \(1, 3\)"),
    ):
        memory.recall("x", user="ana")
    with pytest.raises(ValueError, match="embedder='fast': accepted are 'auto', 'none'"):
        Engram.open(place, embedder="fast")


def test_the_second_process_is_told_who_has_it(tmp_path, embedder):
    memory = Engram.open(tmp_path, embedder=embedder)
    code = (
        "import sys\nfrom stratakv.engram import Engram\nfrom stratakv.errors import LockedError\n"
        "try: Engram.open(sys.argv[1], embedder=None)\n"
        "except LockedError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is in use by process" in done.stdout
    with pytest.raises(LockedError):
        Engram.open(tmp_path, embedder=None)
    memory.close()


def test_async_twins(memory):
    async def run():
        number = await memory.aremember("Miez is a cat", user="ana")
        await memory.aremember_many(["We deploy on Tuesdays"], user="ana")
        newer = await memory.aupdate(number, "Miez was a cat", user="ana")
        found = await memory.arecall("pet", user="ana", k=1)
        assert _texts(found) == ["Miez was a cat"]
        assert len(await memory.ahistory(newer, user="ana")) == 2
        assert await memory.aforget(newer, user="ana") == 2
        assert [one.text for one in await memory.alist(user="ana")] == ["We deploy on Tuesdays"]

    asyncio.run(run())
