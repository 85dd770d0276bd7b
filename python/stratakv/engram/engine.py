"""What keeps memories, as `Engram` needs it: the engine of files, or one over a database."""

from __future__ import annotations

import builtins
from typing import Any, Protocol, TypeAlias, runtime_checkable

# User, agent, project, session.
ScopeParts: TypeAlias = tuple[str, str | None, str | None, str | None]
# Text, metadata, source, author, valid from, valid to, recorded, superseded number.
Draft: TypeAlias = tuple[str, str, str | None, str | None, int | None, int | None, int | None, int | None]
# As of, known at, whatever was recorded.
When: TypeAlias = tuple[int | None, int | None, bool]
# A memory by the names of `_native.Engram`.
Told: TypeAlias = dict[str, Any]


class Engine(Protocol):
    """Keeps memories and finds them; `_native.Engram` in the stub says what each call does and raises.

    Every call but `users`, `flush` and `close` takes a scope, and neither tells nor changes what it does
    not cover. Calls may come from any thread.
    """

    @property
    def embedder(self) -> tuple[str, int] | None:
        """Identity and dimension of what made the vectors."""

    def remember(
        self, scope: ScopeParts, drafts: builtins.list[Draft], vectors: Any | None = None
    ) -> builtins.list[int]:
        """Stores drafts, all or none of them, with vectors float32 (N, D); their numbers."""

    def recall(
        self,
        scope: ScopeParts,
        *,
        text: str | None = None,
        vector: Any | None = None,
        k: int,
        when: When | None = None,
        weights: dict[str, float] | None = None,
    ) -> builtins.list[tuple[Told, float, dict[str, float]]]:
        """The best `k`: memory, score and signals; `vector` is float32 (1, D)."""

    def get(self, scope: ScopeParts, id: int) -> Told:
        """One memory, past or present."""

    def list(
        self, scope: ScopeParts, *, when: When | None = None, after: int = 0, limit: int
    ) -> builtins.list[Told]:
        """Memories whose numbers are larger than `after`, in order."""

    def history(self, scope: ScopeParts, id: int) -> builtins.list[Told]:
        """All versions of a memory, the oldest first."""

    def end(self, scope: ScopeParts, id: int, valid_to: int) -> None:
        """Notes that a memory is true until `valid_to` only."""

    def forget(self, scope: ScopeParts, ids: builtins.list[int] | None = None) -> int:
        """Erases memories with all their versions, or all of the scope; how many records went."""

    def retain(
        self,
        scope: ScopeParts,
        *,
        age_ms_max: int | None = None,
        count_max: int | None = None,
        bytes_max: int | None = None,
    ) -> int:
        """Erases what is beyond the limits, the oldest first; how many records went."""

    def optimize(self, scope: ScopeParts) -> tuple[int, int]:
        """Takes a step of indexing the user's vectors; (done, total) memories."""

    def stats(self, scope: ScopeParts) -> dict[str, int]:
        """`memories`, `present`, `vectors`, `log_bytes` and `damaged`."""

    def users(self) -> builtins.list[str]:
        """Everybody who has memories, sorted."""

    def flush(self) -> None:
        """Makes everything durable."""

    def close(self) -> None:
        """Flushes, and lets go of everything. Closing twice is no error."""


@runtime_checkable
class Shared(Protocol):
    """An engine whose memories other processes change too."""

    def change(self, user: str) -> int:
        """A number that is another one after every write of a user's memories."""


class Reembedding(Protocol):
    """All vectors of a place made anew: texts are asked for and their vectors given, until there are none."""

    def progress(self) -> tuple[int, int]:
        """How many memories have their new vectors, of all that are to get one."""

    def texts(self, limit: int) -> builtins.list[str]:
        """The next texts to embed, `limit` at most; none when all have been."""

    def give(self, vectors: Any) -> None:
        """Takes the vectors, float32 (N, D), of the texts that were given out last, durably."""

    def finish(self) -> bool:
        """Makes the new vectors those of the place; False where memories came meanwhile, and go on then."""

    def close(self) -> None:
        """Stops, here or after the end; what was given is kept. Closing twice is no error."""
