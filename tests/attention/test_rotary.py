"""Pages whose keys have no positions: every path of attention equals float64 attention at positions."""

from __future__ import annotations

import pytest
import torch

from stratakv.attention import paged_attention, reference_attention
from stratakv.attention.softcap import softcap_attention
from stratakv.cache import PageTable, Store
from stratakv.cache.rotary import Rotary
from stratakv.testing import assert_close

DEVICE = torch.device("cpu")


def rotary(pairs, interleaved):
    return Rotary(tuple(500.0 ** (-pair / pairs) for pair in range(pairs)), interleaved)


def at_positions(turns, tensor, first=0):
    """(B, H, T, D) in float64, by complex numbers."""
    num = len(turns.inv_freq)
    head, rest = tensor.double()[..., : 2 * num], tensor.double()[..., 2 * num :]
    pairs = (head[..., 0::2], head[..., 1::2]) if turns.interleaved else (head[..., :num], head[..., num:])
    angles = torch.arange(first, first + tensor.shape[2]).double()[:, None] * torch.tensor(
        turns.inv_freq, dtype=torch.float64
    )
    turned = torch.complex(*pairs) * torch.polar(torch.ones_like(angles), angles)
    parts = (turned.real, turned.imag)
    head = torch.stack(parts, -1).flatten(-2) if turns.interleaved else torch.cat(parts, -1)
    return torch.cat([head, rest], -1)


@pytest.fixture
def make(tmp_path):
    """Makes a snapshot with (B, H, S, D) keys without positions and values; some pages are on disk."""
    stores = []

    def build(turns, dim, dtype=torch.float32, tokens=41, page_tokens=4):
        stores.append(Store(tmp_path / str(len(stores)), ram="256KiB"))
        table = PageTable(stores[-1], num_slots=1, page_tokens=page_tokens, rotary=turns)
        keys, values = torch.randn(2, 2, tokens, dim).to(dtype), torch.randn(2, 2, tokens, dim).to(dtype)
        for start, stop in ((0, 13), (13, tokens)):
            table.append(0, keys[:, :, start:stop], values[:, :, start:stop])
        return table, keys, values

    yield build
    for store in stores:
        store.close()


@pytest.mark.parametrize("tile_bytes", [1, 1 << 30], ids=["streamed", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_new", [1, 5, 36])
@pytest.mark.parametrize(("pairs", "dim", "interleaved"), [(4, 8, False), (4, 8, True), (3, 11, False)])
def test_every_path_equals_attention_at_positions(make, pairs, dim, interleaved, num_new, dtype, tile_bytes):
    turns = rotary(pairs, interleaved)
    table, keys, values = make(turns, dim, dtype)
    query = torch.randn(2, 6, num_new, dim).to(dtype)
    mask = torch.ones(num_new, 41, dtype=torch.bool).tril(41 - num_new)[None, None].repeat(2, 1, 1, 1)
    mask[0, :, :, :3] = False
    actual = paged_attention(query, table.snapshot(0, DEVICE), mask=mask, scale=0.4, tile_bytes=tile_bytes)
    expected = reference_attention(
        at_positions(turns, query, 41 - num_new), at_positions(turns, keys), values, scale=0.4, mask=mask
    )
    if dtype == torch.float32:
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    else:
        # Keys and queries are rounded once or twice more after a turn, by 2**-9 or 2**-12 of their size.
        unit = 2**-9 if dtype == torch.bfloat16 else 2**-12
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=24 * unit)


def test_cropping_into_a_sealed_page_and_going_on(make):
    turns = rotary(4, False)
    table, keys, values = make(turns, 8)
    more, new_values = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    table.crop(18)
    table.append(0, more, new_values)
    keys, values = torch.cat([keys[:, :, :18], more], 2), torch.cat([values[:, :, :18], new_values], 2)
    query = torch.randn(2, 2, 1, 8)
    actual = paged_attention(query, table.snapshot(0, DEVICE))
    expected = reference_attention(at_positions(turns, query, 26), at_positions(turns, keys), values)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rotated", [False, True])
def test_gathering_with_and_without_positions(make, rotated):
    turns = rotary(3, True)
    table, keys, values = make(turns, 7)
    found_keys, found_values = table.snapshot(0, DEVICE).gather(
        5, 39, turn="placed" if rotated else "appended"
    )
    expected = at_positions(turns, keys) if rotated else keys.double()
    torch.testing.assert_close(found_keys.double(), expected[:, :, 5:39], rtol=1e-5, atol=1e-5)
    assert torch.equal(found_values, values[:, :, 5:39])


def test_far_positions_are_as_exact_as_near_ones():
    turns = rotary(4, False)
    tensor = torch.randn(1, 1, 3, 8)
    far = turns.rotate(tensor, torch.arange(1_000_000, 1_000_003))
    expected = at_positions(turns, tensor, 1_000_000)
    torch.testing.assert_close(far.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_new", [1, 3, 36])
def test_capped_scores_are_served_in_tiles(make, num_new):
    table, keys, values = make(None, 8)
    query = torch.randn(2, 4, num_new, 8) * 3
    mask = torch.ones(num_new, 41, dtype=torch.bool).tril(41 - num_new)[None, None]
    actual = paged_attention(
        query, table.snapshot(0, DEVICE), mask=mask, scale=0.5, softcap=2.0, tile_bytes=1
    )
    double = (part.double() for part in (query, keys, values))
    expected = softcap_attention(*double, scale=0.5, softcap=2.0, mask=mask)
    assert_close(actual, expected.float())
    double = (part.double() for part in (query, keys, values))
    assert torch.equal(softcap_attention(*double, scale=0.5, softcap=2.0, is_causal=True), expected)
    assert not torch.allclose(actual, reference_attention(query, keys, values, scale=0.5, mask=mask))


def test_a_rotary_that_does_not_fit_is_named(make):
    with pytest.raises(ValueError, match=r"keys have 7 elements per head, and the rotary turns 8"):
        make(rotary(4, False), 7)
    with pytest.raises(ValueError, match="at least one frequency"):
        make(Rotary(()), 8)
