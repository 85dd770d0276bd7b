"""Driving a model over a cache: prefill in chunks, greedy decoding token by token.

The invariant that sessions rest on: when a function here returns, or is stopped by Ctrl-C, the
cache covers whole tokens in every layer, namely all ids that it was given and every token that it
handed out. The end-of-answer token is never put into the cache.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import torch

from stratakv.cache.selection import Look
from stratakv.cli.output import Output
from stratakv.cli.progress import Progress, Tiers

if TYPE_CHECKING:
    from stratakv.cli.models import LoadedModel

__all__ = ["Driver", "Interrupt", "Prefilled", "StoppedError", "TextStream", "peak_rss_bytes", "tiers_of"]

KEEP_SECONDS = 60
"""Between two saves while a long text is read."""
LINE_TOKENS_MAX = 64  # a stream's open line is re-decoded per token: bounded, or long lines cost O(n^2)


class Cache(Protocol):
    """What is used of any transformers cache."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens covered."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens."""


@runtime_checkable
class Tiered(Protocol):
    """What a tiered cache also has."""

    def stats(self) -> dict[str, Any]:
        """Sizes and counters per tier."""


@runtime_checkable
class Looking(Protocol):
    """What a cache that finds its way in long contexts also has."""

    def look(self, input_ids: list[int], *, on_token: Callable[[int, int], None]) -> list[int]:
        """Finds the blocks that answer the end of a prompt."""

    def focus(self, blocks: Sequence[int]) -> None:
        """Blocks that all heads read."""


class StoppedError(Exception):
    """The user pressed Ctrl-C, and the cache is at a token boundary."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"stopped after {done} of {total} tokens")
        self.done = done
        self.total = total


class Interrupt:
    """Turns the first Ctrl-C into a flag that is looked at between chunks and tokens.

    A second Ctrl-C raises KeyboardInterrupt at once. The previous handler comes back on exit.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = signal.SIG_DFL

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@dataclass(frozen=True)
class Prefilled:
    """What a prefill did: tokens it computed, how long it took, and the last position's logits (V,)."""

    tokens: int
    seconds: float
    logits_V: torch.Tensor  # noqa: N815  the shape suffix


class Driver:
    """One model over one cache: what the commands do between loading and reporting.

    Args:
        loaded: the model and its tokenizer.
        cache: a transformers cache, made for the model.
        interrupt: looked at between chunks and tokens.
        out: where progress is shown.
        chunk: tokens per step of a prefill.
        show: whether progress is shown; None on a terminal only.
        keep: saves the cache. Called each minute of a prefill, so that a killed process loses no more, and
            when it is stopped.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: Cache,
        *,
        interrupt: Interrupt,
        out: Output,
        chunk: int = 512,
        show: bool | None = None,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.cache = cache
        self.interrupt = interrupt
        self.out = out
        self.chunk = chunk
        self.show = show
        self.keep = keep

    def prefill(self, ids: Sequence[int], *, label: str = "prefill", quiet: bool = False) -> Prefilled:
        """Makes the cache cover all of `ids`, of which it may already cover a prefix.

        Where it covers all of them, the last token is computed again: its logits are needed.

        Raises:
            StoppedError: Ctrl-C; the chunks done so far are in the cache, and kept.
        """
        covered = self.cache.get_seq_length()
        if covered >= len(ids):
            self.cache.crop(len(ids) - 1 - covered)
            covered = len(ids) - 1
        start = kept = time.perf_counter()
        logits_V = torch.empty(0)
        show = False if quiet else self.show
        with Progress(self.out.stderr, label=label, total=len(ids), done=covered, show=show) as progress:
            for position in range(covered, len(ids), self.chunk):
                if self.interrupt.requested:
                    self._stop(position, len(ids))
                if self.keep is not None and time.perf_counter() > kept + KEEP_SECONDS:
                    self.keep()
                    kept = time.perf_counter()
                piece = ids[position : position + self.chunk]
                logits_V = self.step(piece)
                progress.update(position + len(piece), self._tiers() if progress.enabled else None)
        return Prefilled(len(ids) - covered, time.perf_counter() - start, logits_V)

    def _stop(self, done: int, total: int) -> NoReturn:
        if self.keep is not None:
            self.keep()
        raise StoppedError(done, total)

    def prefill_question(
        self, ids: Sequence[int], *, look: bool = True, label: str = "prefill", quiet: bool = False
    ) -> Prefilled:
        """Like `prefill`, of a prompt that ends in a question.

        Where the context is longer than the model was trained on, the question is looked up first, which
        takes another pass over its last tokens. Without `look`, or with another cache, it is not.

        Raises:
            StoppedError: Ctrl-C; the cache covers whole tokens.
        """
        if not isinstance(self.cache, Looking):
            return self.prefill(ids, label=label, quiet=quiet)
        self.cache.focus([])
        if not look:
            return self.prefill(ids, label=label, quiet=quiet)
        tokens, seconds = 0, 0.0
        before = len(ids) - Look().question
        if self.cache.get_seq_length() < before:
            read = self.prefill(ids[:before], label=label, quiet=quiet)
            tokens, seconds = read.tokens, read.seconds
        elif self.cache.get_seq_length() >= len(ids):
            self.cache.crop(len(ids) - 1 - self.cache.get_seq_length())

        def check_interrupt(done: int, total: int) -> None:
            if self.interrupt.requested:
                self._stop(self.cache.get_seq_length(), len(ids))

        start = time.perf_counter()
        self.cache.look(list(ids), on_token=check_interrupt)
        seconds += time.perf_counter() - start
        rest = self.prefill(ids, label=label, quiet=quiet or tokens > 0)
        return Prefilled(tokens + rest.tokens, seconds + rest.seconds, rest.logits_V)

    def decode(self, logits_V: torch.Tensor, max_new_tokens: int) -> Iterator[int]:
        """Greedy tokens, until the answer ends, the limit is reached, or Ctrl-C.

        A token is handed out before the next is computed, so that it can be shown at once.
        """
        for _ in range(max_new_tokens):
            token = int(logits_V.argmax())
            if token in self.loaded.stop_ids:
                return
            yield token
            logits_V = self.step([token])
            if self.interrupt.requested:
                return

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> torch.Tensor:
        """One forward pass over `ids` (T); the logits (V,) of the last."""
        from stratakv.hf.library import cache_kwargs, last_logits_only

        model = self.loaded.model
        input_ids_BT = torch.tensor([list(ids)], device=model.device)
        options = cache_kwargs(self.cache) | last_logits_only(model)
        result = model(input_ids=input_ids_BT, use_cache=True, **options)
        logits_V: torch.Tensor = result.logits[0, -1]
        return logits_V

    def _tiers(self) -> Tiers | None:
        return tiers_of(self.cache) if isinstance(self.cache, Tiered) else None


class TextStream:
    """Token ids in, printable text out, never half a character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.shown = 0

    def push(self, token: int) -> str:
        """The text that this token adds; empty while a character is incomplete."""
        self.ids.append(token)
        text = self._decode()
        if text.endswith("\ufffd"):
            return ""
        new = text[self.shown :]
        if text.endswith("\n") or len(self.ids) >= LINE_TOKENS_MAX:
            self.ids = [] if text.endswith("\n") else self.ids[-1:]
            self.shown = 0 if text.endswith("\n") else len(self._decode())
        else:
            self.shown = len(text)
        return new

    def finish(self) -> str:
        """Whatever is left, an incomplete character included."""
        return self._decode()[self.shown :]

    def _decode(self) -> str:
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return text


def tiers_of(cache: Tiered) -> Tiers:
    """Where the cache's bytes are now."""
    stats = cache.stats()
    ram, disk, hot = stats["ram"], stats["disk"], stats.get("hot", {})
    return Tiers(
        ram["used_bytes"],
        ram["limit_bytes"],
        disk["used_bytes"],
        disk["limit_bytes"],
        hot.get("used_bytes"),
        hot.get("limit_bytes"),
    )


def peak_rss_bytes() -> int | None:
    """The most memory that this process has had resident; None where the system does not tell."""
    try:
        # Linux's getrusage counts what a parent held when it started this process: not this.
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
