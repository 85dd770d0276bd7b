"""What is taken out of turns: facts, how much they matter, and which of them say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Protocol

from stratakv.engram.memory import Memory
from stratakv.engram.turns import Turn

# What a fact can be about.
KINDS = ("instruction", "identity", "preference", "decision", "person", "project", "event", "note")
# Kinds that hold whatever is asked: no query is like "always answer in German".
STANDING = ("instruction", "identity", "preference")
# The kind of a whole turn, which is a memory too.
TURN = "turn"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something worth remembering that a turn said.

    Args:
        kind: one of `KINDS`.
        text: as it is to be remembered, understandable alone.
        turn: the id of the turn that said it.
        salience: how much it matters, 0 to 1.
        slot: what there is only one of ("home", "name"): a newer fact of the same slot supersedes the older.
        replaces: the number of a memory that it supersedes.
        valid_from: from when it is true, if that is not when it was said.
        valid_to: until when.

    Raises:
        ValueError: another kind, an empty text, or a salience out of range.
    """

    kind: str
    text: str
    turn: str
    salience: float
    slot: str | None = None
    replaces: int | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: accepted are {', '.join(KINDS)}")
        if not self.text.strip():
            raise ValueError("a fact's text is empty")
        if not 0 <= self.salience <= 1:
            raise ValueError(f"salience={self.salience}: expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What an extractor made of some turns.

    `invalid` counts what it had to throw away itself: facts not of the schema, or not said in any turn.
    """

    facts: Sequence[Fact] = ()
    invalid: int = 0


class Extractor(Protocol):
    """Takes facts out of turns. It runs in the background; what it raises leaves the turns waiting."""

    @property
    def name(self) -> str:
        """What is noted beside each of its facts."""

    def extract(self, turns: Sequence[Turn], known: Sequence[Memory]) -> Extracted:
        """Facts of some turns of one conversation, in their order.

        Args:
            turns: new ones, oldest first.
            known: memories that are like what they say.
        """


@dataclass
class Counts:
    """What became of the facts that extractors found, since the memory was opened.

    `junk_rate` is the share of the found ones that were not worth storing.
    """

    turns: int = 0
    found: int = 0
    kept: int = 0
    superseding: int = 0
    merged: int = 0
    unsalient: int = 0
    recalled: int = 0
    invalid: int = 0
    refused: int = 0
    failures: int = 0
    fell_back: int = 0
    last_error: str | None = None
    by_kind: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `stats`, with the junk rate."""
        return asdict(self) | {"by_kind": dict(sorted(self.by_kind.items())), "junk_rate": self.junk_rate}

    @property
    def junk_rate(self) -> float:
        """0 while nothing was found."""
        junk = self.merged + self.unsalient + self.recalled + self.invalid + self.refused
        return junk / self.found if self.found else 0.0


_TOKEN = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_NEGATIONS = frozenset({"not", "no", "never", "none", "without", "neither", "nor", "cannot"})
_ASIDE = frozenset(
    re.split(
        r"\s+",
        """a an the i me my mine we us our you your he she it its they them their this that these those is
        are was were be been am do does did have has had will would to of in on at for with by from as
        and or but so just really very also now please well oh ok okay yes yeah actually btw i'm i've
        we're we've it's""",
    )
)
_DATE_NOTE = re.compile(r" \((?:week of |weekend of )?\d{4}(?:-\d{2}){0,2}\)")


@dataclass(frozen=True)
class Wording:
    """A text as it is compared: the words that matter, in order, and whether they are denied."""

    words: tuple[str, ...]
    negated: bool

    @classmethod
    def of(cls, text: str) -> Wording:
        """The wording of a text. What `dates.resolved` added does not count."""
        tokens = [token.lower().replace("\u2019", "'") for token in _TOKEN.findall(_DATE_NOTE.sub("", text))]
        negations = sum(token in _NEGATIONS or token.endswith("n't") for token in tokens)
        aside = _ASIDE | _NEGATIONS
        words = (_stem(token) for token in tokens if token not in aside and not token.endswith("n't"))
        return cls(tuple(words), negations % 2 == 1)

    def same(self, other: Wording) -> bool:
        """Whether both say the same: the same words in the same order, or none of both."""
        return self.negated == other.negated and self.words == other.words

    def within(self, other: Wording) -> bool:
        """Whether the other says this and more: its words are these, in this order, with others between."""
        if self.negated != other.negated or len(self.words) < 2:
            return False
        rest = iter(other.words)
        return all(word in rest for word in self.words)


def _stem(word: str) -> str:
    """A word without the endings of number and tense: enough to see that two sentences use the same ones."""
    for ending, least in (("'s", 2), ("ies", 3), ("ing", 4), ("ed", 4), ("es", 4), ("s", 3)):
        if word.endswith(ending) and len(word) - len(ending) >= least:
            return word[: -len(ending)]
    return word


def metadata_of(fact: Fact, turn: Turn, extractor: str) -> dict[str, Any]:
    """What is stored beside a fact: its kind, how much it matters, and where it came from."""
    provenance = {"turn": turn.id, "role": turn.role, "session": turn.session, "said": turn.time.isoformat()}
    rest = {"slot": fact.slot, "extractor": extractor, "salience": round(fact.salience, 3)}
    both = {"kind": fact.kind, **rest, **provenance}
    return {key: value for key, value in both.items() if value is not None}


def kind_of(metadata: Mapping[str, Any]) -> str | None:
    """The kind of a memory, one of `KINDS` or `TURN`; None for one that has none."""
    kind = metadata.get("kind")
    return kind if isinstance(kind, str) and (kind in KINDS or kind == TURN) else None
