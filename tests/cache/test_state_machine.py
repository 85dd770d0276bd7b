"""The engine's cache against the slow reference: random appends, crops, reorders, forks, sessions."""

from __future__ import annotations

import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from stratakv import _native
from stratakv.testing import assert_close
from stratakv.testing.reference import ReferenceKvCache, ReferenceStore

NUM_LAYERS, NUM_HEADS, KEY_DIM, VALUE_DIM = 2, 2, 8, 16
PAGE_TOKENS = 4
# Room for a handful of pages: the rest must be read back from disk.
RAM_BYTES = 128 << 10


def _values(layer: int, prefixes: list[list[int]], dim: int) -> torch.Tensor:
    """Keys or values that are a function of the tokens so far, as a model's are.

    Args:
        layer: enters the values.
        prefixes: per row, all ids up to and including the new ones; equal prefixes give equal values.
        dim: head dim, which tells keys from values.

    Returns:
        (B, H, T, dim) for every position of the prefixes.
    """
    rows = []
    for prefix in prefixes:
        state, tokens = layer + 1, []
        for token in prefix:
            state = (state * 31 + token + 7) % 100_003
            generator = torch.Generator().manual_seed(state * 64 + dim)
            tokens.append(torch.randn(NUM_HEADS, dim, generator=generator))
        rows.append(torch.stack(tokens, dim=1))
    return torch.stack(rows)


class Twin:
    """The same cache twice: in the engine, and in plain PyTorch."""

    def __init__(self, fast, slow, history):
        self.fast, self.slow, self.history = fast, slow, history
        # Adopted pages say nothing of heads and dims: the first append does.
        self.is_readable = True


class CacheMachine(RuleBasedStateMachine):
    """Every call goes to both caches; after each step they hold the same."""

    twins = Bundle("twins")
    names = Bundle("names")

    @initialize(on_disk=st.booleans())
    def open(self, on_disk):
        self.directory = tempfile.TemporaryDirectory() if on_disk else None
        path = self.directory.name if on_disk else None
        ram_bytes = RAM_BYTES if on_disk else 64 << 20
        self.fast_store = _native.Store(path, ram_bytes=ram_bytes)
        self.slow_store = ReferenceStore()
        self.alive: list[Twin] = []

    def _twin(self, history=None, fast=None, slow=None):
        options = {
            "num_layers": NUM_LAYERS,
            "page_tokens": PAGE_TOKENS,
            "identity": b"model",
            "settings": {"dtype": "float32"},
        }
        fast = fast or _native.KvCache(self.fast_store, **options)
        slow = slow or ReferenceKvCache(self.slow_store, **options)
        twin = Twin(fast, slow, history or [])
        self.alive.append(twin)
        return twin

    @rule(target=twins)
    def new(self):
        return self._twin()

    @rule(
        twin=twins,
        new_tokens=st.integers(1, 11),
        num_rows=st.integers(1, 3),
        seed=st.integers(0, 3),
        noted=st.sampled_from([True, True, True, False]),
    )
    def append(self, twin, new_tokens, num_rows, seed, noted):
        """Ids come from few choices, so that rows and caches share prefixes."""
        if not twin.history:
            twin.history = [[] for _ in range(num_rows)]
        ids = [
            [(seed + row // 2 + place) % 3 for place in range(new_tokens)] for row in range(len(twin.history))
        ]
        if not noted:
            # What was not noted has values of its own, whatever the ids around it are.
            ids = [[token + 1000 + seed for token in row] for row in ids]
        prefixes = [old + new for old, new in zip(twin.history, ids, strict=True)]
        for cache in (twin.fast, twin.slow):
            if noted:
                cache.note_tokens(ids)
            for layer in range(NUM_LAYERS):
                keys = _values(layer, prefixes, KEY_DIM)[:, :, -new_tokens:]
                values = _values(layer, prefixes, VALUE_DIM)[:, :, -new_tokens:]
                cache.append(layer, keys, values)
        twin.history = prefixes
        twin.is_readable = True

    @rule(twin=twins, length=st.integers(0, 60))
    def crop(self, twin, length):
        for cache in (twin.fast, twin.slow):
            cache.crop(length)
        twin.history = [row[:length] for row in twin.history]

    @rule(twin=twins, choices=st.lists(st.integers(0, 5), min_size=1, max_size=4))
    def reorder(self, twin, choices):
        if twin.history:
            rows = [choice % len(twin.history) for choice in choices]
            for cache in (twin.fast, twin.slow):
                cache.reorder(rows)
            twin.history = [list(twin.history[row]) for row in rows]

    @rule(target=twins, twin=twins)
    def fork(self, twin):
        history = [list(row) for row in twin.history]
        fork = self._twin(history, twin.fast.fork(), twin.slow.fork())
        fork.is_readable = twin.is_readable
        return fork

    @rule(twin=twins)
    def reset(self, twin):
        for cache in (twin.fast, twin.slow):
            cache.reset()
        twin.history = []

    @rule(target=twins, twin=twins, drop=st.integers(0, 5))
    def match(self, twin, drop):
        """A new cache adopts at least what the reference knows from pages that are still held."""
        ids = twin.slow.token_ids(0) if twin.history else None
        if not ids or len(ids) <= drop:
            return multiple()
        fresh = self._twin()
        wanted = ids[: len(ids) - drop]
        found = fresh.fast.match_prefix(wanted)
        assert found % PAGE_TOKENS == 0
        assert found <= fresh.slow.match_prefix(wanted)
        fresh.slow.crop(found)
        if found == 0:
            fresh.slow.reset()
        fresh.history = [wanted[:found]] if found else []
        fresh.is_readable = not found
        return fresh

    @precondition(lambda self: self.directory is not None)
    @rule(target=names, twin=twins, name=st.sampled_from(["a", "b", "c"]))
    def save(self, twin, name):
        known = (
            bool(twin.history)
            and twin.is_readable
            and all(twin.slow.token_ids(row) is not None for row in range(len(twin.history)))
        )
        if not known:
            return multiple()
        for cache in (twin.fast, twin.slow):
            cache.save(name, model="test", extra=name.encode())
        return name

    @rule(target=twins, name=names)
    def load(self, name):
        twin = self._twin()
        assert twin.fast.load(name) == twin.slow.load(name) == name.encode()
        twin.history = [twin.slow.token_ids(row) for row in range(twin.slow.num_rows)]
        return twin

    @rule(twin=consumes(twins))
    def close(self, twin):
        self.alive.remove(twin)
        for cache in (twin.fast, twin.slow):
            cache.close()

    @rule(
        twin=twins,
        num_new=st.integers(1, 5),
        group=st.integers(1, 2),
        biased=st.booleans(),
        causal=st.booleans(),
    )
    def attend(self, twin, num_new, group, biased, causal):
        length = twin.slow.length(0) if twin.history else 0
        if length < num_new or not twin.is_readable:
            return
        num_rows = len(twin.history)
        query = torch.randn(num_rows, NUM_HEADS * group, num_new, KEY_DIM)
        bias = None
        if biased:
            bias = torch.zeros(num_rows, 1, length).masked_fill(
                torch.rand(num_rows, 1, length) < 0.3, -torch.inf
            )
        outs = [torch.empty(num_rows, NUM_HEADS * group, num_new, VALUE_DIM) for _ in range(2)]
        for cache, out in zip((twin.fast, twin.slow), outs, strict=True):
            cache.attend(1, query, out, 0.3, bias, causal)
        assert_close(outs[0], outs[1])

    @invariant()
    def same_contents(self):
        for twin in getattr(self, "alive", []):
            num_rows = len(twin.history)
            assert twin.fast.num_rows == twin.slow.num_rows
            for layer in range(NUM_LAYERS):
                length = twin.slow.length(layer)
                assert twin.fast.length(layer) == length
                if num_rows and length and twin.is_readable:
                    self._compare(twin, layer, 0, length)
                    self._compare(twin, layer, length // 2, length)
            for row in range(num_rows):
                assert twin.fast.token_ids(row) == twin.slow.token_ids(row)

    @staticmethod
    def _compare(twin, layer, start, stop):
        shape = (len(twin.history), NUM_HEADS, stop - start)
        parts = [
            (torch.full((*shape, KEY_DIM), torch.nan), torch.full((*shape, VALUE_DIM), torch.nan))
            for _ in range(2)
        ]
        for cache, (keys, values) in zip((twin.fast, twin.slow), parts, strict=True):
            cache.gather(layer, start, stop, keys, values)
        assert torch.equal(parts[0][0], parts[1][0])
        assert torch.equal(parts[0][1], parts[1][1])

    def teardown(self):
        for twin in getattr(self, "alive", []):
            twin.fast.close()
        if hasattr(self, "fast_store"):
            self.fast_store.close()
            if self.directory is not None:
                self.directory.cleanup()


CacheMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCacheMachine = pytest.mark.slow(CacheMachine.TestCase)
