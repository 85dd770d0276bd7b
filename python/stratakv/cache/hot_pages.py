"""The hot tier: pages in slots on a device, under a byte limit.

A slot holds one plane of one page; all slots of a pool have one size. Pages are known by the identities
that the engine gives them, so that rows, forks and sessions with a common prefix share slots, and what
was cropped or rewritten is another page. Which pages stay is the engine's policy's choice.

What it is not: it reads no page itself (the caller does, into the buffer that it is given), and knows
nothing of what bytes mean. The invariant: a slot whose key is known holds that page's bytes, or a guess is
being copied there, which every call waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from stratakv import _native
from stratakv.cache.staging import staging_for


@dataclass
class HotCounts:
    """What a pool did since it was made.

    Attributes:
        hits: pages that were asked for and there, guesses among them.
        misses: pages that had to be copied while they were waited for.
        guesses: pages that were copied ahead.
        guesses_read: of these, the ones that were asked for next; the others were copied in vain.
        evictions: pages that left for others.
        copied_bytes: bytes of misses and guesses.
    """

    hits: int = 0
    misses: int = 0
    guesses: int = 0
    guesses_read: int = 0
    evictions: int = 0
    copied_bytes: int = 0


Read: TypeAlias = Callable[[list[int], Tensor], None]
"""Writes the pages at places of the keys that were asked for into (N, bytes) uint8 on the CPU."""


class HotPages:
    """Slots of a device.

    Args:
        slot_bytes: bytes of a page's plane.
        limit_bytes: bytes of all slots together; rounded down to whole slots.
        device: where they are.
        policy: which pages stay, one of `stratakv.cache.store.POLICIES`.

    Raises:
        ValueError: a limit that holds no slot, or an unknown policy.
    """

    def __init__(
        self, slot_bytes: int, limit_bytes: int, device: torch.device, *, policy: str = "auto"
    ) -> None:
        num_slots = limit_bytes // slot_bytes
        if num_slots < 1:
            raise ValueError(f"a hot tier of {limit_bytes} bytes holds no page: one takes {slot_bytes}")
        # Not a tensor of inference mode, which nobody could write outside it.
        with torch.inference_mode(mode=False):
            self.slots = torch.empty(num_slots, slot_bytes, dtype=torch.uint8, device=device)
        self.counts = HotCounts()
        self._policy = _native.Policy(policy, capacity_pages=num_slots)
        self._staging = staging_for(slot_bytes, device)
        self._free = list(range(num_slots))
        self._resident: dict[bytes, int] = {}
        # Pages that the policy did not admit, or was not asked about: there until the next call needs their
        # slots.
        self._passing: dict[bytes, int] = {}
        self._guessed: set[bytes] = set()
        self._copying: Future[None] | None = None

    @property
    def num_slots(self) -> int:
        """Slots, used or not."""
        return len(self.slots)

    def __len__(self) -> int:
        """Pages that are there."""
        return len(self._resident) + len(self._passing)

    def hold(self, keys: list[bytes], read: Read) -> Tensor:
        """Brings pages to slots, where they stay until the next call of this or of `guess`.

        Args:
            keys: identities of the pages; any of them several times.
            read: writes the pages at places of `keys`.

        Returns:
            (len(keys)) int64 on the CPU: the slot of each.

        Raises:
            ValueError: more pages than slots; nothing changed then.
        """
        self.settle()
        places = {key: place for place, key in enumerate(keys)}
        if len(places) > self.num_slots:
            raise ValueError(
                f"a step reads {len(places)} pages and the hot tier has {self.num_slots} slots for them: "
                "raise hot=, or lower the budget"
            )
        missing = [key for key in places if key not in self]
        self._policy.touch([key for key in places if key in self._resident])
        self._welcome([key for key in places if key in self._guessed], places)
        if missing:
            self._bring(missing, places, read)
        self.counts.hits += len(places) - len(missing)
        return torch.tensor([self._slot(key) for key in keys], dtype=torch.int64)

    def guess(self, keys: list[bytes], read: Read, worker: Executor) -> None:
        """Starts to bring pages that may be asked for next, where no page has to leave for them.

        They come into slots that are free, or whose pages passed through. What was launched before still
        finds there what it was launched for. A guess that can't be read is forgotten.

        Args:
            keys: identities of the pages, the likeliest first.
            read: as for `hold`; called on the worker's thread.
            worker: runs it.
        """
        self.settle()
        places = {key: place for place, key in enumerate(keys)}
        passed = [key for key in self._passing if key not in places]
        missing = [key for key in places if key not in self][: len(self._free) + len(passed)]
        if not missing:
            return
        self._free += [self._passing.pop(key) for key in passed[: max(len(missing) - len(self._free), 0)]]
        taken, self._free = self._free[: len(missing)], self._free[len(missing) :]
        self._passing |= dict(zip(missing, taken, strict=True))
        self._guessed = set(missing)
        self.counts.guesses += len(missing)
        self.counts.copied_bytes += len(missing) * self.slots.shape[1]

        def fill(pages: range, buffer: Tensor) -> None:
            read([places[missing[page]] for page in pages], buffer)

        mark = self._staging.mark()
        self._copying = worker.submit(self._staging.copy, self.slots, torch.tensor(taken), fill, mark)

    def settle(self) -> None:
        """Waits for what `guess` began to read."""
        if self._copying is None:
            return
        failed = self._copying.exception()
        self._copying = None
        if failed is None:
            self._staging.arrive()
        else:
            self._free += [self._passing.pop(key) for key in self._guessed]
            self._guessed.clear()

    def _welcome(self, guessed: list[bytes], wanted: dict[bytes, int]) -> None:
        """Keeps those of the guesses that are wanted which the policy admits, as it does what is missing."""
        self._guessed.clear()
        if not guessed:
            return
        self.counts.guesses_read += len(guessed)
        stays = [key for key, admitted in zip(guessed, self._policy.admit(guessed), strict=True) if admitted]
        # Room for the next guesses: as many leave, where there is none.
        evicted = self._policy.evict(max(len(stays) - len(self._free), 0), keep=list(wanted))
        self._free += [self._resident.pop(key) for key in evicted]
        self.counts.evictions += len(evicted)
        self._resident |= {key: self._passing.pop(key) for key in stays}
        self._policy.insert(stays, self.slots.shape[1])

    def __contains__(self, key: bytes) -> bool:
        """Whether a page is there."""
        return key in self._resident or key in self._passing

    def _slot(self, key: bytes) -> int:
        slot = self._resident.get(key)
        return self._passing[key] if slot is None else slot

    def _bring(self, missing: list[bytes], wanted: dict[bytes, int], read: Read) -> None:
        has_room = len(missing) <= len(self._free)
        stays = [admitted or has_room for admitted in self._policy.admit(missing)]
        taken = self._take(len(missing), sum(stays), wanted)

        def fill(pages: range, buffer: Tensor) -> None:
            read([wanted[missing[page]] for page in pages], buffer)

        try:
            self._staging.send(self.slots, torch.tensor(taken), fill)
        except BaseException:
            self._free += taken
            raise
        for key, slot, stay in zip(missing, taken, stays, strict=True):
            (self._resident if stay else self._passing)[key] = slot
        self._policy.insert(
            [key for key, stay in zip(missing, stays, strict=True) if stay], self.slots.shape[1]
        )
        self.counts.misses += len(missing)
        self.counts.copied_bytes += len(missing) * self.slots.shape[1]

    def _take(self, count: int, num_staying: int, wanted: dict[bytes, int]) -> list[int]:
        """So many slots, of pages that are not wanted.

        Those that pass through follow each other in the same few slots; for one that stays another leaves, as
        the policy weighed when it admitted it.
        """
        passed = [key for key in self._passing if key not in wanted]
        reused, others = passed[: count - num_staying], passed[count - num_staying :]
        self._free += [self._passing.pop(key) for key in reused]
        evicted = self._policy.evict(max(count - len(self._free), 0), keep=list(wanted))
        self._free += [self._resident.pop(key) for key in evicted]
        self.counts.evictions += len(evicted)
        lacking = max(count - len(self._free), 0)
        self._free += [self._passing.pop(key) for key in others[:lacking]]
        taken, self._free = self._free[:count], self._free[count:]
        return taken
