"""`Engram`: what an assistant remembers between sessions."""

from __future__ import annotations

import asyncio
import builtins
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stratakv.engram import transfer
from stratakv.engram.beside import Beside
from stratakv.engram.drafts import draft_of, one_for_each
from stratakv.engram.embedders import Embedder, embed, embed_query, embedder_named
from stratakv.engram.engine import Draft, Engine, When
from stratakv.engram.memory import Memory, Recalled, Scope
from stratakv.engram.places import is_url, open_engine
from stratakv.engram.reembed import reembed
from stratakv.engram.threads import in_thread
from stratakv.engram.times import to_ms
from stratakv.engram.tokens import count_tokens, within
from stratakv.sizes import parse_bytes

# Memories that one call of the engine lists, stores or embeds.
CHUNK = 512
# How many are looked at to fill a budget of tokens.
BUDGET_CANDIDATES = 200


class Engram:
    """Long-term memory in a directory or a database: apart for each user, found by words and by meaning.

    Every call is about one user, and where it says so about an agent, a project or a session of the user's;
    it neither tells nor changes anything else. One process has a directory open at a time, any number a
    database. Calls may come from any thread.

    Use `Engram.open`.
    """

    def __init__(self, engine: Engine, embedder: Embedder | None, beside: Beside | None = None) -> None:
        self._engine = engine
        self._embedder = embedder
        self._beside = Beside(None) if beside is None else beside

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        embedder: Embedder | str | None = "auto",
        durable: bool = True,
    ) -> Engram:
        """Opens memories, making a directory, or the tables of a database, where they are missing.

        Args:
            path: the directory, private to its owner; or the address of a PostgreSQL database with pgvector,
                "postgresql://user@host/database".
            embedder: what makes vectors, itself or by its name (`embedder_named`). "auto" is `MiniLM` where
                its wheel is installed, else None: memories are found by their words alone then.
            durable: whether a call that remembers comes back only when a power cut can't undo it.

        Raises:
            LockedError: another process has the directory open.
            SettingsMismatchError: its vectors are another embedder's; `Engram.reembed` makes them anew.
            DatabaseError: the database can't be used; the message says what to do.
            NotInstalledError: with an address, where `stratakv[postgres]` is not installed; what the embedder
                needs is not.
            OSError: the embedder's model is not there.
            ValueError: another `embedder` text, or an address that is none.
        """
        chosen = embedder_named(embedder) if isinstance(embedder, str) else embedder
        identity = None if chosen is None else (chosen.identity, chosen.dimension)
        engine = open_engine(path, embedder=identity, durable=durable)
        if chosen is None and engine.embedder is not None:
            shown = "the database" if is_url(path) else path
            warnings.warn(
                f"the memories in {shown} have vectors of {engine.embedder[0]!r}; opened without an "
                "embedder, they are found by their words alone, and new ones get no vector",
                stacklevel=2,
            )
        return cls(engine, chosen, Beside(None if is_url(path) else Path(path).expanduser().resolve()))

    @staticmethod
    def reembed(
        path: str | os.PathLike[str],
        *,
        embedder: Embedder | str,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Makes the vectors of all memories in a place anew; how many.

        With the embedder that they are stored with, those that are missing are made. Until it is done, the
        place is what it was. It may be interrupted, and goes on from there with the same embedder; with the
        stored one, what another had begun is given up. Nobody has a directory open meanwhile; of a database
        anybody may use the memories, and whoever does has to open them again when it is done.

        Args:
            path: as `Engram.open`, but of memories that exist.
            embedder: what makes the vectors, itself or by its name (`embedder_named`).
            progress: called with the memories that are done and all that there are.

        Raises:
            LockedError: a process has the directory open.
            DatabaseError: the database can't be used, or another process is making its vectors anew.
            FileNotFoundError: there is no such directory.
            NotInstalledError: what the embedder, or the database, needs is not installed.
            OSError: the embedder's model is not there.
            ValueError: no embedder, or one that is not accepted; an address that is none.
        """
        chosen = embedder_named(embedder) if isinstance(embedder, str) else embedder
        if chosen is None:
            raise ValueError(f"embedder={embedder!r} is none: pass what makes the vectors")
        return reembed(path, chosen, progress)

    @property
    def embedder(self) -> Embedder | None:
        """What makes the vectors."""
        return self._embedder

    def remember(
        self,
        text: str,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        source: str | None = None,
        author: str | None = None,
        valid_from: datetime | None = None,
        valid_to: datetime | None = None,
    ) -> int:
        """Stores one memory, durably; its number.

        Memories of one session, in their order, are found by their neighbours' words too.

        Args:
            text: 1 byte to 1 MiB.
            user: whose it is.
            agent: whose in particular.
            project: what it belongs to.
            session: the conversation that it is from.
            metadata: anything that JSON holds, at most 64 KiB.
            source: where it came from, as text.
            author: who said it; questions that name who are answered better.
            valid_from: from when it is true; now if not given.
            valid_to: until when, if that is known.

        Raises:
            ValueError: an argument that is not accepted.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        drafts = [draft_of(text, metadata, source, author=author, valid_from=valid_from, valid_to=valid_to)]
        return self._remember(scope, drafts)[0]

    def remember_many(
        self,
        texts: Sequence[str],
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        authors: Sequence[str | None] | None = None,
        source: str | None = None,
        valid_from: datetime | None = None,
    ) -> list[int]:
        """Stores many memories of one scope with one sync; their numbers, in order.

        `metadata` and `authors` have one entry for each text; the rest holds for all of them. Either all of
        `texts` are accepted, or none is stored.

        Raises:
            ValueError: an argument that is not accepted.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one text; use remember, or pass a list")  # noqa: TRY004
        extras = one_for_each("metadata", metadata, texts)
        names = one_for_each("authors", authors, texts)
        scope = Scope(user=user, agent=agent, project=project, session=session)
        drafts = [
            draft_of(text, extra, source, author=author, valid_from=valid_from)
            for text, extra, author in zip(texts, extras, names, strict=True)
        ]
        return self._remember(scope, drafts) if drafts else []

    def recall(
        self,
        query: str,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        k: int | None = None,
        tokens: int | None = None,
        as_of: datetime | None = None,
        known_at: datetime | None = None,
        weights: Mapping[str, float] | None = None,
        count: Callable[[str], int] = count_tokens,
    ) -> list[Recalled]:
        """The memories that answer a query best, the best first.

        Args:
            query: a question or words.
            user: whose memories; `agent`, `project` and `session` narrow them.
            agent: see `user`.
            project: see `user`.
            session: see `user`.
            k: how many; 5 if neither `k` nor `tokens` is given.
            tokens: a budget of tokens: as many of the best as fit, each whole.
            as_of: what was true then, instead of what is true now.
            known_at: as it was known then.
            weights: what signals count, by the names of `Recalled.parts`; the engine's if not given.
            count: the tokens of a text; about a quarter of its bytes if not given.

        Raises:
            ValueError: an argument that is not accepted.
        """
        if k is not None and tokens is not None:
            raise ValueError("pass k or tokens, not both")
        scope = Scope(user=user, agent=agent, project=project, session=session)
        vector = None if self._embedder is None else embed_query(self._embedder, query)
        default = 5 if tokens is None else BUDGET_CANDIDATES
        when = (to_ms(as_of, name="as_of"), to_ms(known_at, name="known_at"), False)
        hits = self._engine.recall(
            scope.parts(),
            text=query,
            vector=vector,
            k=default if k is None else k,
            when=when,
            weights=None if weights is None else dict(weights),
        )
        recalled = [Recalled(memory=Memory.of(told), score=score, parts=parts) for told, score, parts in hits]
        return recalled if tokens is None else within(recalled, tokens, count)

    def update(
        self,
        id: int,
        text: str,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        source: str | None = None,
        author: str | None = None,
        valid_from: datetime | None = None,
    ) -> int:
        """Stores what is true instead of memory `id`, in that one's scope; its number.

        The older one stays in the history, true until `valid_from`.

        Raises:
            MemoryNotFoundError: no such memory in the scope.
            ValueError: it was superseded already, or an argument that is not accepted.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        draft = draft_of(text, metadata, source, author=author, valid_from=valid_from, supersedes=id)
        return self._remember(scope, [draft])[0]

    def end(
        self,
        id: int,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        valid_to: datetime | None = None,
    ) -> None:
        """Notes that a memory is true until `valid_to` only; until now if not given.

        Raises:
            MemoryNotFoundError: no such memory in the scope.
            ValueError: it was superseded, or became true later than that.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        time = to_ms(datetime.now(UTC) if valid_to is None else valid_to, name="valid_to")
        assert time is not None
        self._engine.end(scope.parts(), id, time)

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
        """Erases memories, with all versions of each, from every file or table; how many records went.

        Args:
            ids: one number or several; or None together with `everything`.
            user: whose; `agent`, `project` and `session` narrow it.
            agent: see `user`.
            project: see `user`.
            session: see `user`.
            everything: erases all that the scope covers.

        Raises:
            MemoryNotFoundError: one of them is not in the scope; nothing is erased then.
            ValueError: neither `ids` nor `everything`, or both.
        """
        if (ids is None) != everything:
            raise ValueError("pass the numbers of what is to be erased, or everything=True")
        scope = Scope(user=user, agent=agent, project=project, session=session)
        chosen = [ids] if isinstance(ids, int) else ids
        with self._beside.forgetting(user):
            return self._engine.forget(scope.parts(), None if chosen is None else list(chosen))

    def retain(
        self,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        max_age: timedelta | None = None,
        max_count: int | None = None,
        max_bytes: int | str | None = None,
    ) -> int:
        """Erases what is beyond the limits in a scope, the oldest first; how many records went.

        Args:
            user: whose; `agent`, `project` and `session` narrow it.
            agent: see `user`.
            project: see `user`.
            session: see `user`.
            max_age: since a memory was recorded.
            max_count: memories, past versions included.
            max_bytes: of the memories' records, vectors included; bytes or text ("100MiB").

        Raises:
            ValueError: no limit, or one that is not accepted.
        """
        if max_age is not None and max_age < timedelta(0):
            raise ValueError(f"max_age={max_age}: expected a time of 0 or more")
        scope = Scope(user=user, agent=agent, project=project, session=session)
        bytes_max = None if max_bytes is None else parse_bytes(max_bytes, name="max_bytes", minimum=0)
        with self._beside.forgetting(user):
            return self._engine.retain(
                scope.parts(),
                age_ms_max=None if max_age is None else max_age // timedelta(milliseconds=1),
                count_max=max_count,
                bytes_max=bytes_max,
            )

    def history(
        self,
        id: int,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
    ) -> list[Memory]:
        """All versions of a memory, the oldest first.

        Raises:
            MemoryNotFoundError: no such memory in the scope.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        return [Memory.of(told) for told in self._engine.history(scope.parts(), id)]

    def list(
        self,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
        as_of: datetime | None = None,
        known_at: datetime | None = None,
        past: bool = False,
    ) -> Iterator[Memory]:
        """The memories of a scope, in the order in which they were recorded.

        Args:
            user: whose; `agent`, `project` and `session` narrow it.
            agent: see `user`.
            project: see `user`.
            session: see `user`.
            as_of: what was true then, instead of what is true now.
            known_at: as it was known then.
            past: all versions, true or not.
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        when = (to_ms(as_of, name="as_of"), to_ms(known_at, name="known_at"), past)
        return self._list(scope, when)

    def _list(self, scope: Scope, when: When) -> Iterator[Memory]:
        after = 0
        while told := self._engine.list(scope.parts(), when=when, after=after, limit=CHUNK):
            yield from map(Memory.of, told)
            after = told[-1]["id"]

    def stats(
        self,
        *,
        user: str,
        agent: str | None = None,
        project: str | None = None,
        session: str | None = None,
    ) -> dict[str, Any]:
        """What a scope covers.

        `memories` (past versions included), `present`, `vectors` (memories that have one), `log_bytes` of the
        user's file, `damaged` (stretches of it that could not be read), `embedder` (its identity, or None).
        """
        scope = Scope(user=user, agent=agent, project=project, session=session)
        stored = self._engine.embedder
        return {**self._engine.stats(scope.parts()), "embedder": None if stored is None else stored[0]}

    def optimize(self, *, user: str, progress: Callable[[int, int], object] | None = None) -> None:
        """Builds the index that finds near vectors among very many memories of a user.

        Without it recall looks at every vector. Users of up to 20,000 memories need none, and it does
        nothing. What is remembered later is looked at one by one until the next call. Forgetting drops the
        index. It may be interrupted, and goes on from there.

        Args:
            user: whose memories.
            progress: called with the memories that are done and all that there are.
        """
        scope = Scope(user=user)
        done, total = -1, 0
        while done < total:
            done, total = self._engine.optimize(scope.parts())
            if progress is not None:
                progress(done, total)

    def users(self) -> builtins.list[str]:
        """Everybody who has memories here: for the directory's owner."""
        return self._engine.users()

    def export(self, path: str | os.PathLike[str], *, user: str) -> int:
        """Writes all of a user's memories, past ones too, as JSON Lines; how many.

        The file is private to its owner and replaced whole. Vectors are left out.
        """
        return transfer.write(self.list(user=user, past=True), path)

    def import_(self, path: str | os.PathLike[str]) -> int:
        """Adds what `export` wrote, under new numbers; how many memories.

        Every line keeps its user and scope, its times, and what it supersedes; an end without a successor
        counts as known from now on. All lines are read and checked
        before one is stored.

        Raises:
            ValueError: a line that is not accepted; the message has its number.
        """
        memories = transfer.read(path)
        numbers: dict[tuple[str, int], int] = {}
        for chunk in transfer.chunks(memories, CHUNK):
            drafts = [transfer.again(memory, numbers) for memory in chunk]
            made = self._remember(chunk[0].scope, drafts)
            for memory, number in zip(chunk, made, strict=True):
                numbers[memory.scope.user, memory.id] = number
        self._end_again(memories, numbers)
        return len(memories)

    def _end_again(self, memories: Sequence[Memory], numbers: Mapping[tuple[str, int], int]) -> None:
        """Ends what ended without a successor."""
        replaced = {(memory.scope.user, memory.supersedes) for memory in memories}
        for memory in memories:
            key = (memory.scope.user, memory.id)
            if memory.closed is not None and memory.valid_to is not None and key not in replaced:
                ms = to_ms(memory.valid_to, name="valid_to")
                assert ms is not None
                self._engine.end(memory.scope.parts(), numbers[key], ms)

    def _check_known(self, id: int, user: str) -> None:
        """Refuses a number that is no memory's of the user.

        Raises:
            MemoryNotFoundError: it is not.
        """
        self._engine.history(Scope(user=user).parts(), id)

    def _remember(self, scope: Scope, drafts: Sequence[Draft]) -> builtins.list[int]:
        vectors = None
        if self._embedder is not None:
            vectors = embed(self._embedder, [draft[0] for draft in drafts])
        return self._engine.remember(scope.parts(), list(drafts), vectors)

    def flush(self) -> None:
        """Makes everything durable that `durable=False` has not."""
        self._engine.flush()

    def close(self) -> None:
        """Flushes and gives the directory back. Closing twice is no error."""
        self._engine.close()

    def __enter__(self) -> Engram:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    aremember = in_thread(remember)
    aremember_many = in_thread(remember_many)
    arecall = in_thread(recall)
    aupdate = in_thread(update)
    aforget = in_thread(forget)
    aend = in_thread(end)
    aretain = in_thread(retain)
    ahistory = in_thread(history)
    astats = in_thread(stats)
    aexport = in_thread(export)
    aimport = in_thread(import_)

    async def alist(self, **options: Any) -> builtins.list[Memory]:
        """As `list`, in a thread, all at once."""
        return await asyncio.to_thread(lambda: [*self.list(**options)])
