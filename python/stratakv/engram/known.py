"""What is known of a user: present facts, what they say, and which turns are stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from stratakv.engram.facts import KINDS, TURN, Wording, kind_of
from stratakv.engram.memory import Memory, Scope


@dataclass
class _User:
    change: int = 0
    facts: dict[int, tuple[Memory, Wording]] = field(default_factory=dict)
    turns: set[str] = field(default_factory=set)


class Known:
    """An index in RAM of facts and turns, read from the memories of a user when it is first asked about them.

    Args:
        read: the present memories of a user.
        change: a number that is another one after every write of a user's memories, where other processes
            write too: what was read is read again then.
    """

    def __init__(
        self, read: Callable[[str], Iterable[Memory]], change: Callable[[str], int] | None = None
    ) -> None:
        self._read = read
        self._change = change
        self._users: dict[str, _User] = {}
        self._lock = threading.RLock()

    def add(self, memory: Memory) -> None:
        """Notes a memory that was stored; what it supersedes is no present fact any more."""
        with self._lock:
            user = self._users.get(memory.scope.user)
            if user is not None:
                _add(user, memory)

    def drop(self, user: str) -> None:
        """Forgets what is known of a user: it is read again."""
        with self._lock:
            self._users.pop(user, None)

    def has(self, user: str) -> bool:
        """Whether a user's memories were read."""
        with self._lock:
            return user in self._users

    def facts(self, scope: Scope) -> list[Memory]:
        """Present facts that hold in a scope: its own, and the user's that name no agent or project."""
        with self._lock:
            return [memory for memory, _ in self._holding(scope)]

    def covered(self, scope: Scope) -> list[Memory]:
        """Present facts that a scope covers."""
        with self._lock:
            facts = [memory for memory, _ in self._user(scope.user).facts.values()]
        return [memory for memory in facts if covers(scope, memory.scope)]

    def saying(self, text: str, scope: Scope) -> Memory | None:
        """A fact of exactly this scope that says what a text says, or that and more."""
        wording = Wording.of(text)
        return self._first(scope, lambda other: wording.same(other) or wording.within(other))

    def said_by(self, text: str, scope: Scope) -> Memory | None:
        """A fact of exactly this scope that says a part of what a text says."""
        wording = Wording.of(text)
        return self._first(scope, lambda other: other.within(wording))

    def in_slot(self, slot: str, scope: Scope) -> Memory | None:
        """The fact of exactly this scope of which there is one only."""
        with self._lock:
            found = [memory for memory, _ in self._exactly(scope) if memory.metadata.get("slot") == slot]
            return found[-1] if found else None

    def get(self, id: int, user: str) -> Memory | None:
        """A present fact by its number."""
        with self._lock:
            entry = self._user(user).facts.get(id)
            return None if entry is None else entry[0]

    def has_turn(self, turn: str, user: str) -> bool:
        """Whether a turn is stored as a memory."""
        with self._lock:
            return turn in self._user(user).turns

    def _first(self, scope: Scope, fits: Callable[[Wording], bool]) -> Memory | None:
        with self._lock:
            return next((memory for memory, wording in self._exactly(scope) if fits(wording)), None)

    def _exactly(self, scope: Scope) -> Iterator[tuple[Memory, Wording]]:
        for memory, wording in self._user(scope.user).facts.values():
            if (memory.scope.agent, memory.scope.project) == (scope.agent, scope.project):
                yield memory, wording

    def _holding(self, scope: Scope) -> Iterator[tuple[Memory, Wording]]:
        for memory, wording in self._user(scope.user).facts.values():
            of = memory.scope
            if of.agent in (None, scope.agent) and of.project in (None, scope.project):
                yield memory, wording

    def _user(self, name: str) -> _User:
        user = self._users.get(name)
        change = 0 if self._change is None else self._change(name)
        if user is None or user.change != change:
            user = _User(change)
            for memory in self._read(name):
                _add(user, memory)
            self._users[name] = user
        return user


def covers(scope: Scope, other: Scope) -> bool:
    """Whether a scope that is read covers another that was written to."""
    return all(mine in (None, its) for mine, its in zip(scope.parts(), other.parts(), strict=True))


def is_true(memory: Memory, now: datetime) -> bool:
    """Whether a memory is true at a time."""
    begun = memory.valid_from is None or memory.valid_from <= now
    return begun and (memory.valid_to is None or memory.valid_to > now)


def _add(user: _User, memory: Memory) -> None:
    if memory.supersedes is not None:
        user.facts.pop(memory.supersedes, None)
    kind = kind_of(memory.metadata)
    if kind in KINDS:
        if memory.valid_to is None or memory.valid_to > datetime.now(UTC):
            user.facts[memory.id] = (memory, Wording.of(memory.text))
    elif kind == TURN:
        user.turns.add(str(memory.metadata.get("turn")))
