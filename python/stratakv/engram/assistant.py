"""`AssistantMemory`: an Engram that listens to conversations, keeps secrets out, and tells who read what."""

from __future__ import annotations

import builtins
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any, Literal, cast

from stratakv import _native
from stratakv.engram.audit import AuditedEngine, AuditLog
from stratakv.engram.beside import Beside
from stratakv.engram.context import Context, Profile, context_of, profile_of
from stratakv.engram.derived import facts_of, turns_among
from stratakv.engram.embedders import Embedder
from stratakv.engram.engine import Engine, Shared
from stratakv.engram.engram import Engram
from stratakv.engram.facts import KINDS, STANDING, Extractor, kind_of
from stratakv.engram.gate import Gate
from stratakv.engram.journal import Journal
from stratakv.engram.known import Known, covers, is_true
from stratakv.engram.memory import Memory, Scope
from stratakv.engram.observer import Observer
from stratakv.engram.places import home_of
from stratakv.engram.policy import Policy
from stratakv.engram.rules import RuleExtractor
from stratakv.engram.threads import in_thread
from stratakv.engram.tokens import count_tokens
from stratakv.engram.turns import turns_of
from stratakv.engram.writer import MemoryWriter
from stratakv.errors import MemoryNotFoundError

# Tokens of a profile, and of what `context` puts into a prompt beside it.
PROFILE_TOKENS = 300
CONTEXT_TOKENS = 600
# Memories that `context` looks at.
CONTEXT_CANDIDATES = 50
SALIENCE_MIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What `observe` took.

    Args:
        turns: the ids of the turns that are durable now.
        skipped: how many messages were no turns, or observed before.
        masked: how many of each kind of secret the policy masked in them.
    """

    turns: Sequence[str]
    skipped: int = 0
    masked: Mapping[str, int] | None = None


class AssistantMemory(Engram):
    """Long-term memory for an assistant: an `Engram` that takes whole conversations.

    Beside what an Engram does:

    - `observe` takes the turns of a conversation. They are durable when it returns; in the background each
      becomes a memory, and so do the facts in it.
    - `profile` and `context` make the text that goes into a prompt.
    - Every text that is written passes a `Policy` on secrets and personal data.
    - Every read and write is noted in an audit log, without texts.
    - Forgetting turns forgets the facts that were taken out of them.

    Use `AssistantMemory.open`.
    """

    def __init__(
        self,
        engine: Engine,
        embedder: Embedder | None,
        *,
        directory: Path,
        lock: _native.DirectoryLock | None,
        policy: Policy,
        extractor: Extractor | None,
        salience_min: float,
        audit: AuditLog | None,
        durable: bool,
        background: bool,
        beside: Beside | None = None,
    ) -> None:
        audited = engine if audit is None else cast("Engine", AuditedEngine(engine, audit))
        super().__init__(audited, embedder, beside)
        self._audit = audit
        self._gate = Gate(policy, lambda scope: self._note("refuse", scope))
        # For what the memory asks itself, which is nobody's read.
        self._unaudited = Engram(engine, embedder)
        self._lock = lock
        change = engine.change if isinstance(engine, Shared) else None
        self._known = Known(lambda user: self._unaudited.list(user=user), change)
        self._journal = Journal(directory / "turns", durable=durable)
        self._observer = Observer(
            self._journal,
            self._known,
            MemoryWriter(self, self._remember, self._unaudited),
            extractor=extractor,
            salience_min=salience_min,
            background=background,
        )
        if self._journal.waiting():
            self._observer.notify()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        directory: str | os.PathLike[str] | None = None,
        embedder: Embedder | str | None = "auto",
        durable: bool = True,
        policy: Policy | None = None,
        extractor: Extractor | Literal["rules"] | None = "rules",
        salience_min: float = SALIENCE_MIN,
        audit: bool = True,
        audit_bytes: int | str = "4MiB",
        audit_files: int = 8,
        background: bool = True,
    ) -> AssistantMemory:
        """Opens memories, as `Engram.open`. Turns that waited are gone on with.

        Args:
            path: the directory, private to its owner, or a database's address. An Engram's can be opened so,
                and the other way round.
            directory: with a database, where this process, and no other, has turns that wait and its audit
                log.
            embedder: as `Engram.open`.
            durable: as `Engram.open`; for observed turns too.
            policy: what is done with secrets and personal data; `Policy()` if not given.
            extractor: what takes facts out of turns: "rules", an `Extractor` (`ModelExtractor` for a language
                model), or None to store turns alone.
            salience_min: facts that matter less are not stored; 0 to 1.
            audit: whether reads and writes are noted.
            audit_bytes: of one file of the audit log, from 4 KiB on; bytes or text.
            audit_files: how many of them are kept.
            background: whether a thread works through observed turns; else `drain` does.

        Raises:
            LockedError: another process has the directory open.
            SettingsMismatchError: its vectors are another embedder's.
            DatabaseError: the database can't be used; the message says what to do.
            ValueError: an argument that is not accepted.
        """
        if isinstance(extractor, str) and extractor != "rules":
            raise ValueError(f"extractor={extractor!r}: accepted are 'rules', None, or an Extractor")
        if not 0 <= salience_min <= 1:
            raise ValueError(f"salience_min={salience_min}: expected 0 to 1")
        home, lock = home_of(path, directory)
        engram = None
        try:
            engram = Engram.open(path, embedder=embedder, durable=durable)
            log = AuditLog(home / "audit", bytes_max=audit_bytes, files_max=audit_files) if audit else None
            return cls(
                engram._engine,
                engram.embedder,
                directory=home,
                lock=lock,
                policy=Policy() if policy is None else policy,
                extractor=RuleExtractor() if isinstance(extractor, str) else extractor,
                salience_min=salience_min,
                audit=log,
                durable=durable,
                background=background,
                beside=engram._beside,
            )
        except BaseException:
            if engram is not None:
                engram.close()
            if lock is not None:
                lock.release()
            raise

    @property
    def policy(self) -> Policy:
        """What is done with secrets and personal data."""
        return self._gate.policy

    def observe(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        now: datetime | None = None,
    ) -> Observed:
        """Takes turns of a conversation: durable on return, worked through in the background.

        Each turn of the user or the assistant becomes a memory of the session, and the facts in it memories
        of the user, agent and project. What `context` put into a message is left out. A message whose `id`
        was observed before is skipped.

        Args:
            messages: `{"role", "content"}`, optionally "name", "time" and "id", each.
            user: whose conversation it is.
            agent: with which agent.
            project: about which project.
            session: the conversation's name; turns of one session are found by their neighbours' words too.
            now: the time of messages without one; the present if not given.

        Raises:
            RefusedError: one has what the policy refuses; none of the messages is kept.
            ValueError: an argument that is not accepted; none of the messages is kept.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        masked: Counter[str] = Counter()
        turns = [self._gate.turn(turn, scope, masked) for turn in turns_of(messages, scope, now=now)]
        # Those that wait first: in between, a turn may go from waiting to stored, and never back.
        turns = self._journal.new(turns)
        given = {message.get("id") for message in messages}
        turns = [turn for turn in turns if turn.id not in given or not self._known.has_turn(turn.id, user)]
        self._journal.append(turns)
        self._note("observe", scope, turns=len(turns), masked=dict(masked))
        if turns:
            self._observer.notify()
        return Observed(
            turns=[turn.id for turn in turns], skipped=len(messages) - len(turns), masked=dict(masked)
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until all observed turns are worked through; whether they were within `timeout` seconds."""
        return self._observer.drain(timeout)

    def profile(
        self,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        tokens: int = PROFILE_TOKENS,
        characters: int | None = None,
        count: Callable[[str], int] = count_tokens,
    ) -> Profile:
        """What always holds for a user: standing instructions, who they are, preferences.

        These are memories whose metadata has `kind` "instruction", "identity" or "preference", of the user as
        a whole and of the agent and project that are given. No query finds "always answer in German"; so this
        goes into every prompt.

        Args:
            user: whose.
            agent: adds what holds for this agent.
            project: adds what holds for this project.
            tokens: how long it may be.
            characters: how long it may be besides.
            count: the tokens of a text; about a quarter of its bytes if not given.

        Raises:
            ValueError: a bound below 0.
        """
        if tokens < 0 or (characters is not None and characters < 0):
            raise ValueError(f"tokens={tokens}, characters={characters}: expected 0 or more")
        scope = Scope(user=user, agent=agent, project=project)
        now = datetime.now(UTC)
        standing = [
            memory
            for memory in self._known.facts(scope)
            if kind_of(memory.metadata) in STANDING and is_true(memory, now)
        ]
        profile = profile_of(standing, tokens=tokens, characters=characters, count=count)
        self._note("profile", scope, ids=[memory.id for memory in profile.memories])
        return profile

    def context(
        self,
        query: str,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        tokens: int = CONTEXT_TOKENS,
        profile_tokens: int = PROFILE_TOKENS,
        whole_tokens: int = 0,
        without_session: str | None = None,
        without: Collection[int] = (),
        count: Callable[[str], int] = count_tokens,
    ) -> Context:
        """The block that goes into a prompt: the profile, and the memories that answer a query best.

        It is empty where there is nothing. `observe` knows it by its marks and leaves it out.

        Args:
            query: what the user says or asks.
            user: whose memories; `agent` and `project` narrow what is recalled.
            agent: see `user`.
            project: see `user`.
            tokens: how long what is recalled may be.
            profile_tokens: how long the profile may be; 0 for none.
            whole_tokens: how long memories that are put whole may be, beside the block (`Context.whole`); in
                the block a memory has at most 600 characters.
            without_session: a session whose turns are left out, as they are in the prompt anyway.
            without: numbers of memories that are left out.
            count: the tokens of a text; about a quarter of its bytes if not given.

        Raises:
            ValueError: an argument that is not accepted.
        """
        profile = self.profile(user=user, agent=agent, project=project, tokens=profile_tokens, count=count)
        found = self.recall(query, user=user, agent=agent, project=project, k=CONTEXT_CANDIDATES)
        left_out = frozenset(without)
        memories = [
            one.memory
            for one in found
            if one.memory.id not in left_out and not _is_of(one.memory, without_session)
        ]
        return context_of(profile, memories, tokens=tokens, whole_tokens=whole_tokens, count=count)

    def forget(
        self,
        ids: int | Sequence[int] | None = None,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        everything: bool = False,
    ) -> int:
        """Erases memories, as `Engram.forget`, and with turns the facts that were taken out of them.

        With `everything`, turns of the scope that still wait are erased too.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        of: dict[str, Any] = {"user": user, "agent": agent, "project": project, "session": session}
        with self._observer.lock:
            try:
                turns = turns_among(self._unaudited, ids, of, everything=everything)
                records = super().forget(ids, **of, everything=everything)
                if everything:
                    turns |= self._erase_waiting(scope)
                is_all = everything and scope == Scope(user=user)
                derived = [] if is_all else [one.id for one in facts_of(self._unaudited, user, turns)]
                if derived:
                    records += super().forget(derived, user=user)
            finally:
                self._known.drop(user)
        return records

    def erase(self, user: str) -> int:
        """Erases everything of a user: memories, and turns that wait; how many records went.

        The audit log keeps that it was done, under the user's name.
        """
        return self.forget(user=user, everything=True)

    def retain(self, **options: Any) -> int:
        """As `Engram.retain`."""
        with self._observer.lock:
            try:
                return super().retain(**options)
            finally:
                self._known.drop(options["user"])

    def end(self, id: int, **options: Any) -> None:
        """As `Engram.end`."""
        with self._observer.lock:
            try:
                super().end(id, **options)
            finally:
                self._known.drop(options["user"])

    def export(self, path: str | os.PathLike[str], *, user: str) -> int:
        """As `Engram.export`; turns that wait are worked through first.

        Raises:
            RuntimeError: they could not be.
        """
        self.drain()
        if left := self._journal.waiting(user):
            reason = self._observer.counts.last_error
            raise RuntimeError(
                f"{len(left)} turns of {user!r} could not be worked through ({reason}) and would be missing"
            )
        number = super().export(path, user=user)
        self._note("export", Scope(user=user), memories=number)
        return number

    def import_(self, path: str | os.PathLike[str]) -> int:
        """As `Engram.import_`; every text passes the policy."""
        try:
            return super().import_(path)
        finally:
            for user in self.users():
                self._known.drop(user)

    def stats(
        self,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
    ) -> dict[str, Any]:
        """As `Engram.stats`, and more.

        `waiting` (turns of the user that are not worked through), `damaged_turns` (that could not be read),
        `kinds` (present facts of the scope by kind), and `observed`: what became of the facts that were found
        since the memory was opened, of all users, with the `junk_rate`, the share of them that was not worth
        storing.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        kinds = Counter(kind_of(memory.metadata) for memory in self._known.covered(scope))
        return {
            **super().stats(user=user, agent=agent, project=project, session=session),
            "waiting": len(self._journal.waiting(user)),
            "damaged_turns": self._journal.damaged,
            "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
            "observed": self._observer.counts.as_dict(),
        }

    def audit(self) -> Iterator[dict[str, Any]]:
        """The entries of the audit log, the oldest first; none where there is no log."""
        return iter(()) if self._audit is None else self._audit.read()

    def close(self) -> None:
        """Ends the work in the background, flushes and gives the directory back. Closing twice is no error.

        Turns that still wait are worked through when it is opened again; `drain` waits for them.
        """
        self._observer.close()
        super().close()
        if self._audit is not None:
            self._audit.close()
        if self._lock is not None:
            self._lock.release()

    aobserve = in_thread(observe)
    adrain = in_thread(drain)
    aprofile = in_thread(profile)
    acontext = in_thread(context)
    aerase = in_thread(erase)

    def _check_known(self, id: int, user: str) -> None:
        """As `Engram._check_known`; nobody reads anything by it."""
        self._unaudited._check_known(id, user)

    def _remember(self, scope: Scope, drafts: Sequence[Any]) -> builtins.list[int]:
        """Every write goes through here: the policy looks at it before it is embedded or stored."""
        masked: Counter[str] = Counter()
        allowed = [self._gate.draft(draft, scope, masked) for draft in drafts]
        if masked:
            self._note("mask", scope, masked=dict(masked))
        numbers = super()._remember(scope, allowed)
        if self._known.has(scope.user):
            of_interest = [_is_of_interest(draft) for draft in allowed]
            self._index(scope.user, compress(numbers, of_interest))
        return numbers

    def _index(self, user: str, numbers: Iterable[int]) -> None:
        """Tells the index of facts what was stored."""
        scope = Scope(user=user)
        for number in numbers:
            with contextlib.suppress(MemoryNotFoundError):  # forgotten since
                self._known.add(Memory.of(self._unaudited._engine.get(scope.parts(), number)))

    def _erase_waiting(self, scope: Scope) -> set[str]:
        gone = {turn.id for turn in self._journal.waiting(scope.user) if covers(scope, turn.scope)}
        if scope == Scope(user=scope.user):
            self._journal.erase(scope.user)
        else:
            self._journal.done(scope.user, gone)
        return gone

    def _note(self, action: str, scope: Scope, **facts: Any) -> None:
        if self._audit is not None:
            kept = {name: value for name, value in facts.items() if value not in ({}, None)}
            self._audit.write(action, scope.parts(), **kept)


def _is_of_interest(draft: Any) -> bool:
    """Whether a draft has metadata, in which its kind may be, or supersedes something."""
    _, metadata, _, _, *rest = draft
    return bool(metadata) or rest[-1] is not None


def _is_of(memory: Memory, session: str | None) -> bool:
    return session is not None and memory.scope.session == session
