"""Facts that the rules take out of what is said, what they leave, and which of them say the same."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from stratakv.engram import Fact, RuleExtractor
from stratakv.engram.facts import Wording
from stratakv.engram.rules import facts_of, sentences
from stratakv.engram.turns import Turn

MONDAY = int(datetime(2024, 5, 6, 12, tzinfo=UTC).timestamp() * 1000)


def _turn(text, role="user"):
    return Turn(id="t", role=role, text=text, time_ms=MONDAY, user="ana")


def _facts(text):
    return [fact for fact in facts_of(_turn(text)) if fact.salience >= 0.5]


@pytest.mark.parametrize(
    ("text", "kind", "slot"),
    [
        ("I prefer tabs over spaces.", "preference", None),
        ("I really love hiking in the Alps", "preference", None),
        ("I don't eat meat.", "preference", None),
        ("My favourite colour is green", "preference", "favourite colour"),
        ("One of my favourite dishes is lasagna", "preference", None),
        ("I'm vegan, by the way.", "preference", "diet"),
        ("Always answer in German, please.", "instruction", None),
        ("Please never use emojis.", "instruction", None),
        ("In future, please write tests first", "instruction", None),
        ("Never deploy on Fridays", "instruction", None),
        ("From now on, keep answers short.", "instruction", None),
        ("Answer in French.", "instruction", "language of answers"),
        ("I want you to always show the diff first", "instruction", None),
        ("My name is Ana Berg.", "identity", "name"),
        ("Call me Ana", "identity", "name"),
        ("I live in Oslo", "identity", "home"),
        ("We just moved to Bergen", "identity", "home"),
        ("I work at Equinor", "identity", "employer"),
        ("I'm a senior backend engineer", "identity", "occupation"),
        ("I am allergic to peanuts", "identity", None),
        ("My birthday is on 5 May", "identity", "birthday"),
        ("We decided to use Postgres over MySQL because of JSONB", "decision", None),
        ("The team has finally settled on Rust", "decision", None),
        ("Decision: no ORM", "decision", None),
        ("We moved from Heroku to our own servers", "decision", None),
        ("My wife Ana is a nurse", "person", None),
        ("My best friend's name is Jo", "person", None),
        ("I have two cats, Miez and Mau", "person", None),
        ("Our deadline is next Friday", "project", None),
        ("We're migrating the frontend to Svelte", "project", None),
        ("The database has 3 replicas", "project", None),
        ("I'm flying to Rome tomorrow", "event", None),
        ("Remember that the gate code changes monthly", "note", None),
        ("Note: the office closes at six", "note", None),
    ],
)
def test_what_is_worth_remembering(text, kind, slot):
    (fact,) = _facts(text)
    assert (fact.kind, fact.slot, fact.turn) == (kind, slot, "t")
    assert fact.text.startswith(text.rstrip(".")[:20])


@pytest.mark.parametrize(
    "text",
    [
        "Thanks, that works!",
        "What do I prefer?",
        "do you know where I live",
        "Can you always answer in German?",
        "If I lived in Oslo I would love it",
        "Suppose we decided to use MySQL",
        "I like it",
        "I like how this reads",
        "I'd like a shorter answer",
        "I'm a bit tired",
        "Maybe we will use Redis",
        "I think we might go with Redis for our project",
        "The database is slow",
        "Never mind, it works",
        "In the future we will see",
        "Fix the bug in the parser and run the tests",
        "```\nI prefer tabs over spaces\n```",
        "> I prefer tabs over spaces",
        "ok",
        "Always a blessing.",
        "Never been better",
        "Remember, it takes time to form a bond",
        "I love the thought!",
        "I prefer " + "x" * 400,
    ],
)
def test_what_is_not(text):
    assert _facts(text) == []


def test_sentences_are_apart_and_dates_resolved():
    text = "Hi! I live in Oslo; my sister Eva lives in Rome.\nWe chose Rust last week. Is that fine?"
    facts = _facts(text)
    assert [fact.text for fact in facts] == [
        "I live in Oslo;",
        "my sister Eva lives in Rome.",
        "We chose Rust last week (week of 2024-04-29).",
    ]
    assert facts[2].valid_from == datetime(2024, 4, 29, tzinfo=UTC)
    assert facts[0].valid_from is None
    assert list(sentences("- I like tea, really.\n* What?\n\n`x`")) == ["I like tea, really."]


def test_the_assistant_is_not_asked():
    turns = [_turn("You live in Oslo. I prefer tabs.", "assistant"), _turn("I prefer tabs")]
    assert [fact.kind for fact in RuleExtractor().extract(turns, ()).facts] == ["preference"]


@pytest.mark.parametrize(
    ("one", "other", "relation"),
    [
        ("I prefer tabs over spaces.", "i PREFER tabs over spaces", "same"),
        ("We really chose Postgres", "we've chosen Postgres", None),
        ("I like cats", "I like the cat", "same"),
        ("We ship today (2024-05-06)", "We ship today (2024-06-01)", "same"),
        ("We chose Postgres", "We chose Postgres over MySQL because of JSONB", "within"),
        ("We chose Postgres over MySQL", "We chose MySQL over Postgres", None),
        ("I like tea", "I don't like tea", None),
        ("I live in Oslo", "I live in Bergen", None),
        ("We meet at 10", "We meet at 11", None),
        ("Tea", "I like tea and cake", None),
    ],
)
def test_what_says_the_same(one, other, relation):
    one, other = Wording.of(one), Wording.of(other)
    assert one.same(other) == other.same(one) == (relation == "same")
    assert one.within(other) == (relation in ("same", "within"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"kind": "rumour"}, "accepted are instruction"), ({"text": " "}, "empty"), ({"salience": 2}, "0 to 1")],
)
def test_facts_are_checked(wrong, said):
    with pytest.raises(ValueError, match=said):
        Fact(**{"kind": "note", "text": "x", "turn": "t", "salience": 0.5} | wrong)
