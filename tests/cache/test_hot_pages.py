"""The hot tier's slots: never over the limit, never another page's bytes, nothing evicted that is in use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
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


@pytest.fixture(scope="module")
def worker():
    with ThreadPoolExecutor(1) as worker:
        yield worker


NUMBERS = st.lists(st.integers(0, 15), max_size=9)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(
    num_slots=st.integers(1, 7),
    # Sometimes a guess comes first.
    steps=st.lists(st.tuples(NUMBERS, st.booleans(), st.none() | NUMBERS, st.booleans()), max_size=25),
)
def test_what_is_held_is_what_was_asked_for(policy, num_slots, steps, worker):
    pool, engine = HotPages(SLOT_BYTES, num_slots * SLOT_BYTES + 5, CPU, policy=policy), Engine()
    assert pool.num_slots == num_slots
    known: dict[int, int] = {}
    asked = guessed = 0
    for numbers, guess_fails, guess, hold_fails in steps:
        if guess is not None:
            engine.fails = guess_fails
            stayed = set(pool._resident)
            before = len(engine.reads)
            pool.guess([key(n) for n in guess], engine.reader(guess), worker)
            pool.settle()
            assert set(pool._resident) == stayed, "no page leaves for a guess"
            fresh = engine.reads[before:]
            assert len(set(fresh)) == len(fresh)
            assert set(fresh) <= set(guess)
            assert len(pool) <= num_slots
            guessed += len(fresh)
            # Pages that passed through may have left.
            known = {n: slot for n, slot in known.items() if key(n) in pool and n not in fresh}
        engine.fails = hold_fails
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
    assert pool.counts.misses + guessed == len(engine.reads)
    assert pool.counts.guesses_read <= guessed <= pool.counts.guesses
    assert pool.counts.misses + pool.counts.guesses == pool.counts.copied_bytes // SLOT_BYTES


def test_guesses_are_counted_and_kept_as_what_is_missing_is(worker):
    pool, engine = HotPages(SLOT_BYTES, 6 * SLOT_BYTES, CPU, policy="lru"), Engine()

    def hold(*numbers):
        pool.hold([key(n) for n in numbers], engine.reader(numbers))

    def guess(*numbers):
        pool.guess([key(n) for n in numbers], engine.reader(numbers), worker)

    hold(0, 1, 2, 3)
    guess(3, 4, 5, 6)  # there is room for two that are not there
    hold(3, 4, 7)
    assert engine.reads == [0, 1, 2, 3, 4, 5, 7]
    counts = pool.counts
    assert (counts.guesses, counts.guesses_read, counts.hits, counts.misses) == (2, 1, 2, 5)
    guess(8, 9)
    hold(8, 9)
    assert counts.guesses_read > 1
    assert counts.evictions > 0, "what is kept of the guesses makes room for the next ones"
    assert len(engine.reads) == counts.misses + counts.guesses


def test_a_guess_that_can_not_be_read_is_forgotten(worker):
    pool, engine = HotPages(SLOT_BYTES, 4 * SLOT_BYTES, CPU), Engine()
    engine.fails = True
    pool.guess([key(1)], engine.reader([1]), worker)
    pool.settle()
    assert key(1) not in pool
    assert len(pool) == 0
    engine.fails = False
    pool.hold([key(n) for n in range(4)], engine.reader(range(4)))
    assert pool.counts.misses == 4


def test_slots_of_inference_mode_are_written_outside_it():
    engine = Engine()
    with torch.inference_mode():
        pool = HotPages(SLOT_BYTES, 4 * SLOT_BYTES, CPU)
    pool.hold([key(1)], engine.reader([1]))
    assert engine.reads == [1]


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
def test_copies_on_their_own_stream_are_waited_for(worker):
    device = torch.device("cuda")
    pool, engine = HotPages(SLOT_BYTES, 40 * SLOT_BYTES, device), Engine()
    for first in range(0, 400, 13):
        numbers = list(range(first, first + 40))
        slots = pool.hold([key(n) for n in numbers], engine.reader(numbers))
        expected = torch.stack([page(n) for n in numbers])
        found = pool.slots[slots.to(device)]
        # Into slots that what was launched before still reads.
        ahead = list(range(first + 13, first + 63))
        pool.guess([key(n) for n in ahead], engine.reader(ahead), worker)
        assert torch.equal(found.cpu(), expected)
