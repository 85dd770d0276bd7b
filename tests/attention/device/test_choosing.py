"""Which blocks are chosen, beside the engine's rule in plain Python."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.attention.device.choosing import Budget, choose, shares_of


def by_rule(shares, budget, focus):
    """One head: the words of docs/selection.md, one block after the other."""
    count = len(shares)
    rank = [math.inf if math.isnan(share) else share for share in shares]
    sinks = min(budget.sinks, count)
    window = min(budget.window, count - sinks)
    always = {*range(sinks), *range(count - window, count), *(block for block in focus if block < count)}
    best = sorted((block for block in range(count) if block not in always), key=lambda block: -rank[block])
    wanted = max(budget.blocks - len(always), 0)
    most = max(int(budget.blocks * budget.growth) - len(always), wanted)
    total, read = sum(rank), sum(rank[block] for block in always)
    taken = set()
    for place, block in enumerate(best):
        if place >= wanted and (place >= most or not total - read > budget.unread * total):
            break
        taken.add(block)
        read += rank[block]
    chosen = sorted(always | taken)
    num_critical = min(math.ceil(len(chosen) * budget.critical), len(chosen))
    critical = set(sorted(chosen, key=lambda block: -rank[block])[:num_critical])
    unread = (total - read) / total if 0 < total < math.inf else 0.0
    return chosen, [block in critical for block in chosen], max(unread, 0.0)


BUDGETS = st.builds(
    lambda sinks, window, more, critical, unread, growth: Budget(
        sinks + window + more, sinks, window, critical, unread, growth
    ),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([1.0, 1.5, 2.0]),
)


@settings(max_examples=200)
@given(
    budget=BUDGETS,
    num_blocks=st.integers(1, 40),
    focus=st.lists(st.integers(0, 50), max_size=6),
    nans=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_engine_s_rule(budget, num_blocks, focus, nans, seed):
    generator = torch.Generator().manual_seed(seed)
    # Multiples of a power of two, each another: sums are exact in any order, and there are no ties.
    shares = torch.rand(2, 3, num_blocks, generator=generator).argsort(-1).float() + 1
    shares /= 2 ** (num_blocks * (num_blocks + 1) // 2).bit_length()
    if nans:
        shares[1, 1, num_blocks // 2] = torch.nan
    focus_BF = torch.tensor([focus, focus[::-1]], dtype=torch.int64) if focus else None
    choice = choose(shares, budget, focus_BF)
    for row in range(2):
        for head in range(3):
            count = int(choice.counts[row, head])
            expected = by_rule(shares[row, head].tolist(), budget, focus)
            assert choice.blocks[row, head, :count].tolist() == expected[0]
            assert choice.critical[row, head, :count].tolist() == expected[1]
            assert math.isclose(float(choice.unread[row, head]), expected[2], abs_tol=1e-6)
            assert not choice.critical[row, head, count:].any()
            given = shares[row, head, expected[0]].nan_to_num(torch.inf)
            assert torch.equal(choice.shares[row, head, :count], given)


def test_shares_are_of_each_query_and_averaged():
    masses = torch.randn(2, 3, 4, 20)
    assert torch.allclose(shares_of(masses), masses.softmax(-1).mean(2))
    masses[0, 1, 2, 7] = torch.nan
    shares = shares_of(masses)
    assert shares[0, 1, 7].isnan()
    others = torch.arange(20) != 7
    expected = torch.stack(
        [masses[0, 1, g, others if g == 2 else slice(None)].softmax(-1).sum() for g in range(4)]
    )
    assert torch.allclose(expected.mean(), torch.tensor(1.0))
    assert shares[0, 1, others].isfinite().all()


def test_masses_of_nothing_leave_nothing_unread():
    shares = shares_of(torch.full((1, 1, 2, 8), -torch.inf))
    assert torch.equal(shares, torch.zeros(1, 1, 8))
    choice = choose(shares, Budget(3, 1, 1, 0.5))
    assert choice.unread.item() == 0.0
    assert choice.counts.item() == 3
