"""Streams that are written again in the backward pass, not kept: S * C values a token and connection.

    with streams_recomputed(every=group_size(4, len(connections))):
        for connection, branch in zip(connections, branches):
            x = connection(x, branch)
    loss(x).backward()

Of a group of connections the first one's streams are kept. The others' follow from what the branches gave,
which is kept anyway, by the second half of a connection: no branch runs twice. It is for connections that are
computed by kernels (`fused.py`); the streams are those that were, bit for bit.

Source: mHC (arXiv 2512.24880), section 4.3.2. Differs: what a branch reads, C values a token, stays with the
branch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

# From streams, a branch's output, post and comb to the streams after: `fused.mix_and_add`.
Writing = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Written:
    """Streams (N, S, C) that can be written again.

    Args:
        before: the streams before the branch, or how to write these again.
        parts: the branch's output (N, C), post (N, S) and comb (N, S, S), without their graph.
        writing: what writes.
    """

    def __init__(
        self, before: Tensor | Written, parts: tuple[Tensor, Tensor, Tensor], writing: Writing
    ) -> None:
        self._before, self._parts, self._writing = before, parts, writing
        self._again: Tensor | None = None
        # How many were written since streams that are kept.
        self.distance: int = 1 if isinstance(before, Tensor) else before.distance + 1

    def again(self) -> Tensor:
        """The streams; those before them in the group stay in memory until they were asked for too."""
        if self._again is None:
            before = self._before if isinstance(self._before, Tensor) else self._before.again()
            self._again = self._writing(before, *self._parts)
        return self._again

    def release(self) -> None:
        """Lets the streams go."""
        self._again = None


class _Tape:
    """What was written last, while streams are recomputed."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._last: tuple[weakref.ref[Tensor], int, Written] | None = None

    def known(self, x_SC: Tensor) -> Written | None:
        if self._last is None:
            return None
        reference, version, written = self._last
        is_same = reference() is x_SC and version == x_SC._version
        return written if is_same and written.distance < self.every else None

    def remember(self, out_SC: Tensor, written: Written) -> None:
        self._last = weakref.ref(out_SC), out_SC._version, written


_tape: ContextVar[_Tape | None] = ContextVar("streams that are recomputed", default=None)


@contextmanager
def streams_recomputed(*, every: int) -> Iterator[None]:
    """Within it, connections keep the streams of every so many of them.

    Args:
        every: connections of a group, at least 1 (which keeps all).

    Raises:
        ValueError: every < 1.
    """
    if every < 1:
        raise ValueError(f"every={every} must be at least 1")
    token = _tape.set(_Tape(every))
    try:
        yield
    finally:
        _tape.reset(token)


def group_size(num_streams: int, num_connections: int) -> int:
    """What takes the least memory: S C for each group, and (S + 2) C for each connection of one."""
    return max(1, round(math.sqrt(num_streams * num_connections / (num_streams + 2))))


def is_on() -> bool:
    """Whether streams are to be written again."""
    return _tape.get() is not None and torch.is_grad_enabled()


def known(x_SC: Tensor) -> Written | None:
    """How to write these streams again; None where they are to be kept."""
    tape = _tape.get()
    return tape.known(x_SC) if tape is not None and torch.is_grad_enabled() else None


def remember(out_SC: Tensor, written: Written) -> None:
    """How these streams were written, for the connection that reads them next."""
    tape = _tape.get()
    if tape is not None:
        tape.remember(out_SC, written)
