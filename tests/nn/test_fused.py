"""The engine's kernels against plain PyTorch: outputs and gradients, odd shapes, every dtype."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch

from stratakv import _native
from stratakv.nn import HyperConnections, expand_streams, watch
from stratakv.testing.tolerances import assert_close
from tests.nn.test_hyper_connections import connection_of

pytestmark = pytest.mark.skipif(_native.simd_level() == "scalar", reason="no vector instructions")

# Tokens around blocks of 16 and groups of 4, widths around vectors, one and two and many parts.
SHAPES = [
    ((), 16),
    ((1,), 16),
    ((3, 5), 48),
    ((16,), 32),
    ((17,), 80),
    ((4, 33), 16),
    ((2, 3, 11), 64),
    ((0,), 16),
]


def pair(dim, streams, **options):
    """The same connection twice: by the kernels, and by plain PyTorch."""
    fast = connection_of(dim, streams, backend="fused", **options)
    slow = HyperConnections(dim, num_streams=streams, backend="reference", **options)
    slow.load_state_dict(fast.state_dict())
    return fast, slow


def gradients(connection, x, y_weight, weights):
    """Output, branch input, and all gradients of one pass with a branch that learns."""
    x, y_weight = x.clone().requires_grad_(), y_weight.clone().requires_grad_()
    connection.zero_grad()
    reading = connection.read(x)
    out = reading.write(torch.tanh(reading.input * y_weight))
    (out.float() * weights).sum().backward()
    return {
        "out": out,
        "input": reading.input,
        "x": x.grad,
        "y": y_weight.grad,
        "weight": connection.weight.grad,
        "bias": connection.bias.grad,
        "scale": connection.scale.grad,
    }


@pytest.mark.parametrize("streams", [2, 3, 4])
@pytest.mark.parametrize(("leading", "dim"), SHAPES)
def test_equals_plain_pytorch(leading, dim, streams):
    fast, slow = pair(dim, streams)
    x, y_weight = torch.randn(*leading, streams, dim), torch.randn(dim)
    weights = torch.randn(*leading, streams, dim)
    ours, expected = gradients(fast, x, y_weight, weights), gradients(slow, x, y_weight, weights)
    for name in ("out", "input"):
        assert ours[name].shape == expected[name].shape
        assert_close(ours[name], expected[name])
    for name in ("x", "y", "weight", "bias", "scale"):
        torch.testing.assert_close(
            ours[name], expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("streams", [2, 4])
def test_streams_of_16_bits(streams, dtype):
    """One rounding apart from what float32 streams of the same values give."""
    fast, slow = pair(32, streams)
    x, y_weight = torch.randn(21, streams, 32, dtype=dtype), torch.randn(32, dtype=dtype)
    weights = torch.randn(21, streams, 32).to(dtype).float()
    ours, expected = gradients(fast, x, y_weight, weights), gradients(slow, x, y_weight, weights)
    for name in ("out", "input"):
        assert ours[name].dtype == dtype
        assert_close(ours[name], expected[name])
    for name in ("x", "y", "weight", "bias", "scale"):
        error = (ours[name].float() - expected[name].float()).norm() / expected[name].float().norm()
        assert error < 2e-2, (name, float(error))


def test_gradients_equal_differences():
    """The kernels' own gradients, with no reference between."""
    connection = connection_of(16, 4, backend="fused")
    x, direction = torch.randn(5, 4, 16), torch.randn(5, 4, 16)
    weights = torch.randn(5, 4, 16)

    def loss(x):
        return (connection(x, torch.tanh) * weights).double().sum()

    x.requires_grad_()
    loss(x).backward()
    step = 1e-2
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert abs(float((x.grad * direction).sum() - slope)) < 2e-3 * abs(float(slope)) + 2e-3


@pytest.mark.parametrize("iters", [1, 2, 20])
def test_iterations_and_eps(iters):
    fast, slow = pair(16, 4, sinkhorn_iters=iters, eps=1e-3, norm_eps=1e-2)
    x, y_weight, weights = torch.randn(9, 4, 16) * 0.1, torch.randn(16), torch.randn(9, 4, 16)
    ours, expected = gradients(fast, x, y_weight, weights), gradients(slow, x, y_weight, weights)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_far_apart_logits_stay_finite():
    fast, slow = pair(16, 4)
    with torch.no_grad():
        for connection in (fast, slow):
            connection.scale.fill_(60)
    x, y_weight, weights = torch.randn(9, 4, 16), torch.randn(16), torch.randn(9, 4, 16)
    ours, expected = gradients(fast, x, y_weight, weights), gradients(slow, x, y_weight, weights)
    assert all(torch.isfinite(value).all() for value in ours.values())
    assert_close(ours["out"], expected["out"])


def test_a_deep_stack_and_threads():
    """Streams that fan out, 12 connections deep; the same numbers on one thread and on two."""
    stack = torch.nn.ModuleList(connection_of(16, 4, layer_index=i) for i in range(12))
    plain = copy.deepcopy(stack)
    for connection in plain:
        connection._has_kernels = False

    def run(connections, num_threads):
        torch.set_num_threads(num_threads)
        try:
            connections.zero_grad()
            h = torch.linspace(-1, 1, 70 * 16).reshape(70, 16).requires_grad_()
            x = expand_streams(h, 4)
            for connection in connections:
                x = connection(x, torch.sin)
            x.square().mean().backward()
            return x.detach(), h.grad, [p.grad.clone() for p in connections.parameters()]
        finally:
            torch.set_num_threads(1)

    one, two, reference = run(stack, 1), run(stack, 2), run(plain, 1)
    for other in (two, reference):
        torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one[1], other[1], rtol=1e-3, atol=1e-6)
        for mine, theirs in zip(one[2], other[2], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_gradients_through_the_mappings_themselves():
    """A penalty on what a connection does, as well as its effect; and a reading that is written twice."""
    fast, slow = pair(16, 4)
    x, target = torch.randn(7, 4, 16), torch.randn(7, 16)

    def run(connection):
        leaf = x.clone().requires_grad_()
        connection.zero_grad()
        reading = connection.read(leaf)
        out = reading.write(target) + reading.write(2 * reading.input)
        penalty = sum((part * (i + 1)).square().sum() for i, part in enumerate(reading.mappings))
        (out.sin().sum() + penalty).backward()
        return [leaf.grad, connection.weight.grad, connection.bias.grad, connection.scale.grad]

    for ours, expected in zip(run(fast), run(slow), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


def test_parts_that_get_no_gradient():
    fast, slow = pair(16, 4)
    x = torch.randn(3, 4, 16)
    for use in (lambda r: r.input, lambda r: r.write(torch.ones(3, 16)), lambda r: r.mappings.comb[:, 0]):
        grads = []
        for connection in (fast, slow):
            leaf = x.clone().requires_grad_()
            use(connection.read(leaf)).sin().sum().backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_what_the_kernels_leave_to_pytorch():
    connection = connection_of(16, 4)
    assert connection._has_kernels
    x = torch.randn(3, 4, 16)
    expected = connection(x, torch.tanh)
    double = copy.deepcopy(connection).double()
    torch.testing.assert_close(double(x.double(), torch.tanh).float(), expected, rtol=1e-5, atol=1e-5)
    mapped = torch.func.vmap(lambda one: connection(one, torch.tanh))(x)
    torch.testing.assert_close(mapped, expected, rtol=1e-5, atol=1e-5)
    for other in ({"mixing": "permutations"}, {"num_streams": 5}, {"dim": 24}, {"backend": "reference"}):
        assert not HyperConnections(**({"dim": 16} | other))._has_kernels
    with pytest.raises(ValueError, match="no kernels for 4 streams of width 24"):
        HyperConnections(24, backend="fused")


def test_compiled_it_is_one_graph_of_plain_pytorch():
    connection = connection_of(16, 4)
    x = torch.randn(3, 4, 16)
    grads = []
    for run in (connection, torch.compile(connection, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        run(leaf, torch.tanh).sin().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_second_gradients_are_refused():
    connection = connection_of(16, 4, backend="fused")
    x = torch.randn(3, 4, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(connection(x, torch.tanh).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_checkpointing_autocast_and_watching():
    connection = connection_of(16, 4, backend="fused")
    linear = torch.nn.Linear(16, 16)
    x = torch.randn(2, 9, 4, 16)
    leaf = x.clone().requires_grad_()
    connection(leaf, linear).sin().sum().backward()
    again = x.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(connection, again, linear, use_reentrant=False).sin().sum().backward()
    torch.testing.assert_close(again.grad, leaf.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16), watch(connection) as seen:
        out = connection(x, linear)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, connection(x, linear), rtol=3e-2, atol=3e-2)
    assert seen.mappings[0].comb.shape == (2, 9, 4, 4)


def test_the_binding_refuses_what_does_not_fit():
    x, y = torch.randn(3, 4, 16), torch.randn(3, 16)
    post, comb = torch.randn(3, 4), torch.randn(3, 4, 4)
    for arguments, message in [
        ((x, y, post, comb, x), "share memory"),
        ((x, y, post, comb.double(), torch.empty_like(x)), "float32"),
        ((x, y[:2], post, comb, torch.empty_like(x)), r"y has shape \[2, 16\]"),
        ((x, y.bfloat16(), post, comb, torch.empty_like(x)), "y is bfloat16, the streams are float32"),
        (
            (x[..., :8].contiguous(), y[..., :8].contiguous(), post, comb, x[..., :8].clone()),
            "no kernel for 4",
        ),
        ((y, y, post, comb, y), r"\(N, S, C\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            _native.streams_write(*arguments)


def test_training_is_repeatable():
    """Sums over tokens do not depend on the timing of threads."""
    code = (
        "import torch; from stratakv.nn import HyperConnections\n"
        "torch.manual_seed(0); torch.set_num_threads(2)\n"
        "c = HyperConnections(64); torch.nn.init.normal_(c.weight); x = torch.randn(500, 4, 64)\n"
        "c(x, torch.sin).square().sum().backward(); print(c.weight.grad.double().sum().item().hex())"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env).stdout
        for _ in range(2)
    }
    assert len(said) == 1
