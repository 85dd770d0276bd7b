"""The hot tier's slots: never over the limit, never another page's bytes, nothing evicted that is in use."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stratakv.cache import staging
from stratakv.cache.hot_pages import HotPages
from stratakv.cache.store import POLICIES

CPU = torch.device("cpu")
SLOT_BYTES = 24


def key(number):
    return number.to_bytes(16, "little")


def page(number):
    """What page `number` holds."""
    return torch.arange(SLOT_BYTES).mul(number + 1).add(7).remainder(251).to(torch.uint8)


class Engine:
    """Reads pages, counts them, and can fail."""

    def __init__(self):
        self.reads = []
        self.fails = False

    def reader(self, numbers):
        def read(places, out):
            assert len(places) == len(out)
            if self.fails:
                raise LookupError("lost")
            self.reads += [numbers[place] for place in places]
            out.copy_(torch.stack([page(numbers[place]) for place in places]))

        return read


@pytest.mark.parametrize("policy", POLICIES)
@given(
    num_slots=st.integers(1, 7),
    steps=st.lists(st.tuples(st.lists(st.integers(0, 15), max_size=9), st.booleans()), max_size=25),
)
def test_what_is_held_is_what_was_asked_for(policy, num_slots, steps):
    pool, engine = HotPages(SLOT_BYTES, num_slots * SLOT_BYTES + 5, CPU, policy=policy), Engine()
    assert pool.num_slots == num_slots
    known: dict[int, int] = {}
    asked = 0
    for numbers, engine.fails in steps:
        before = len(engine.reads)
        try:
            slots = pool.hold([key(n) for n in numbers], engine.reader(numbers))
        except ValueError:
            assert len(set(numbers)) > num_slots
            continue
        except LookupError:
            assert engine.fails
            known = {}  # which ones are left is the policy's business
            continue
        asked += len(set(numbers))
        for number, slot in zip(numbers, slots.tolist(), strict=True):
            assert torch.equal(pool.slots[slot], page(number))
        fresh = engine.reads[before:]
        assert len(set(fresh)) == len(fresh), "a page is read once"
        assert set(fresh) <= set(numbers)
        assert len({(n, s) for n, s in zip(numbers, slots.tolist(), strict=True)}) == len(set(numbers))
        # What was not read again is where it was.
        now = dict(zip(numbers, slots.tolist(), strict=True))
        assert all(known[n] == s for n, s in now.items() if n in known and n not in fresh)
        known |= now
        assert len(pool) <= num_slots
    assert pool.counts.hits + pool.counts.misses == asked
    assert pool.counts.misses == len(engine.reads)
    assert pool.counts.copied_bytes == len(engine.reads) * SLOT_BYTES


def test_a_working_set_that_fits_is_read_once():
    pool, engine = HotPages(SLOT_BYTES, 6 * SLOT_BYTES, CPU), Engine()
    for _ in range(5):
        for numbers in ([0, 1, 2], [3, 4, 5]):
            pool.hold([key(n) for n in numbers], engine.reader(numbers))
    assert sorted(engine.reads) == list(range(6))
    assert (pool.counts.hits, pool.counts.misses, pool.counts.evictions) == (24, 6, 0)


def test_a_scan_that_does_not_fit_keeps_a_part():
    """The policy's promise (docs/policies.md): of N pages read in turn, room for C serves about C of N."""
    pool, engine = HotPages(SLOT_BYTES, 16 * SLOT_BYTES, CPU), Engine()
    for _ in range(30):
        for number in range(32):
            pool.hold([key(number)], engine.reader([number]))
    assert pool.counts.hits > 0.35 * 30 * 32


def test_many_pages_go_through_a_small_buffer(monkeypatch):
    monkeypatch.setattr(staging, "BUFFER_BYTES", 3 * SLOT_BYTES)
    pool, engine = HotPages(SLOT_BYTES, 20 * SLOT_BYTES, CPU), Engine()
    numbers = list(range(20))
    slots = pool.hold([key(n) for n in numbers], engine.reader(numbers))
    assert all(
        torch.equal(pool.slots[slot], page(n)) for n, slot in zip(numbers, slots.tolist(), strict=True)
    )


def test_what_can_not_be_is_refused():
    with pytest.raises(ValueError, match="holds no page: one takes 24"):
        HotPages(SLOT_BYTES, 23, CPU)
    with pytest.raises(ValueError, match="choose one of"):
        HotPages(SLOT_BYTES, 100, CPU, policy="oldest")
    pool = HotPages(SLOT_BYTES, 48, CPU)
    with pytest.raises(ValueError, match="3 pages and the hot tier has 2 slots"):
        pool.hold([key(n) for n in range(3)], Engine().reader([0, 1, 2]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_copies_on_their_own_stream_are_waited_for():
    device = torch.device("cuda")
    pool, engine = HotPages(SLOT_BYTES, 40 * SLOT_BYTES, device), Engine()
    for first in range(0, 400, 13):
        numbers = list(range(first, first + 40))
        slots = pool.hold([key(n) for n in numbers], engine.reader(numbers))
        expected = torch.stack([page(n) for n in numbers])
        assert torch.equal(pool.slots[slots.to(device)].cpu(), expected)
