"""Memories whose keys and values are kept: recalled into a running session, they are not computed again.

A text is computed once, and its pages go into a store beside the memories of its user. Whenever it is
recalled, they are spliced in where the session stands. The first tokens of any sequence draw attention to
themselves, which those of a text must not do in the middle of a session: so texts are computed behind some
others that are left out, or their first tokens are computed in the session. docs/memory.md has measurements.

Sources: a common beginning, Yang et al., "APE", 2025 (arXiv:2502.05431); first tokens computed again, Hu et
al., "EPIC", 2024 (arXiv:2410.15332).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from stratakv.cache.store import Store
from stratakv.hf.arguments import one_row, session_or_none
from stratakv.hf.attachment import attachment_of
from stratakv.hf.cache import TieredCache
from stratakv.hf.passes import feed
from stratakv.hf.splicing import check_paged

if TYPE_CHECKING:
    from types import TracebackType

    from stratakv.engram import Engram

__all__ = ["KeptPages", "Put"]

BOUNDARY_TOKENS = 32
"""Of a text that is kept behind nothing, computed in each session."""
KEEP_TOKENS_MIN = 64
"""Shorter texts are computed."""


@dataclass(frozen=True, kw_only=True)
class Put:
    """How a text came into a session: tokens that were computed in it, and tokens that were spliced in.

    `kept` says whether its pages were there already; else it was computed apart to make them.
    """

    computed: int
    spliced: int
    kept: bool

    @property
    def tokens(self) -> int:
        """Of the text."""
        return self.computed + self.spliced


class KeptPages:
    """Keys and values of one user's memories, on disk beside the memories; for sessions of one model.

        with stratakv.attach(model), stratakv.KeptPages(memory, model, user="ana") as pages:
            for found in memory.recall(question, user="ana", k=3):
                pages.put(cache, tokenizer(found.text)["input_ids"], id=found.id)

    They are derived from the memories: forgetting any of a user's memories removes all pages of that user,
    and each is made again when it is recalled the next time. What was put into a session stays there, as
    a recalled text stays in a prompt. Calls may come from any thread.

    Args:
        memory: where the texts are, in a directory; stays the caller's to close.
        model: attached, and the sessions'.
        user: whose memories.
        behind: tokens that texts are computed behind and that do not come into a session: how the sessions
            begin, such as a chat template's start and a sentence that announces notes. With another beginning
            texts are computed and kept anew. Without, a text's first 32 tokens are computed in each session.
        ram: limit of their pages in RAM, bytes or text ("256MiB").
        disk_limit: limit of their files; texts that were not recalled for longest go first. None is bounded
            by the free space only.

    Raises:
        ValueError: a model that is not attached, or whose layers do not all keep pages; memories in a
            database; an argument that is not accepted.
    """

    def __init__(
        self,
        memory: Engram,
        model: nn.Module,
        *,
        user: str,
        behind: Sequence[int] = (),
        ram: int | str = "256MiB",
        disk_limit: int | str | None = None,
    ) -> None:
        if attachment_of(model) is None:
            raise ValueError(
                "kept pages stand at any place of a session, which takes keys without positions: make "
                "KeptPages inside `with stratakv.attach(model):`"
            )
        self.user = user
        self._memory = memory
        self._model = model
        self._behind = list(behind)
        self._ram, self._disk_limit = ram, disk_limit
        self._beside = memory._beside
        self._directory = self._beside.directory_of(user)
        self._store: Store | None = None
        try:
            with self._open_cache(None) as empty:
                check_paged(empty)
        except BaseException:
            self._let_go()
            raise
        self._beside.add(user, self._let_go)

    def put(self, cache: TieredCache, input_ids: Tensor | list[int], *, id: int) -> Put:
        """Appends a memory's text to a session, without computing what is kept of it.

        Computed are texts of less than 64 tokens, and what a session begins with: there it is exact.

        Args:
            cache: a session of the model; of one row.
            input_ids: the text's tokens, (N,) or (1, N), without special tokens.
            id: the memory's number.

        Raises:
            MemoryNotFoundError: the user has no such memory (any more).
            ValueError: no tokens, a batch, or another model's cache.
            RamFullError, DiskFullError: no room; the session may hold the text's beginning.
        """
        ids = one_row(input_ids)
        with self._beside.deriving(self.user):
            self._memory._check_known(id, self.user)
            if len(ids) < KEEP_TOKENS_MIN or not cache.get_seq_length():
                feed(self._model, cache, ids)
                return Put(computed=len(ids), spliced=0, kept=False)
            whole = self._behind + ids
            with self._open_cache(whole) as text:
                kept = int(text.get_seq_length())
                if kept < len(whole):
                    feed(self._model, text, whole[kept:])
                    text.save()
                boundary = 0 if self._behind else BOUNDARY_TOKENS
                feed(self._model, cache, ids[:boundary])
                spliced = cache.splice(text, len(self._behind) + boundary)
        return Put(computed=boundary, spliced=spliced, kept=kept == len(whole))

    def used_bytes(self) -> int:
        """What the pages take on disk."""
        with self._beside.deriving(self.user):
            return int(self._opened().stats()["disk"]["used_bytes"])

    def close(self) -> None:
        """Lets go of the files. Closing twice is no error."""
        with self._beside.deriving(self.user):
            self._let_go()
            with contextlib.suppress(ValueError):
                self._beside.remove(self.user, self._let_go)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_cache(self, ids: list[int] | None) -> TieredCache:
        """A text's session with all of its tokens that are kept, or an empty one."""
        self._opened()
        cache = TieredCache.open(
            self._model, self._directory, ram=self._ram, disk_limit=self._disk_limit, precision="full"
        )
        if ids is not None:
            assert cache.binding is not None
            assert cache.attachment is not None
            made_by = f"{cache.binding.identity.hex()} {cache.attachment.settings} {self._model.dtype} {ids}"
            cache.name = hashlib.sha256(made_by.encode()).hexdigest()
            saved = session_or_none(cache._store, cache.name)
            if saved is not None:
                cache._resume(saved, hold_back=False)
        return cache

    def _opened(self) -> Store:
        """The store; one handle stays open between calls."""
        if self._store is None:
            self._store = Store(self._directory, ram=self._ram, disk_limit=self._disk_limit)
        return self._store

    def _let_go(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
