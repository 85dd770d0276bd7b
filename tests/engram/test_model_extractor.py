"""Facts by a language model: what of its answers is taken, and what is not."""

from __future__ import annotations

import json

import pytest

from stratakv.engram import AssistantMemory, Memory, ModelExtractor, Scope
from stratakv.engram.model_extractor import ExtractionError, parse, prompt_of
from stratakv.engram.turns import Turn

TURNS = [
    Turn(
        id="t0",
        role="user",
        text='I moved to "Oslo" \u2014 it\u2019s  cold.',
        time_ms=0,
        user="ana",
        name="Ana",
    ),
    Turn(id="t1", role="assistant", text="Nice {curly} city", time_ms=0, user="ana"),
]
KNOWN = [Memory(id=17, text="Ana lives in Rome", scope=Scope(user="ana"))]
FACT = {
    "kind": "identity", "text": "Ana lives in Oslo", "turn": 0, "quote": 'moved to "oslo" \u2014 it\'s cold',
    "salience": 0.9, "replaces": 0, "valid_from": "2024-05-06", "valid_to": None,
}  # fmt: skip


def _answer(*facts):
    return json.dumps({"facts": list(facts)})


def _without(key):
    return {name: value for name, value in FACT.items() if name != key}


def test_a_fact_of_the_schema_is_taken():
    extracted = parse(_answer(FACT, _without("replaces")), TURNS, KNOWN)
    first, second = extracted.facts
    assert (first.turn, first.kind, first.replaces, first.salience) == ("t0", "identity", 17, 0.9)
    assert first.valid_from.isoformat() == "2024-05-06T00:00:00+00:00"
    assert (second.replaces, first.valid_to, extracted.invalid) == (None, None, 0)
    assert parse(f"```json\n{_answer(FACT)}\n```\n", TURNS, KNOWN).facts == [first]
    assert parse(_answer(), TURNS, KNOWN).facts == []


@pytest.mark.parametrize(
    "wrong",
    [
        "text", None, _without("quote"), _without("kind"), FACT | {"more": 1}, FACT | {"kind": "rumour"},
        FACT | {"text": ""}, FACT | {"text": 7}, FACT | {"text": "x" * 501}, FACT | {"turn": 2},
        FACT | {"turn": -1}, FACT | {"turn": "0"}, FACT | {"turn": True}, FACT | {"quote": "moved to Rome"},
        FACT | {"quote": " "}, FACT | {"turn": 1}, FACT | {"salience": 1.5}, FACT | {"salience": "high"},
        FACT | {"salience": True}, FACT | {"replaces": 1}, FACT | {"valid_from": "soon"},
        FACT | {"valid_to": 3},
    ],
)  # fmt: skip
def test_a_fact_that_is_none_is_counted_and_the_others_are_taken(wrong):
    extracted = parse(_answer(wrong, FACT), TURNS, KNOWN)
    assert (len(extracted.facts), extracted.invalid) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    ["", "Sure! Here it is", "[]", '{"facts": {}}', '{"facts": [], "x": 1}', '{"facts": [', "null", None],
)
def test_an_answer_that_is_none_is_an_error(answer):
    with pytest.raises(ExtractionError):
        parse(answer, TURNS, KNOWN)


def test_the_prompt_has_turns_and_memories_by_number():
    prompt = prompt_of(TURNS, KNOWN)
    assert "[0] Ana lives in Rome" in prompt
    assert "[0] Thursday 1970-01-01 Ana: " in prompt
    assert "Nice {curly} city" in prompt
    assert "t0" not in prompt
    assert "17" not in prompt.split("Known already:")[1].split("Conversation:")[0]
    assert "(nothing)" in prompt_of(TURNS, [])


def test_it_is_asked_again_so_often():
    answers = ["no", _answer(FACT)]
    assert len(ModelExtractor(lambda _: answers.pop(0)).extract(TURNS, KNOWN).facts) == 1
    asked = []
    with pytest.raises(ExtractionError, match="not JSON"):
        ModelExtractor(lambda prompt: asked.append(prompt) or "no", attempts=3).extract(TURNS, KNOWN)
    assert len(asked) == 3
    with pytest.raises(ValueError, match="attempts=0"):
        ModelExtractor(str, attempts=0)


def test_in_a_memory_it_finds_facts_of_both_and_drops_what_was_not_said(tmp_path):
    def model(prompt):
        assert "Conversation:" in prompt
        good = {"kind": "decision", "text": "Ana's shop uses Postgres", "turn": 0, "quote": "postgres it is",
                "salience": 0.9}  # fmt: skip
        made_up = good | {"text": "Ana is an astronaut", "quote": "I fly to the moon"}
        return _answer(good, made_up, good | {"text": "Ana said hello", "salience": 0.1})

    options = {"embedder": None, "background": False}
    with AssistantMemory.open(tmp_path, extractor=ModelExtractor(model, name="m1"), **options) as memory:
        memory.observe([{"role": "user", "content": "Postgres it is, for the shop."}], user="ana")
        assert memory.drain()
        facts = [one for one in memory.list(user="ana") if one.metadata["kind"] != "turn"]
        assert [(one.text, one.metadata["extractor"]) for one in facts] == [
            ("Ana's shop uses Postgres", "m1")
        ]
        counts = memory.stats(user="ana")["observed"]
        assert (counts["found"], counts["invalid"], counts["unsalient"], counts["kept"]) == (3, 1, 1, 1)
