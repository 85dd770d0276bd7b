"""Long conversations with questions whose evidence is known, as three collections publish them.

What it is: readers of LoCoMo, LongMemEval and BEAM, and what a ranking of turns is worth. What it is not: it
remembers nothing and asks nobody, which `stratakv eval memory` does.

Sources: Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", 2024
(arXiv:2402.17753); Wu et al., "LongMemEval", 2024 (arXiv:2410.10813); Tavakoli et al., "Beyond a Million
Tokens", 2025 (arXiv:2510.27246).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["FORMATS", "Asked", "Conversation", "Said", "read_conversations", "shares"]

LOCOMO_KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


@dataclass(frozen=True)
class Said:
    """One turn of a session."""

    id: str
    session: str
    author: str
    text: str
    time: datetime | None


@dataclass(frozen=True)
class Asked:
    """A question with the turns, by their ids, that answer it."""

    text: str
    kind: str
    evidence: frozenset[str]


@dataclass(frozen=True)
class Conversation:
    """Turns in order, each id once, and questions; evidence that is no turn's id is left out."""

    name: str
    turns: Sequence[Said]
    questions: Sequence[Asked]


def read_conversations(path: Path, form: str) -> list[Conversation]:
    """The conversations of a JSON file of a form of `FORMATS`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not of that form; the message says where.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    entries = entries if isinstance(entries, list) else [entries]
    made = []
    for number, entry in enumerate(entries, 1):
        try:
            made.append(_consistent(FORMATS[form](entry, str(number))))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else f"({error})"
            raise ValueError(f"{path}: conversation {number} is none of {form} {what}") from None
    return made


def shares(asked: Asked, found: Sequence[Said], turns: Mapping[str, Said]) -> dict[str, float]:
    """What the first turns that were found are worth for a question that has evidence.

    Returns:
        For "turn", the share of its evidence that is among them; for "session", of the sessions that its
        evidence is from, the share that any of them is from; for "evidence", 1 if all of it is there.
    """
    hit = asked.evidence.intersection(turn.id for turn in found)
    wanted = {turns[id].session for id in asked.evidence}
    reached = wanted.intersection(turn.session for turn in found)
    return {
        "turn": len(hit) / len(asked.evidence),
        "session": len(reached) / len(wanted),
        "evidence": float(hit == asked.evidence),
    }


def _consistent(made: Conversation) -> Conversation:
    ids = {turn.id for turn in made.turns}
    if len(ids) != len(made.turns):
        raise ValueError("two turns have one id")
    questions = [Asked(one.text, one.kind, one.evidence & ids) for one in made.questions]
    return Conversation(made.name, made.turns, questions)


def _locomo(entry: Any, name: str) -> Conversation:
    turns = []
    spoken = entry["conversation"]
    for session, said in spoken.items():
        if session.startswith("session_") and isinstance(said, list):
            time = _time(spoken[f"{session}_date_time"], "%I:%M %p on %d %B, %Y")
            for turn in said:
                text = " ".join(filter(None, (turn["text"], turn.get("blip_caption"))))
                turns.append(Said(turn["dia_id"], session, turn["speaker"], text, time))
    questions = []
    for one in entry["qa"]:
        # Some of the file's ids are joined: "D8:6; D9:17".
        ids = " ".join(one.get("evidence") or ()).replace(";", " ").split()
        kind = LOCOMO_KINDS.get(one["category"], str(one["category"]))
        questions.append(Asked(one["question"], kind, frozenset(ids)))
    return Conversation(entry.get("sample_id", name), turns, questions)


def _longmemeval(entry: Any, name: str) -> Conversation:
    turns, evidence = [], set()
    sessions = zip(
        entry["haystack_session_ids"], entry["haystack_dates"], entry["haystack_sessions"], strict=True
    )
    # A session may be there twice: its place tells them apart.
    for place, (session, date, said) in enumerate(sessions):
        time = _time(date, "%Y/%m/%d (%a) %H:%M")
        for number, turn in enumerate(said):
            id = f"{place}:{session}:{number}"
            turns.append(Said(id, f"{place}:{session}", turn["role"], turn["content"], time))
            if turn.get("has_answer"):
                evidence.add(id)
    asked = Asked(entry["question"], entry["question_type"], frozenset(evidence))
    return Conversation(entry.get("question_id", name), turns, [asked])


def _beam(entry: Any, name: str) -> Conversation:
    turns = []
    for number, session in enumerate(entry["chat"], 1):
        time = None
        for turn in session:
            time = _time(turn.get("time_anchor"), "%B-%d-%Y") or time
            turns.append(Said(str(turn["id"]), str(number), turn["role"], turn["content"], time))
    probing = entry["probing_questions"]
    if isinstance(probing, str):
        # Published as the text of a Python dictionary.
        probing = ast.literal_eval(probing)
    questions = [
        Asked(one["question"], kind, frozenset(map(str, _numbers(one.get("source_chat_ids")))))
        for kind, some in probing.items()
        for one in some
    ]
    return Conversation(str(entry.get("conversation_id", name)), turns, questions)


def _numbers(source: Any) -> Iterator[int]:
    """All numbers in lists and dictionaries of lists, however deep."""
    if isinstance(source, int):
        yield source
    elif isinstance(source, dict | list):
        for part in source.values() if isinstance(source, dict) else source:
            yield from _numbers(part)


def _time(text: str | None, form: str) -> datetime | None:
    """A date of a conversation, taken as UTC; None where it is none: some are left open."""
    try:
        return None if text is None else datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


FORMATS: dict[str, Callable[[Any, str], Conversation]] = {
    "locomo": _locomo,
    "longmemeval": _longmemeval,
    "beam": _beam,
}
