"""Attention over paged planes: the reference beside its definition, the kernels beside the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.attention.device import reference
from stratakv.attention.device.backend import backend_for
from stratakv.attention.device.reads import Partial, Reads
from stratakv.attention.device.turns import Turns
from stratakv.cache.rotary import turn
from tests.attention.device import made

# Values of order one, float32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
CPU = torch.device("cpu")

SHAPES = {
    "plain": {},
    "gqa": {"group": 4, "key_dim": 64, "value_dim": 64},
    "odd dims": {"group": 3, "key_dim": 80, "value_dim": 48, "page_tokens": 48},
    "large": {"group": 8, "key_dim": 128, "value_dim": 128, "heads": 1},
    "float16": {"dtype": torch.float16, "group": 2},
    "odd row": {"key_dim": 17, "value_dim": 19, "heads": 3},
    "one row": {"rows": 1, "page_tokens": 16},
    "partly turned": {"key_dim": 32, "dims": 8},
    "interleaved": {"interleaved": True},
    "many blocks": {"size": 40},
    "a prefill": {"group": 70, "size": 20, "rows": 1, "heads": 1},
}


def case(rows=2, group=1, size=7, dims=None, interleaved=False, **shape):
    pages = made.pools(**shape)
    dim, heads = pages.pools.key_dim, pages.pools.codes_layout.num_heads
    query = torch.randn(rows, heads, group, dim) * 2 * dim**-0.5
    turns = Turns(made.rotary(dim, dims=dims, interleaved=interleaved), dim, CPU)
    turns.grow(50)
    return query, pages, made.reads(pages, rows, size), turns


def by_definition(query, pages, reads, turns):
    """One (row, head) at a time, in float64, from rows that were never packed."""
    output = torch.zeros(*query.shape[:3], pages.pools.value_dim, dtype=torch.float64)
    log_sum = torch.full(query.shape[:3], -torch.inf, dtype=torch.float64)
    inv_freq = torch.tensor(turns.rotary.inv_freq, dtype=torch.float64)
    for row, head in torch.cartesian_prod(*map(torch.arange, query.shape[:2])).tolist():
        scores, values = [], []
        for place in range(int(reads.counts[row, head])):
            slot = int(reads.slots[row, head, place])
            first = 16 * int(reads.within[row, head, place])
            rows = pages.restored if reads.residual_slots[row, head, place] >= 0 else pages.coded
            angles = 16 * int(reads.distances[row, head, place]) * inv_freq
            facing = turn(
                query[row, head].double(), angles.cos(), angles.sin(), interleaved=turns.rotary.interleaved
            )
            scores.append(facing @ rows["keys"][slot, head, first : first + 16].double().T)
            values.append(rows["values"][slot, head, first : first + 16].double())
        if scores:
            scores = torch.cat(scores, 1)
            output[row, head] = scores.softmax(-1) @ torch.cat(values)
            log_sum[row, head] = scores.logsumexp(-1)
    return Partial(output, log_sum)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_attention_over_what_is_read(shape):
    query, pages, reads, turns = case(**SHAPES[shape])
    found = reference.attend(query, pages.pools, reads, turns)
    expected = by_definition(query, pages, reads, turns)
    torch.testing.assert_close(found.output.double(), expected.output, **CLOSE)
    torch.testing.assert_close(found.log_sum.double(), expected.log_sum, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_reference(shape):
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    query, pages, reads, turns = case(**SHAPES[shape])
    found = kernels.attend(query, pages.pools, reads, turns)
    expected = reference.attend(query, pages.pools, reads, turns)
    torch.testing.assert_close(found.output, expected.output, **CLOSE)
    torch.testing.assert_close(found.log_sum, expected.log_sum, **CLOSE)


@settings(max_examples=15)
@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.integers(1, 8),
    key_dim=st.integers(2, 40),
    value_dim=st.integers(1, 40),
    page_blocks=st.integers(1, 3),
    size=st.integers(1, 35),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    interleaved=st.booleans(),
)
def test_odd_shapes(page_blocks, **shape):
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    query, pages, reads, turns = case(page_tokens=16 * page_blocks, slots=3, **shape)
    found = kernels.attend(query, pages.pools, reads, turns)
    expected = by_definition(query, pages, reads, turns)
    torch.testing.assert_close(found.output.double(), expected.output, **CLOSE)
    torch.testing.assert_close(found.log_sum.double(), expected.log_sum, **CLOSE)


@pytest.mark.filterwarnings("ignore:All-NaN")  # numpy's, below Triton's interpreter
def test_large_scores_and_a_row_that_is_no_number():
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    query, pages, reads, turns = case(group=2)
    for backend in (reference, kernels):
        found = backend.attend(query * 300, pages.pools, reads, turns)
        assert found.output.isfinite().all()
    # Byte 0 of a head is the scale of its first key: with 255 the row is lost, and says so.
    pages.pools.codes[:, 0] = 255
    reads = Reads(reads.slots, reads.residual_slots, reads.within * 0, reads.distances, reads.counts)
    for backend in (reference, kernels):
        is_lost = backend.attend(query, pages.pools, reads, turns).output.isnan().all(-1).all(-1)
        assert torch.equal(is_lost[:, 0], reads.counts[:, 0] > 0)
        assert not is_lost[:, 1].any()


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_parts_merge_to_the_whole(parts):
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    scores, values = torch.randn(2, 3, 5, 40) * 3, torch.randn(2, 3, 40, 24)
    whole = reference.weigh(scores, values)
    bounds = [0, *sorted(torch.randint(41, (parts - 1,)).tolist()), 40]  # some of them empty, perhaps
    cut = [reference.weigh(scores[..., a:b], values[..., a:b, :]) for a, b in itertools.pairwise(bounds)]
    stacked = Partial(*(torch.stack([getattr(p, name) for p in cut], 2) for name in ("output", "log_sum")))
    for backend in (reference, kernels):
        merged = backend.merge(stacked)
        torch.testing.assert_close(merged.output, whole.output, **CLOSE)
        torch.testing.assert_close(merged.log_sum, whole.log_sum, **CLOSE)


def test_parts_that_saw_nothing_merge_to_zeros():
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    nothing = Partial(torch.zeros(1, 2, 3, 1, 8), torch.full((1, 2, 3, 1), -torch.inf))
    for backend in (reference, kernels):
        merged = backend.merge(nothing)
        assert torch.equal(merged.output, torch.zeros(1, 2, 1, 8))
        assert (merged.log_sum == -torch.inf).all()


def test_each_device_has_a_backend():
    kernels = pytest.importorskip("stratakv.attention.device.kernels")
    assert backend_for("cuda") is kernels
    assert backend_for("cpu") is backend_for("mps") is reference
