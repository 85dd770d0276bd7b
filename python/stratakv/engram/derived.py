"""Among stored memories: which are turns, and which facts were taken out of these."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from stratakv.engram.engram import Engram
from stratakv.engram.facts import KINDS, TURN, kind_of
from stratakv.engram.memory import Memory


def turns_among(
    memories: Engram, ids: int | Sequence[int] | None, scope: dict[str, Any], *, everything: bool
) -> set[str]:
    """The ids of the turns among what `Engram.forget` is told to erase, past versions included.

    Raises:
        MemoryNotFoundError: one of the numbers is not in the scope.
    """
    if everything and ids is None:
        chosen: Iterator[Memory] = memories.list(**scope, past=True)
    else:
        numbers = [ids] if isinstance(ids, int) else ids or ()
        chosen = (memory for number in numbers for memory in memories.history(number, **scope))
    return {str(one.metadata.get("turn")) for one in chosen if kind_of(one.metadata) == TURN}


def facts_of(memories: Engram, user: str, turns: Collection[str]) -> list[Memory]:
    """The facts that were taken out of some of a user's turns, outdated ones too."""
    if not turns:
        return []
    return [
        memory
        for memory in memories.list(user=user, past=True)
        if kind_of(memory.metadata) in KINDS and memory.metadata.get("turn") in turns
    ]
