"""Which rows are critical."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stratakv.fp8.routing import MIN_HISTORY, TokenRouting, relative_norm


def rows_of(magnitudes):
    return torch.tensor(magnitudes)[:, None] * torch.tensor([[0.5, -1.0, 0.25]])


@given(st.floats(0, 1), st.integers(64, 5000))
def test_a_call_has_the_asked_share(fraction, num_rows):
    count = TokenRouting(fraction).num_critical(num_rows)
    assert abs(count - fraction * num_rows) <= 0.5


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50, unique=True), st.data())
def test_own_norm_ranks_rows(magnitudes, data):
    count = data.draw(st.integers(0, len(magnitudes)))
    rows = rows_of([float(m) for m in magnitudes])
    chosen = TokenRouting(0.5).critical_rows(rows, count).tolist()
    assert [magnitudes[i] for i in chosen] == sorted(magnitudes, reverse=True)[:count]


def test_the_norm_is_relative():
    rows = rows_of([1.0, 1.0, 1.0, 97.0])
    torch.testing.assert_close(relative_norm(rows), torch.tensor([0.04, 0.04, 0.04, 3.88]))
    torch.testing.assert_close(relative_norm(1000 * rows), relative_norm(rows))
    assert torch.equal(relative_norm(torch.zeros(3, 4)), torch.zeros(3))


def test_given_importance_comes_first():
    routing = TokenRouting(0.1, mixed_rows_min=4)
    rows = rows_of([9.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    scores = torch.tensor([[0.0, 5.0, 1.0], [2.0, 7.0, 3.0]])
    with routing.importance(scores):
        assert routing.critical_rows(rows, 2).tolist() == [4, 1]
        with routing.importance(-scores):
            assert routing.critical_rows(rows, 2).tolist() == [0, 2]
        assert routing.critical_rows(rows, 2).tolist() == [4, 1]
        # Other calls have other rows.
        assert routing.critical_rows(rows[:5], 1).tolist() == [0]
    assert routing.critical_rows(rows, 1).tolist() == [0]
    routing.set_importance(scores)
    assert routing.critical_rows(rows, 1).tolist() == [4]
    routing.clear_importance()
    assert routing.critical_rows(rows, 1).tolist() == [0]


def test_the_block_ends_with_an_error():
    routing = TokenRouting(0.1)
    with pytest.raises(KeyError), routing.importance(torch.ones(1, 100)):
        raise KeyError
    assert routing.critical_rows(torch.eye(100)[:, :5], 1).tolist()[0] < 5


@given(
    st.lists(st.floats(0, 100, width=32), min_size=MIN_HISTORY + 1, max_size=80),
    st.sampled_from([0.05, 0.25, 0.5, 0.9]),
)
def test_a_single_row_exceeds_the_running_quantile(values, fraction):
    """The reference keeps everything and sorts anew."""
    routing = TokenRouting(fraction, history=20)
    seen = []
    for value in values:
        routing.set_importance(torch.tensor([[value]]))
        recent = sorted(seen[-20:])
        expected = False
        if len(recent) >= MIN_HISTORY:
            expected = value > recent[max(math.ceil((1 - fraction) * len(recent)) - 1, 0)]
        assert routing.num_critical(1) == int(expected)
        seen.append(value)


def test_the_running_quantile_keeps_the_share():
    routing = TokenRouting(0.25)
    critical = 0
    for value in torch.rand(2000):
        routing.set_importance(value.reshape(1, 1))
        critical += routing.num_critical(1)
    assert 0.2 < critical / 2000 < 0.3


def test_small_calls_go_one_way():
    routing = TokenRouting(0.5, mixed_rows_min=8)
    assert routing.num_critical(7) == 0
    assert routing.num_critical(8) == 4
    for _ in range(MIN_HISTORY):
        routing.set_importance(torch.ones(2, 2))
    routing.set_importance(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    assert routing.num_critical(4) == 4
    assert routing.num_critical(3) == 0
    routing.clear_importance()
    assert routing.num_critical(4) == 0


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (1.0, 1)])
def test_none_and_all(fraction, expected):
    routing = TokenRouting(fraction)
    for num_rows in (1, 5, 64, 1000):
        assert routing.num_critical(num_rows) == expected * num_rows


def test_models_do_not_share():
    one, other = TokenRouting(0.1), TokenRouting(0.1)
    one.set_importance(torch.rand(1, 100))
    rows = torch.rand(100, 4)
    assert torch.equal(other.critical_rows(rows, 3), TokenRouting(0.1).critical_rows(rows, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critical_fraction": -0.1}, "critical_fraction must be from 0 to 1, not -0.1"),
        ({"critical_fraction": math.nan}, "critical_fraction"),
        ({"critical_fraction": 0.1, "mixed_rows_min": 0}, "mixed_rows_min"),
        ({"critical_fraction": 0.1, "history": 3}, "history"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TokenRouting(**options)


@pytest.mark.parametrize("scores", [torch.ones(3), torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 0)])
def test_importance_is_checked(scores):
    with pytest.raises(ValueError, match=r"shape \(batch, tokens\)"):
        TokenRouting(0.1).set_importance(scores)
