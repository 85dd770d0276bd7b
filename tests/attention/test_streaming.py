"""Streamed and dispatched attention against the definition, over odd shapes, dtypes and masks."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stratakv.attention import paged_attention, reference_attention, stream_attention
from stratakv.testing import assert_close

SHAPES = [
    # rows, heads, group, new tokens, stored tokens, key dim, value dim
    (1, 1, 1, 1, 1, 16, 16),
    (2, 2, 1, 33, 37, 16, 16),
    (1, 3, 3, 5, 64, 64, 64),
    (2, 1, 4, 40, 101, 8, 8),
    (1, 2, 2, 3, 29, 16, 24),
    (1, 2, 2, 50, 129, 24, 16),
]
MASKS = ["none", "causal", "padding", "per_head", "float", "hides_a_tile", "hides_all"]


def make_mask(kind, shape):
    """A mask that broadcasts to (B, Q, T, S)."""
    rows, queries, new, held = shape
    if kind == "none":
        return None
    if kind == "causal":
        return torch.ones(1, 1, new, held, dtype=torch.bool).tril(held - new)
    if kind == "padding":
        mask = torch.ones(rows, 1, 1, held, dtype=torch.bool)
        mask[0, :, :, : held // 2] = False
        return mask
    if kind == "per_head":
        return torch.randn(1, queries, new, held)
    if kind == "float":
        return torch.zeros(new, held).masked_fill(torch.rand(new, held) < 0.3, torch.finfo(torch.float32).min)
    mask = torch.ones(rows, 1, new, held, dtype=torch.bool)
    if kind == "hides_a_tile":
        mask[..., :8] = held <= 8
    else:
        mask[:, :, new // 2] = False
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("run", ["stream", "dispatch"])
def test_equals_reference(make_pages, run, shape, kind, dtype):
    rows, heads, group, new, held, key_dim, value_dim = shape
    snapshot, keys, values = make_pages(rows, heads, held, key_dim, value_dim, dtype)
    query = torch.randn(rows, heads * group, new, key_dim).to(dtype)
    mask = make_mask(kind, (rows, heads * group, new, held))
    expected = reference_attention(query, keys, values, scale=0.3, mask=mask)
    if run == "stream":
        mask_4d = mask if mask is None or mask.dim() == 4 else mask[None, None]
        actual = stream_attention(query, snapshot, scale=0.3, mask_BQTS=mask_4d, tile_bytes=4096)
    else:
        actual = paged_attention(query, snapshot, scale=0.3, mask=mask)
    assert_close(actual, expected)


@pytest.mark.parametrize("tile_bytes", [1, 1000, 10_000, 1 << 20])
def test_tile_size_does_not_matter(make_pages, tile_bytes):
    snapshot, keys, values = make_pages(tokens=75)
    query = torch.randn(2, 4, 34, 16)
    actual = stream_attention(query, snapshot, scale=0.25, tile_bytes=tile_bytes)
    assert_close(actual, reference_attention(query, keys, values, scale=0.25))


@pytest.mark.parametrize("group", [1, 3])
def test_small_layers_make_the_very_call(make_pages, group):
    """Bit for bit what PyTorch gives for the model's own call."""
    snapshot, keys, values = make_pages(tokens=75)
    query = torch.randn(2, 2 * group, 40, 16)
    mask = torch.ones(1, 1, 40, 75, dtype=torch.bool).tril(35)
    repeated = [part.repeat_interleave(group, dim=1) for part in (keys, values)]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    assert torch.equal(paged_attention(query, snapshot, mask=mask, scale=0.3), expected)


def test_large_layers_are_streamed(make_pages):
    snapshot, keys, values = make_pages(tokens=75)
    query = torch.randn(2, 2, 40, 16)
    actual = paged_attention(query, snapshot, tile_bytes=2048)
    assert_close(actual, reference_attention(query, keys, values))


@pytest.mark.parametrize("query_shape", [(1, 2, 3, 16), (2, 3, 3, 16), (2, 2, 3, 8), (2, 2, 0, 16)], ids=str)
def test_other_shapes_are_left_to_pytorch(make_pages, query_shape):
    snapshot, _, _ = make_pages()
    assert paged_attention(torch.randn(query_shape), snapshot) is None


def test_other_masks_are_left_to_pytorch(make_pages):
    snapshot, _, _ = make_pages(tokens=37)
    query = torch.randn(2, 2, 3, 16)
    for mask in (torch.ones(3, 1), torch.ones(3, 37, dtype=torch.int64), torch.ones(5, 37)):
        assert paged_attention(query, snapshot, mask=mask) is None


def test_a_mask_changed_in_place_is_seen(make_pages):
    snapshot, keys, values = make_pages(tokens=37)
    query = torch.randn(2, 2, 1, 16)
    mask = torch.ones(1, 1, 1, 37, dtype=torch.bool)
    for _ in range(2):
        assert_close(
            paged_attention(query, snapshot, mask=mask), reference_attention(query, keys, values, mask=mask)
        )
        mask[..., :9] = False


def test_masks_of_inference_mode(make_pages):
    snapshot, keys, values = make_pages(tokens=37)
    with torch.inference_mode():
        query = torch.randn(2, 2, 1, 16)
        mask = torch.rand(2, 1, 1, 37) > 0.5
        assert_close(
            paged_attention(query, snapshot, mask=mask), reference_attention(query, keys, values, mask=mask)
        )
