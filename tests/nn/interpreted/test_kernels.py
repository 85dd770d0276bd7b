"""The GPU's kernels, interpreted, against plain PyTorch in float64: outputs and gradients, odd shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.nn import HyperConnections, fused, gpu
from stratakv.nn.mixings import sinkhorn
from tests.nn.test_fused import gradients
from tests.nn.test_hyper_connections import connection_of

# Tokens around one and two programs of 16, widths around blocks of 32, and features around blocks of 64.
SHAPES = [((), 1), ((3, 5), 33), ((2, 9), 70), ((0,), 16)]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """Tensors on the CPU go to the kernels for a GPU."""
    monkeypatch.setattr(fused, "_of_device", lambda device, form, dim: gpu)
    monkeypatch.setattr(fused, "_kernels", lambda tensor: gpu)


def pair(dim, streams, **options):
    """A connection by the kernels, and by plain PyTorch in float64."""
    fast = connection_of(dim, streams, **options)
    slow = HyperConnections(dim, num_streams=streams, backend="reference", **options)
    slow.load_state_dict(fast.state_dict())
    return fast, slow.double()


def errors(fast, slow, x, y_weight, weights):
    """By name, the difference over the reference's norm."""
    ours = gradients(fast, x, y_weight, weights)
    expected = gradients(slow, x.double(), y_weight.double(), weights.double())
    for name, value in ours.items():
        assert value.shape == expected[name].shape, name
    return {
        name: float(
            (value.detach().double() - expected[name].detach()).norm()
            / expected[name].detach().norm().clamp_min(1e-3)
        )
        for name, value in ours.items()
    }


@pytest.mark.parametrize("streams", [2, 3, 4])
@pytest.mark.parametrize(("leading", "dim"), SHAPES)
def test_equals_float64(leading, dim, streams):
    fast, slow = pair(dim, streams, sinkhorn_iters=4)
    x, y_weight = torch.randn(*leading, streams, dim), torch.randn(dim)
    found = errors(fast, slow, x, y_weight, torch.randn(*leading, streams, dim))
    assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_streams_of_16_bits(dtype):
    fast, slow = pair(40, 4)
    x, y_weight = torch.randn(21, 4, 40, dtype=dtype), torch.randn(40, dtype=dtype)
    found = errors(fast, slow, x, y_weight, torch.randn(21, 4, 40).to(dtype).float())
    # One rounding of what the branch reads, of its output, and of each gradient.
    assert max(found.values()) < 1e-2, found
    reading = fast.read(x)
    assert reading.input.dtype == reading.write(reading.input).dtype == dtype


@settings(max_examples=6)
@given(st.integers(1, 35), st.integers(2, 4), st.integers(1, 70), st.integers(1, 6))
def test_any_size(num_tokens, streams, dim, iters):
    torch.manual_seed(num_tokens * 71 + dim)
    fast, slow = pair(dim, streams, sinkhorn_iters=iters, eps=1e-4, norm_eps=1e-3)
    x, weights = torch.randn(num_tokens, streams, dim), torch.randn(num_tokens, streams, dim)
    found = errors(fast, slow, x, torch.randn(dim), weights)
    assert max(found.values()) < 5e-5, found


# A sigmoid is 1 / (1 + infinity) there, as on a GPU.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_far_apart_logits():
    """Undoing Sinkhorn's steps is exact enough even where they scale by large numbers."""
    fast, slow = pair(16, 4)
    with torch.no_grad():
        for connection in (fast, slow):
            connection.scale.fill_(30)
    found = errors(fast, slow, torch.randn(20, 4, 16), torch.randn(16), torch.randn(20, 4, 16))
    assert max(found.values()) < 1e-3, found


def test_the_mixing_matrix_is_the_references():
    connection = connection_of(24, 3, sinkhorn_iters=20)
    x = torch.randn(18, 3, 24)
    made = connection.read(x).mappings
    torch.testing.assert_close(made.comb.sum(-2), torch.ones(18, 3))
    slow = HyperConnections(24, num_streams=3, backend="reference")
    slow.load_state_dict(connection.state_dict())
    for mine, theirs in zip(made, slow.mappings(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert sinkhorn(torch.zeros(3, 3)).shape == made.comb.shape[1:]


def test_gradients_that_come_and_do_not():
    """Through the mappings themselves; and of one part of a reading alone."""
    fast, slow = pair(20, 4, sinkhorn_iters=3)
    x = torch.randn(9, 4, 20)
    uses = (
        lambda r: sum((part * (i + 1)).square().sum() for i, part in enumerate(r.mappings)),
        lambda r: r.input.sin().sum(),
        lambda r: r.write(torch.ones_like(r.input)).sin().sum(),
        lambda r: (r.write(r.input) + r.write(2 * r.input)).sin().sum(),
    )
    for use in uses:
        grads = []
        for connection, leaf in ((fast, x.clone()), (slow, x.double())):
            use(connection.read(leaf.requires_grad_())).backward()
            grads.append(leaf.grad.double())
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
