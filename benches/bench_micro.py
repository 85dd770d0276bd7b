"""The engine's calls one by one, beside what torch does for the same (pytest-benchmark)."""

from __future__ import annotations

import pytest
import torch

HEADS, QUERY_HEADS, DIM, CONTEXT = 3, 9, 64, 8192


@pytest.fixture(scope="module")
def filled():
    """One layer of the demo model's shape with 8K tokens, as pages and as tensors (B, H, T, D)."""
    from stratakv import _native

    torch.manual_seed(0)
    keys_BHTD, values_BHTD = torch.randn(1, HEADS, CONTEXT, DIM), torch.randn(1, HEADS, CONTEXT, DIM)
    store = _native.Store(ram_bytes=1 << 30)
    cache = _native.KvCache(store, num_layers=1)
    cache.append(0, keys_BHTD, values_BHTD)
    return cache, keys_BHTD, values_BHTD


def sdpa(query_BHTD, keys_BHTD, values_BHTD):
    return torch.nn.functional.scaled_dot_product_attention(
        query_BHTD, keys_BHTD, values_BHTD, enable_gqa=True
    )


@pytest.mark.benchmark(group="attend, 8K, one token")
def test_attend_pages(benchmark, filled):
    cache, keys_BHTD, values_BHTD = filled
    query_BHTD = torch.randn(1, QUERY_HEADS, 1, DIM)
    out_BHTD = torch.empty_like(query_BHTD)
    benchmark(cache.attend, 0, query_BHTD, out_BHTD, DIM**-0.5)
    torch.testing.assert_close(out_BHTD, sdpa(query_BHTD, keys_BHTD, values_BHTD))


@pytest.mark.benchmark(group="attend, 8K, one token")
def test_attend_torch(benchmark, filled):
    _, keys_BHTD, values_BHTD = filled
    benchmark(sdpa, torch.randn(1, QUERY_HEADS, 1, DIM), keys_BHTD, values_BHTD)


@pytest.mark.benchmark(group="append one token at 8K")
def test_append_pages(benchmark, filled):
    cache, _, _ = filled
    fork = cache.fork()
    token_BHTD = torch.randn(1, HEADS, 1, DIM)
    benchmark(fork.append, 0, token_BHTD, token_BHTD)


@pytest.mark.benchmark(group="append one token at 8K")
def test_append_torch(benchmark, filled):
    _, keys_BHTD, values_BHTD = filled
    token_BHTD = torch.randn(1, HEADS, 1, DIM)

    def append():
        return torch.cat([keys_BHTD, token_BHTD], dim=-2), torch.cat([values_BHTD, token_BHTD], dim=-2)

    benchmark(append)


@pytest.mark.benchmark(group="all of 8K as one tensor")
def test_gather_pages(benchmark, filled):
    cache, keys_BHTD, values_BHTD = filled
    keys_out, values_out = torch.empty_like(keys_BHTD), torch.empty_like(values_BHTD)
    benchmark(cache.gather, 0, 0, CONTEXT, keys_out, values_out)
    assert torch.equal(keys_out, keys_BHTD)


@pytest.mark.benchmark(group="all of 8K as one tensor")
def test_gather_torch(benchmark, filled):
    _, keys_BHTD, values_BHTD = filled
    benchmark(lambda: (keys_BHTD.clone(), values_BHTD.clone()))
