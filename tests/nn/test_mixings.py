"""Mixing matrices: what their rows and columns sum to, and what they are at the start."""

from __future__ import annotations

import itertools

import pytest
import torch

from stratakv.nn import kronecker_product, permutation_mixture, sinkhorn
from stratakv.nn.mappings import Form, mappings_of
from stratakv.nn.mixings import MIXINGS, mixing_of

CONSTRAINED = [("sinkhorn", streams) for streams in (2, 3, 4, 7)]
CONSTRAINED += [("permutations", streams) for streams in (2, 3, 5)]
CONSTRAINED += [("kronecker", streams) for streams in (2, 4, 8)]


def comb_of(name, streams, logits):
    """The matrices of logits (..., L), by way of what a connection computes."""
    form = Form(streams, name)
    bias = torch.zeros(sum(form.sizes), dtype=logits.dtype)
    numbers = torch.cat([logits.new_zeros(*logits.shape[:-1], 2 * streams), logits], -1)
    return mappings_of(numbers, logits.new_ones(3), bias, form).comb


def sinkhorn_by_numbers(logits, num_iters, eps):
    """One matrix, entry by entry, in Python's floats."""
    size = len(logits)
    rows = []
    for row in logits.tolist():
        exps = [torch.tensor(v, dtype=torch.float64).sub(max(row)).exp().item() for v in row]
        rows.append([e / sum(exps) + eps for e in exps])
    for sweep in range(num_iters):
        if sweep:
            for j in range(size):
                total = sum(rows[j]) + eps
                rows[j] = [value / total for value in rows[j]]
        for k in range(size):
            total = sum(rows[j][k] for j in range(size)) + eps
            for j in range(size):
                rows[j][k] /= total
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_sinkhorn_equals_the_sum_by_hand(size):
    logits = torch.randn(size, size, dtype=torch.float64) * 2
    for num_iters in (1, 2, 20):
        expected = sinkhorn_by_numbers(logits, num_iters, 1e-6)
        torch.testing.assert_close(sinkhorn(logits, num_iters=num_iters), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "streams"), CONSTRAINED)
def test_rows_and_columns_sum_to_one(name, streams):
    logits = torch.randn(200, mixing_of(name).num_logits(streams))
    comb = comb_of(name, streams, logits)
    assert comb.shape == (200, streams, streams)
    assert comb.dtype == torch.float32
    assert (comb >= 0).all()
    exact = 1e-5 if name == "sinkhorn" else 1e-6
    assert (comb.sum(-2) - 1).abs().max() < exact
    assert (comb.sum(-1) - 1).abs().max() < (5e-3 if name == "sinkhorn" else exact)


@pytest.mark.parametrize(("name", "streams"), CONSTRAINED)
def test_exact_forms_stay_exact_where_sinkhorn_does_not(name, streams):
    logits = torch.randn(500, mixing_of(name).num_logits(streams)) * 30
    comb = comb_of(name, streams, logits)
    assert (comb.sum(-2) - 1).abs().max() < 3e-5
    if name != "sinkhorn":
        assert (comb.sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sinkhorn_is_computed_in_float32(dtype):
    logits = torch.randn(8, 4, 4, dtype=dtype)
    assert torch.equal(sinkhorn(logits), sinkhorn(logits.float()))


@pytest.mark.parametrize("name", list(MIXINGS))
@pytest.mark.parametrize("streams", [2, 4])
@pytest.mark.parametrize("diagonal", [0.6, 0.9])
def test_initial_matrix(name, streams, diagonal):
    logits = mixing_of(name).initial(streams, diagonal)
    assert logits.shape == (mixing_of(name).num_logits(streams),)
    form = Form(streams, name)
    bias = torch.cat([torch.zeros(2 * streams), logits])
    comb = mappings_of(torch.zeros_like(bias), torch.ones(3), bias, form).comb
    torch.testing.assert_close(comb.diagonal(), torch.full((streams,), diagonal), rtol=0, atol=1e-5)
    torch.testing.assert_close(comb.sum(-1), torch.ones(streams), rtol=0, atol=1e-5)
    torch.testing.assert_close(comb.sum(-2), torch.ones(streams), rtol=0, atol=1e-5)


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_permutation_mixture_is_the_mean_of_permutations(streams):
    logits = torch.randn(24 if streams == 4 else streams * (streams - 1), dtype=torch.float64)[
        : len(list(itertools.permutations(range(streams))))
    ]
    expected = torch.zeros(streams, streams, dtype=torch.float64)
    for weight, order in zip(logits.softmax(-1), itertools.permutations(range(streams)), strict=True):
        for j, k in enumerate(order):
            expected[j, k] += weight
    torch.testing.assert_close(permutation_mixture(logits, streams), expected)


def test_kronecker_product_is_torchs():
    logits = torch.randn(3, dtype=torch.float64)
    factors = [torch.stack([torch.stack([s, 1 - s]), torch.stack([1 - s, s])]) for s in logits.sigmoid()]
    expected = torch.kron(torch.kron(factors[0], factors[1]), factors[2])
    torch.testing.assert_close(kronecker_product(logits, 8), expected)


@pytest.mark.parametrize(("name", "streams"), [*CONSTRAINED, ("unconstrained", 3)])
def test_gradients(name, streams):
    logits = torch.randn(2, mixing_of(name).num_logits(streams), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: comb_of(name, streams, value), logits)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"\(\.\.\., S, S\)"):
        sinkhorn(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="num_iters"):
        sinkhorn(torch.zeros(2, 2), num_iters=0)
    with pytest.raises(ValueError, match="at most 5"):
        Form(6, "permutations")
    with pytest.raises(ValueError, match="power of two"):
        Form(6, "kronecker")
    with pytest.raises(ValueError, match="must be one of sinkhorn"):
        Form(4, "cayley")
    with pytest.raises(ValueError, match="at least 2"):
        Form(1)
