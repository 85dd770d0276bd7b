"""What becomes of observed turns, in the background: a memory each, and the facts in them.

A turn waits in the journal until all of this is done, so that a crash, a full disk or a model that fails
costs time and nothing else; what was done already is not done twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from stratakv.engram.facts import Counts, Extracted, Extractor, Fact
from stratakv.engram.journal import Journal
from stratakv.engram.known import Known
from stratakv.engram.memory import Memory, Scope
from stratakv.engram.rules import RuleExtractor
from stratakv.engram.turns import Turn
from stratakv.errors import MemoryNotFoundError, RefusedError

# Turns that an extractor is given at once.
BATCH_TURNS = 16
# How often an extractor may fail on the same turns before the rules take its place.
ATTEMPTS_MAX = 3
# Seconds until it is tried again, longer each time.
RETRY_SECONDS = (5.0, 30.0)


class Writer(Protocol):
    """What stores turns and facts."""

    def store_turns(self, turns: Sequence[Turn]) -> None:
        """Stores turns of one scope as memories."""

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

    def facts_from(self, user: str, turns: Collection[str]) -> set[tuple[str, str]]:
        """The facts that are stored of some turns, outdated ones too: turn and text of each."""

    def like(self, turns: Sequence[Turn]) -> list[Memory]:
        """Facts that are like what some turns say."""


class Observer:
    """Works through the journal, in a thread of its own or when `drain` is called.

    Args:
        journal: what waits.
        known: what is stored.
        writer: stores.
        extractor: finds facts; None stores turns alone.
        salience_min: facts below it are not stored.
        background: whether a thread works; else `drain` does.
    """

    def __init__(
        self,
        journal: Journal,
        known: Known,
        writer: Writer,
        *,
        extractor: Extractor | None,
        salience_min: float,
        background: bool,
    ) -> None:
        self.counts = Counts()
        # Held while memories change because of turns, so that what is forgotten meanwhile does not come back.
        self.lock = threading.RLock()
        self._journal = journal
        self._known = known
        self._writer = writer
        self._extractor = extractor
        self._fallback = RuleExtractor()
        self._salience_min = salience_min
        self._background = background
        self._wake = threading.Condition()
        self._working = threading.Lock()
        self._attempts: dict[Scope, int] = {}
        self._not_before: dict[Scope, float] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def notify(self) -> None:
        """Says that turns wait."""
        if not self._background:
            return
        with self._wake:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="stratakv-observer", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Works until no turn waits; whether that was so within `timeout` seconds.

        Does not wait before it tries again what failed. What cannot even be stored stays waiting.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._journal.waiting():
            if end is not None and time.monotonic() >= end:
                return False
            failures = self.counts.failures
            if not self._step(hurry=True, timeout=-1 if end is None else max(end - time.monotonic(), 0)):
                return not self._journal.waiting()  # closed, or the thread is at work and takes too long
            if self.counts.failures > failures and self._stuck():
                return False
        return True

    def close(self) -> None:
        """Ends the thread after what it is doing; what waits is worked through when it is opened again."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            worked = self._step(hurry=False)
            with self._wake:
                if self._closed:
                    return
                if not worked:
                    self._wake.wait(self._pause())

    def _pause(self) -> float | None:
        """Seconds until something that failed is to be tried again; None where nothing is."""
        waiting = {turn.scope for turn in self._journal.waiting()}
        times = [self._not_before.get(scope, 0.0) for scope in waiting]
        return max(min(times) - time.monotonic(), 0.01) if times else None

    def _stuck(self) -> bool:
        """Whether something fails whatever extractor there is."""
        return any(attempts > 2 * ATTEMPTS_MAX for attempts in self._attempts.values())

    def _step(self, *, hurry: bool, timeout: float = -1) -> bool:
        """Works through some turns of one scope, one caller at a time; whether there were any."""
        if not self._working.acquire(timeout=timeout):
            return False
        try:
            turns = self._next(hurry=hurry)
            if not turns or self._closed:
                return False
            scope = turns[0].scope
            try:
                self._work(turns)
            except Exception as error:  # whatever a model or a disk does: the turns are still in the journal
                self._failed(scope, error)
            else:
                self._attempts.pop(scope, None)
                self._not_before.pop(scope, None)
            return True
        finally:
            self._working.release()

    def _next(self, *, hurry: bool) -> list[Turn]:
        now = time.monotonic()
        chosen: list[Turn] = []
        for turn in self._journal.waiting():
            if chosen and turn.scope != chosen[0].scope:
                break
            if hurry or self._not_before.get(turn.scope, 0.0) <= now:
                chosen.append(turn)
            if len(chosen) == BATCH_TURNS:
                break
        return chosen

    def _failed(self, scope: Scope, error: Exception) -> None:
        attempts = self._attempts.get(scope, 0) + 1
        self._attempts[scope] = attempts
        self._not_before[scope] = time.monotonic() + RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1]
        self.counts.failures += 1
        self.counts.last_error = type(error).__name__

    def _work(self, turns: Sequence[Turn]) -> None:
        user = turns[0].user
        with self.lock:
            waiting = {turn.id for turn in self._journal.waiting(user)}
            turns = [turn for turn in turns if turn.id in waiting]
            new = [turn for turn in turns if not self._known.has_turn(turn.id, user)]
            if new:
                self._writer.store_turns(new)
                self.counts.turns += len(new)
            # Stored, and yet waiting: begun by an extractor that failed, or before a crash.
            begun = {turn.id for turn in turns} - {turn.id for turn in new}
            stored = self._writer.facts_from(user, begun) if begun else set()
        extracted, name = self._extract(turns)
        with self.lock:
            # What was forgotten while the extractor worked is not waiting any more.
            by_id = {turn.id: turn for turn in self._journal.waiting(user)}
            self.counts.found += len(extracted.facts) + extracted.invalid
            self.counts.invalid += extracted.invalid
            for fact in extracted.facts:
                if fact.turn in by_id and (fact.turn, fact.text) not in stored:
                    self._keep(fact, by_id[fact.turn], name)
            self._journal.done(user, [turn.id for turn in turns])

    def _extract(self, turns: Sequence[Turn]) -> tuple[Extracted, str]:
        if self._extractor is None or not turns:
            return Extracted(), ""
        if isinstance(self._extractor, RuleExtractor):
            return self._extractor.extract(turns, ()), self._extractor.name
        if self._attempts.get(turns[0].scope, 0) >= ATTEMPTS_MAX:
            self.counts.fell_back += 1
            return self._fallback.extract(turns, ()), self._fallback.name
        return self._extractor.extract(turns, self._writer.like(turns)), self._extractor.name

    def _keep(self, fact: Fact, turn: Turn, extractor: str) -> None:
        """Stores a fact, unless it matters too little or is known; what it makes outdated ends."""
        if fact.salience < self._salience_min:
            self.counts.unsalient += 1
            return
        scope = Scope(user=turn.user, agent=turn.agent, project=turn.project)
        if self._known.saying(fact.text, scope) is not None:
            if turn.role == "assistant":
                self.counts.recalled += 1
            else:
                self.counts.merged += 1
            return
        older, valid_from, valid_to = _in_time(fact, turn, self._older(fact, scope))
        if valid_to is not None and valid_to <= valid_from:
            self.counts.invalid += 1
            return

        def store(supersedes: Memory | None) -> None:
            self._writer.store_fact(
                fact, turn, extractor, supersedes=supersedes, valid_from=valid_from, valid_to=valid_to
            )

        try:
            try:
                store(older)
            except MemoryNotFoundError:  # forgotten in the meantime
                store(None)
        except RefusedError:
            self.counts.refused += 1
            return
        self.counts.kept += 1
        self.counts.superseding += older is not None
        self.counts.by_kind[fact.kind] = self.counts.by_kind.get(fact.kind, 0) + 1

    def _older(self, fact: Fact, scope: Scope) -> Memory | None:
        """The present fact that this one makes outdated."""
        if fact.replaces is not None:
            replaced = self._known.get(fact.replaces, scope.user)
            if replaced is not None:
                return replaced
        if fact.slot is not None:
            return self._known.in_slot(fact.slot, scope)
        return self._known.said_by(fact.text, scope)


def _in_time(fact: Fact, turn: Turn, older: Memory | None) -> tuple[Memory | None, datetime, datetime | None]:
    """What a fact supersedes, and from when to when it is true."""
    valid_from, valid_to = fact.valid_from or turn.time, fact.valid_to
    if older is None or older.valid_from is None or valid_from >= older.valid_from:
        return older, valid_from, valid_to
    if turn.time < older.valid_from:  # said before what is known: it was true until then
        return None, valid_from, older.valid_from
    return older, older.valid_from, valid_to
