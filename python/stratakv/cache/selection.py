"""What a step of decoding reads of a long context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BLOCK_TOKENS = 16
"""Tokens of a block, the unit of selection (the engine's)."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How much a step reads per KV head, in tokens; rounded up to blocks of 16.

    Attributes:
        budget: tokens that a step reads, sinks and window included. Of contexts that are longer than what
            the model was trained on never more than that, however much it may grow.
        sinks: the first tokens, always read.
        window: the last tokens, always read.
        recent: share of the budget that goes to the last tokens where a step reads a context longer than what
            the model was trained on, and has no focus; at least the window.
        dense_below: contexts of up to so many tokens are read whole; None is twice the budget, or the
            length that the model was trained on where that is less.
        dense_prefill_below: the same for a prefill, which selects for 64 tokens at a time; None is the
            length that the model was trained on.
        unread: share of the attention mass, estimated from the summaries, above which a step
            reads more than the budget; 1 never does.
        growth: how many budgets such a step may read, at most.
        critical_fraction: share of what a step reads that it reads in 16 bits, the blocks of the largest
            attention mass; the rest in FP8. Of a cache of mixed precision; others read 16 bits always.
        sketches: whether the far blocks of a long context are told from sketches, at a cost that does not
            grow with the context. Without, every block is estimated from its summary.

    Raises:
        ValueError: a number out of range; the message says what is accepted.
    """

    budget: int = 2048
    sinks: int = 16
    window: int = 128
    recent: float = 0.875
    dense_below: int | None = None
    dense_prefill_below: int | None = None
    unread: float = 0.1
    growth: float = 2.0
    critical_fraction: float = 0.05
    sketches: bool = True

    def __post_init__(self) -> None:
        for name in ("budget", "sinks", "window", "dense_below", "dense_prefill_below"):
            value = getattr(self, name)
            if value is None and name.startswith("dense"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}={value!r}: accepted are whole numbers of tokens from 0 on")
        least = BLOCK_TOKENS * (_blocks(self.sinks) + _blocks(self.window) + 1)
        if self.budget < least:
            raise ValueError(
                f"budget={self.budget}: {self.sinks} sinks and a window of {self.window} tokens need at "
                f"least {least}"
            )
        if not 0.0 <= self.unread <= 1.0:
            raise ValueError(f"unread={self.unread!r}: accepted are shares from 0 to 1")
        if not 0.0 <= self.recent <= 1.0:
            raise ValueError(f"recent={self.recent!r}: accepted are shares from 0 to 1")
        if not 1.0 <= self.growth <= 1024.0:
            raise ValueError(f"growth={self.growth!r}: accepted are factors from 1 to 1024")
        if not 0.0 <= self.critical_fraction <= 1.0:
            raise ValueError(f"critical_fraction={self.critical_fraction!r}: accepted are shares from 0 to 1")

    @classmethod
    def of(cls, budget: int | Selection | None) -> Selection | None:
        """A selection from what `budget=` takes: tokens, a selection, or None for everything."""
        if budget is None or isinstance(budget, Selection):
            return budget
        return cls(budget=budget)

    def reads_all_of(self, tokens: int, trained_tokens: int) -> bool:
        """Whether a step over a context of that length reads it whole, in a model of that trained length."""
        return tokens <= self._dense_tokens(trained_tokens)

    def far_blocks(self, tokens: int) -> range:
        """The blocks of a context of that length between the sinks and the window."""
        return range(_blocks(self.sinks), max(tokens - self.window, 0) // BLOCK_TOKENS)

    def _dense_tokens(self, trained_tokens: int) -> int:
        return _or(self.dense_below, min(2 * self.budget, trained_tokens))

    def native(self, trained_tokens: int) -> dict[str, Any]:
        """The engine's arguments; contexts past `trained_tokens` are numbered by what is read."""
        return {
            "blocks": _blocks(self.budget),
            "sinks": _blocks(self.sinks),
            "window": _blocks(self.window),
            "recent": int(self.recent * self.budget) // BLOCK_TOKENS,
            "unread": self.unread,
            "growth": self.growth,
            "critical": self.critical_fraction,
            "dense_below": self._dense_tokens(trained_tokens),
            "dense_prefill_below": _or(self.dense_prefill_below, trained_tokens),
            "trained_tokens": trained_tokens,
            "sketches": self.sketches,
        }


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a question is looked up in a context that is longer than its model was trained on.

    Attributes:
        places: so many blocks, those that make the question most likely, are then read by all heads.
        neighbours: blocks on each side of a place that are read with it.
        candidates: so many places that the heads vote for, and as many that have the question's words, are
            read one at a time, to see how likely each makes the question; 0 goes by the votes alone.
        own: blocks that each head chooses besides.
        question: tokens at the end of the prompt that ask; the more, the longer it takes.
        budget: tokens that a step reads per head while it looks.

    Raises:
        ValueError: a number out of range; the message says what is accepted.
    """

    places: int = 4
    neighbours: int = 4
    candidates: int = 16
    own: int = 0
    question: int = 64
    budget: int = 2048

    def __post_init__(self) -> None:
        least = {"places": 1, "neighbours": 0, "candidates": 0, "own": 0, "question": 1, "budget": 256}
        for name, accepted in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < accepted:
                raise ValueError(f"{name}={value!r}: accepted are whole numbers from {accepted} on")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
