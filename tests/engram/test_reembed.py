"""Vectors made anew: with another embedder, where some are missing, and where it is interrupted."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from stratakv.engram import Engram, FunctionEmbedder
from stratakv.errors import DatabaseError, LockedError, SettingsMismatchError, StrataError

reembed = sys.modules["stratakv.engram.reembed"]

LETTERS = 7


def letters_of(texts):
    """How often a text has some letters: directions of another space."""
    return np.asarray(
        [[1 + text.lower().count(letter) for letter in "abcdest"] for text in texts], np.float32
    )


class Counting:
    """The other embedder; it may fail before a call, and counts its texts."""

    identity = "letters"
    dimension = LETTERS

    def __init__(self, fails_at=None, error=KeyboardInterrupt):
        self.fails_at, self.error, self.calls, self.texts = fails_at, error, 0, []

    def embed(self, texts):
        if self.calls == self.fails_at:
            raise self.error
        self.calls += 1
        self.texts += texts
        return letters_of(texts)


def fill(memory):
    """Two users, with sessions, versions and an end."""
    said = [f"turn {number} about the database and a cat" for number in range(9)]
    memory.remember_many(said, user="ana", session="one", authors=["Ana", "Bob", None] * 3)
    number = memory.remember("We chose Postgres over MySQL", user="ana", project="shop")
    memory.update(number, "We moved to SQLite", user="ana")
    memory.end(3, user="ana")
    memory.remember_many(["Bob has a pet", "Ship it on Friday"], user="bob")


def told(memory):
    return [one for user in memory.users() for one in memory.list(user=user, past=True)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(reembed, "CHUNK", 3)


def test_all_but_the_vectors_stays(place, make_place, embedder):
    with Engram.open(place, embedder=embedder) as memory:
        fill(memory)
        before = told(memory)
    seen = []
    assert Engram.reembed(place, embedder=Counting(), progress=lambda *now: seen.append(now)) == len(before)
    assert seen[0] == (0, len(before))
    assert seen[-1] == (len(before), len(before))
    with pytest.raises(SettingsMismatchError, match=r'embedded by "letters" \(7 elements\).*Engram\.reembed'):
        Engram.open(place, embedder=embedder)
    other = make_place()
    with Engram.open(place, embedder=Counting()) as memory, Engram.open(other, embedder=Counting()) as fresh:
        assert told(memory) == before
        assert memory.stats(user="ana")["vectors"] == 11
        fill(fresh)
        for query in ("the cat", "which database?", "Friday"):
            for user in ("ana", "bob"):
                found, expected = (
                    {one.memory.text: one.score for one in place.recall(query, user=user, k=12)}
                    for place in (memory, fresh)
                )
                assert found == pytest.approx(expected, abs=2e-3)
        assert memory.stats(user="ana")["log_bytes"] == fresh.stats(user="ana")["log_bytes"]
        memory.remember("and it goes on", user="ana", session="one")
    # And there is nothing left to do.
    assert Engram.reembed(place, embedder=Counting()) == 0


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_who_interrupts_goes_on_where_it_was(place, embedder, fails_at):
    with Engram.open(place, embedder=embedder) as memory:
        fill(memory)
    first = Counting(fails_at)
    with pytest.raises(KeyboardInterrupt):
        Engram.reembed(place, embedder=first)
    assert len(first.texts) <= 3 * fails_at
    # The first embedder's still, and in use.
    with Engram.open(place, embedder=embedder) as memory:
        assert memory.recall("a pet", user="bob", k=1)[0].parts["cosine"] > 0.9
        memory.remember("A new one", user="bob")
        memory.remember("Carl is new", user="carl")
        memory.forget(2, user="ana")
        before = told(memory)
    second = Counting()
    Engram.reembed(place, embedder=second)
    with Engram.open(place, embedder=Counting()) as memory:
        assert told(memory) == before
        assert sum(memory.stats(user=user)["vectors"] for user in memory.users()) == len(before)
    # Of one user, forgetting costs what was done for it; nothing else is embedded twice.
    of_others = [text for text in first.texts if not text.startswith(("turn", "We"))]
    assert not set(of_others) & set(second.texts)


def test_vectors_that_are_missing_are_made(place, embedder):
    with Engram.open(place, embedder=embedder) as memory:
        memory.remember("Miez is a cat", user="ana")
    with pytest.warns(UserWarning, match="without an embedder"), Engram.open(place, embedder=None) as memory:
        memory.remember_many(["We use postgres", "They use mysql"], user="ana")
    assert Engram.reembed(place, embedder=embedder) == 2
    with Engram.open(place, embedder=embedder) as memory:
        assert memory.stats(user="ana")["vectors"] == 3
        assert memory.recall("pet", user="ana", k=1)[0].memory.text == "Miez is a cat"
        # By a word that it does not have.
        assert "database" not in memory.recall("database", user="ana", k=1)[0].memory.text
    assert Engram.reembed(place, embedder=embedder) == 0


def test_memories_of_words_alone_get_vectors(place):
    with Engram.open(place, embedder=None) as memory:
        fill(memory)
    assert Engram.reembed(place, embedder=Counting()) == 13
    with Engram.open(place, embedder=Counting()) as memory:
        assert memory.stats(user="ana")["vectors"] == 11


def test_who_changes_back_and_who_changes_again(place, embedder):
    with Engram.open(place, embedder=embedder) as memory:
        fill(memory)
    with pytest.raises(KeyboardInterrupt):
        Engram.reembed(place, embedder=Counting(2))
    assert Engram.reembed(place, embedder=embedder) == 0
    with pytest.raises(KeyboardInterrupt):
        Engram.reembed(place, embedder=Counting(2))
    third = FunctionEmbedder(
        function=lambda texts: 2 * letters_of(texts), identity="third", dimension=LETTERS
    )
    assert Engram.reembed(place, embedder=third) == 13
    with Engram.open(place, embedder=third) as memory:
        assert memory.stats(user="ana")["vectors"] == 11


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_refused(place, embedder, value):
    with Engram.open(place, embedder=embedder) as memory:
        fill(memory)
    bad = FunctionEmbedder(
        function=lambda texts: np.full((len(texts), LETTERS), value), identity="bad", dimension=LETTERS
    )
    with pytest.raises(ValueError, match="needs a direction"):
        Engram.reembed(place, embedder=bad)
    with Engram.open(place, embedder=embedder) as memory:
        assert memory.recall("a pet", user="bob", k=1)[0].memory.text == "Bob has a pet"


def test_what_is_asked_for_has_to_be_there(tmp_path, embedder):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        Engram.reembed(tmp_path / "none", embedder=embedder)
    with pytest.raises(ValueError, match="is none: pass what makes the vectors"):
        Engram.reembed(tmp_path, embedder="none")
    with pytest.raises(ValueError, match="identity of 1 to"):
        Engram.reembed(tmp_path, embedder=FunctionEmbedder(function=letters_of, identity="", dimension=3))
    with Engram.open(tmp_path, embedder=embedder), pytest.raises(LockedError):
        Engram.reembed(tmp_path, embedder=Counting())


class TestDatabase:
    """Others use it meanwhile."""

    def test_what_comes_meanwhile_gets_a_vector(self, database, embedder):
        with Engram.open(database, embedder=embedder) as memory:
            fill(memory)

            class Busy(Counting):
                def embed(self, texts):
                    if self.calls in (1, 4):  # behind what was asked for, and before the last
                        memory.remember(f"new {self.calls}", user="ana", session="one")
                        memory.forget(self.calls + 1, user="ana")
                    return super().embed(texts)

            Engram.reembed(database, embedder=Busy())
            with pytest.raises(SettingsMismatchError, match='meanwhile embedded anew by "letters"'):
                memory.recall("cat", user="ana")
            with pytest.raises(SettingsMismatchError, match="open them again"):
                memory.remember("cat", user="ana")
            before = told(memory)
            assert sum("new" in one.text for one in before) == 2
        with Engram.open(database, embedder=Counting()) as memory:
            assert told(memory) == before
            assert all(
                memory.stats(user=user)["vectors"] == memory.stats(user=user)["memories"]
                for user in ("ana", "bob")
            )

    def test_one_at_a_time(self, database, embedder):
        with Engram.open(database, embedder=embedder) as memory:
            fill(memory)

        class Twice(Counting):
            def embed(self, texts):
                with pytest.raises(DatabaseError, match="another process is making the vectors"):
                    Engram.reembed(database, embedder=Counting())
                return super().embed(texts)

        Engram.reembed(database, embedder=Twice())

    def test_an_address_that_nobody_answers_at(self, embedder):
        with pytest.raises(StrataError, match="can't connect"):
            Engram.reembed("postgresql://tester@127.0.0.1:1/none", embedder=embedder)
