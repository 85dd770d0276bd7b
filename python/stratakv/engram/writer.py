"""What the observer of turns stores with, and looks for: turns and facts as memories."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from stratakv.engram.derived import facts_of
from stratakv.engram.engine import Draft
from stratakv.engram.engram import Engram
from stratakv.engram.facts import KINDS, TURN, Fact, kind_of, metadata_of
from stratakv.engram.memory import Memory, Scope
from stratakv.engram.turns import Turn

SOURCE = "conversation"
# Facts that an extractor is shown, how much of the turns finds them, and memories among which they are.
LIKE_COUNT = 10
LIKE_CHARACTERS = 2000
LIKE_CANDIDATES = 50


class MemoryWriter:
    """`observer.Writer` over memories.

    Args:
        memories: facts are stored here.
        remember: stores drafts of a scope: turns.
        unaudited: the same memories, for what the memory asks itself, which is nobody's read.
    """

    def __init__(
        self, memories: Engram, remember: Callable[[Scope, Sequence[Draft]], object], unaudited: Engram
    ) -> None:
        self._memories = memories
        self._remember = remember
        self._unaudited = unaudited

    def store_turns(self, turns: Sequence[Turn]) -> None:
        """Stores turns as memories."""
        for scope, group in groupby(turns, lambda turn: turn.scope):
            self._remember(scope, [_draft_of(turn) for turn in group])

    def store_fact(
        self,
        fact: Fact,
        turn: Turn,
        extractor: str,
        *,
        supersedes: Memory | None,
        valid_from: datetime,
        valid_to: datetime | None,
    ) -> None:
        """Stores a fact, instead of another one where it supersedes one."""
        known: dict[str, Any] = {
            "metadata": metadata_of(fact, turn, extractor),
            "source": SOURCE,
            "author": turn.name,
            "valid_from": valid_from,
        }
        if supersedes is None:
            known |= {"agent": turn.agent, "project": turn.project, "valid_to": valid_to}
            self._memories.remember(fact.text, user=turn.user, **known)
        else:
            self._memories.update(supersedes.id, fact.text, user=turn.user, **known)

    def facts_from(self, user: str, turns: Collection[str]) -> set[tuple[str, str]]:
        """The facts that are stored of some turns, outdated ones too: turn and text of each."""
        facts = facts_of(self._unaudited, user, turns)
        return {(str(memory.metadata.get("turn")), memory.text) for memory in facts}

    def like(self, turns: Sequence[Turn]) -> list[Memory]:
        """Facts that are like what some turns say."""
        text = "\n".join(turn.text for turn in turns)[:LIKE_CHARACTERS]
        found = self._unaudited.recall(text, user=turns[0].user, k=LIKE_CANDIDATES)
        facts = [one.memory for one in found if kind_of(one.memory.metadata) in KINDS]
        return facts[:LIKE_COUNT]


def _draft_of(turn: Turn) -> Draft:
    metadata = json.dumps({"kind": TURN, "turn": turn.id, "role": turn.role})
    return (turn.text, metadata, SOURCE, turn.name, turn.time_ms, None, None, None)
