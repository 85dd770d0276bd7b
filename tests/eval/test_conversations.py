"""Files of conversations as they are published, and what a ranking is worth."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from stratakv.eval.conversations import FORMATS, Asked, read_conversations, shares

LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ana",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ana", "dia_id": "D1:1", "text": "Look at this!", "blip_caption": "a photo of a cat"},
            {"speaker": "Bob", "dia_id": "D1:2", "text": "Lovely"},
        ],
        "session_2_date_time": "soon",
        "session_2": [{"speaker": "Ana", "dia_id": "D2:1", "text": "He is called Miez"}],
    },
    "qa": [
        {"question": "Whose cat?", "answer": "Ana's", "evidence": ["D1:1; D2:1"], "category": 1},
        {"question": "And the dog?", "evidence": ["D9:1"], "category": 5},
    ],
}
LONGMEMEVAL = {
    "question_id": "q7",
    "question_type": "single-session-user",
    "question": "What is my cat called?",
    "question_date": "2023/05/30 (Tue) 23:40",
    "haystack_session_ids": ["s1", "s2"],
    "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:00"],
    "haystack_sessions": [
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}],
        [{"role": "user", "content": "Miez, my cat, is ill", "has_answer": True}],
    ],
    "answer_session_ids": ["s2"],
}
BEAM = {
    "conversation_id": "4",
    "chat": [
        [
            {"id": 0, "role": "user", "content": "I am to write a parser", "time_anchor": "March-15-2024"},
            {"id": 1, "role": "assistant", "content": "In which language?"},
        ],
        [{"id": 2, "role": "user", "content": "In Rust", "time_anchor": None}],
    ],
    "probing_questions": str(
        {
            "abstention": [{"question": "Who pays for it?"}],
            "event_ordering": [{"question": "What first?", "source_chat_ids": {"a": [0], "b": [[2]]}}],
        }
    ),
}


def _read(tmp_path, form, value):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(value))
    return read_conversations(path, form)


def test_locomo(tmp_path):
    (one,) = _read(tmp_path, "locomo", [LOCOMO])
    assert [(turn.id, turn.session, turn.author) for turn in one.turns] == [
        ("D1:1", "session_1", "Ana"),
        ("D1:2", "session_1", "Bob"),
        ("D2:1", "session_2", "Ana"),
    ]
    assert one.turns[0].text == "Look at this! a photo of a cat"
    assert one.turns[0].time == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
    assert one.turns[2].time is None
    assert [(asked.kind, asked.evidence) for asked in one.questions] == [
        ("multi-hop", {"D1:1", "D2:1"}),
        ("adversarial", set()),
    ]


def test_longmemeval(tmp_path):
    first, second = _read(tmp_path, "longmemeval", [LONGMEMEVAL, LONGMEMEVAL | {"question_id": "q8"}])
    assert (first.name, second.name) == ("q7", "q8")
    assert [turn.session for turn in first.turns] == ["0:s1", "0:s1", "1:s2"]
    assert first.turns[2].time == datetime(2023, 5, 21, 10, tzinfo=UTC)
    (asked,) = first.questions
    assert (asked.kind, asked.evidence) == ("single-session-user", {first.turns[2].id})


@pytest.mark.parametrize("probing", [BEAM["probing_questions"], None])
def test_beam(tmp_path, probing):
    entry = BEAM | {"probing_questions": probing or {"abstention": [], "event_ordering": []}}
    (one,) = _read(tmp_path, "beam", entry)
    assert (one.name, [turn.session for turn in one.turns]) == ("4", ["1", "1", "2"])
    assert one.turns[1].time == datetime(2024, 3, 15, tzinfo=UTC), "as the turn before it"
    assert one.turns[2].time is None
    kinds = [(asked.kind, asked.evidence) for asked in one.questions]
    assert kinds == ([("abstention", set()), ("event_ordering", {"0", "2"})] if probing else [])


def test_what_is_not_accepted(tmp_path):
    for form in FORMATS:
        with pytest.raises(ValueError, match=f"conversation 1 is none of {form} has no"):
            _read(tmp_path, form, [{}])
        with pytest.raises(ValueError, match="conversation 2 is none of"):
            _read(tmp_path, form, [{"locomo": LOCOMO, "longmemeval": LONGMEMEVAL, "beam": BEAM}[form], 5])
    twice = LOCOMO["conversation"] | {"session_2": LOCOMO["conversation"]["session_1"]}
    with pytest.raises(ValueError, match="two turns have one id"):
        _read(tmp_path, "locomo", [LOCOMO | {"conversation": twice}])
    with pytest.raises(ValueError, match="none of beam"):
        _read(tmp_path, "beam", BEAM | {"probing_questions": "__import__('os').getcwd()"})
    path = tmp_path / "text"
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="is not JSON"):
        read_conversations(path, "beam")


def test_shares(tmp_path):
    (one,) = _read(tmp_path, "locomo", LOCOMO)
    turns = {turn.id: turn for turn in one.turns}
    asked = Asked("Whose cat?", "x", frozenset({"D1:1", "D2:1"}))
    first, second, third = one.turns
    assert shares(asked, [second], turns) == {"turn": 0, "session": 0.5, "evidence": 0}
    assert shares(asked, [second, third], turns) == {"turn": 0.5, "session": 1, "evidence": 0}
    assert shares(asked, [first, third], turns) == {"turn": 1, "session": 1, "evidence": 1}
    assert shares(asked, [], turns) == {"turn": 0, "session": 0, "evidence": 0}
