"""What a device copies of pages: planes, summaries and names, beside what the cache itself reads."""

from __future__ import annotations

import pytest
import torch

from stratakv import _native
from stratakv.attention.device import reference
from stratakv.attention.device.reads import PlanePools, Reads
from stratakv.cache.page_table import LayerGeometry
from stratakv.cache.planes import PlaneLayout

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROTARY = ([1.0, 0.1, 0.01, 0.001], False)
PAGE_TOKENS = 32


def make(tokens=150, *, rows=2, heads=3, dims=(16, 24), dtype=torch.bfloat16, store=None, planes=True):
    store = store or _native.Store(ram_bytes=16 << 20)
    cache = _native.KvCache(store, num_layers=1, page_tokens=PAGE_TOKENS, rotary=ROTARY, planes=planes)
    keys, values = (torch.randn(rows, heads, tokens, dim).to(dtype) for dim in dims)
    cache.append(0, keys, values)
    return cache, LayerGeometry(heads, *dims, dtype)


def select(cache):
    cache.select(
        blocks=4, sinks=1, window=1, recent=0, unread=1.0, growth=1.0, critical=0.5, dense_below=0,
        dense_prefill_below=1 << 30, trained_tokens=1 << 30, sketches=True,
    )  # fmt: skip


def planes_of(cache, geometry, pages):
    layouts = [make(geometry, PAGE_TOKENS) for make in (PlaneLayout.of_codes, PlaneLayout.of_residuals)]
    both = [torch.full((len(pages), layout.page_bytes), 9, dtype=torch.uint8) for layout in layouts]
    for residuals, out in enumerate(both):
        cache.copy_planes(0, pages, out, residuals=bool(residuals))
    is_half = geometry.dtype == torch.float16
    return PlanePools(*both, *layouts, geometry.key_dim, geometry.value_dim, is_half)


def rows_of(pools, part, *, whole):
    """(pages, H, 32, D) of both planes, or of the codes alone."""
    count, heads = len(pools.codes), pools.codes_layout.num_heads
    slots = torch.arange(count)[:, None, None].expand(count, heads, 2).int()
    within = torch.arange(2).expand_as(slots).int()
    reads = Reads(slots, slots if whole else slots * 0 - 1, within, within, within[..., 0])
    return reference.read_rows(pools, reads, part).flatten(2, 3)


def stored(cache, geometry, pages):
    """The same by the cache's own gather."""
    tokens = cache.length(0)
    shape = (cache.num_rows, geometry.num_heads, tokens)
    keys, values = (
        torch.empty(*shape, d, dtype=geometry.dtype) for d in (geometry.key_dim, geometry.value_dim)
    )
    cache.gather(0, 0, tokens, keys, values, turn="stored")
    of_page = [(row, slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)) for row, page in pages]
    return tuple(
        torch.stack([part[row, :, tokens] for row, tokens in of_page]).float() for part in (keys, values)
    )


PAGES = [(0, 0), (1, 3), (0, 2), (1, 0), (0, 2)]


@pytest.mark.parametrize("is_summarised", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_are_the_pages(dtype, is_summarised):
    cache, geometry = make(dtype=dtype)
    if is_summarised:
        select(cache)
        cache.copy_summaries(0, 0, 4, torch.empty(2, 3, 8, summary_bytes(), dtype=torch.uint8))
    pools = planes_of(cache, geometry, PAGES)
    for part, expected in zip(("keys", "values"), stored(cache, geometry, PAGES), strict=True):
        whole = rows_of(pools, part, whole=True)
        # Exactly what was encoded, but for what is too small for a row's scale.
        assert torch.allclose(whole, expected, rtol=0, atol=2**-14 * float(expected.abs().max()))
        assert (whole == expected).float().mean() > 0.95
        coded = rows_of(pools, part, whole=False)
        assert (coded - expected).abs().max() <= expected.abs().max() / 16
        assert not torch.equal(coded, expected)


def summary_bytes(dim=16):
    from stratakv.attention.device.summaries import SummaryLayout
    from stratakv.cache.rotary import Rotary

    return SummaryLayout.of(Rotary(tuple(ROTARY[0]), ROTARY[1]), dim).num_bytes


def test_pages_come_back_from_disk(tmp_path):
    store = _native.Store(tmp_path, ram_bytes=256 << 10)
    cache, geometry = make(2048, store=store)
    pages = [(row, page) for page in range(64) for row in range(2)]
    pools = planes_of(cache, geometry, pages)
    for part, expected in zip(("keys", "values"), stored(cache, geometry, pages), strict=True):
        assert torch.allclose(rows_of(pools, part, whole=True), expected, rtol=0, atol=1e-3)
    assert store.stats()["disk"]["read_bytes"] > 0


def test_summaries_of_a_part_are_a_part_of_the_summaries():
    cache, _ = make()
    select(cache)
    whole = torch.empty(2, 3, 8, summary_bytes(), dtype=torch.uint8)
    cache.copy_summaries(0, 0, 4, whole)
    part = torch.empty(2, 3, 4, summary_bytes(), dtype=torch.uint8)
    cache.copy_summaries(0, 1, 3, part)
    assert torch.equal(part, whole[:, :, 2:6])
    assert whole.float().std() > 10


def test_names_tell_contents_apart():
    cache, _ = make()
    assert len(set(cache.page_keys(0, [(row, page) for row in range(2) for page in range(4)]))) == 8
    fork = cache.fork()
    assert fork.page_keys(0, PAGES) == cache.page_keys(0, PAGES)
    fork.crop(100)
    fork.append(0, torch.zeros(2, 3, 60, 16).bfloat16(), torch.zeros(2, 3, 60, 24).bfloat16())
    same = [a == b for a, b in zip(fork.page_keys(0, PAGES), cache.page_keys(0, PAGES), strict=True)]
    assert same == [page < 3 for _, page in PAGES]
    cache.reorder([1, 1])
    assert cache.page_keys(0, [(0, 3)]) == cache.page_keys(0, [(1, 3)])


def test_what_does_not_fit_is_refused_by_name():
    cache, geometry = make()
    layout = PlaneLayout.of_codes(geometry, PAGE_TOKENS)
    out = torch.empty(1, layout.page_bytes, dtype=torch.uint8)
    with pytest.raises(ValueError, match="page 4 of row 0: there are 4 whole ones of 2 rows"):
        cache.copy_planes(0, [(0, 4)], out)
    with pytest.raises(ValueError, match="page 0 of row 2"):
        cache.page_keys(0, [(2, 0)])
    with pytest.raises(ValueError, match="out has shape"):
        cache.copy_planes(0, [(0, 0), (0, 1)], out)
    with pytest.raises(ValueError, match="uint8"):
        cache.copy_planes(0, [(0, 0)], out.float())
    with pytest.raises(ValueError, match="give the cache a budget"):
        cache.copy_summaries(0, 0, 4, torch.empty(2, 3, 8, summary_bytes(), dtype=torch.uint8))
    select(cache)
    with pytest.raises(ValueError, match=r"pages \[3, 5\) of 4 whole ones"):
        cache.copy_summaries(0, 3, 5, torch.empty(2, 3, 4, summary_bytes(), dtype=torch.uint8))
    with pytest.raises(ValueError, match='"placed"'):
        cache.gather(0, 0, 1, *one(geometry), turn="left")
    plain, _ = make(planes=False)
    with pytest.raises(ValueError, match="not kept in planes"):
        plain.copy_planes(0, [(0, 0)], out)


def one(geometry):
    return (torch.empty(2, 3, 1, dim, dtype=geometry.dtype) for dim in (geometry.key_dim, geometry.value_dim))
