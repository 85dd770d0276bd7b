"""Hyper-connections against transformers' DeepSeek-V4, a float64 loop, and the ordinary residual network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stratakv.nn import (
    HyperConnections,
    SinglePassHyperConnections,
    StreamHead,
    composite_gains,
    expand_streams,
    watch,
)
from stratakv.nn.mixings import MIXINGS
from stratakv.testing.tolerances import assert_close

# (leading dimensions, S, C): odd, aligned, one token, none.
SHAPES = [((2, 3), 4, 8), ((5,), 2, 7), ((1, 1), 3, 33), ((), 4, 16), ((2, 0), 4, 8), ((3, 2, 2), 5, 1)]


def connection_of(dim, streams, **options):
    """A connection whose every parameter has been through some training."""
    made = HyperConnections(dim, num_streams=streams, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.5))
    return made


def reference_token(x_SC, weight, bias, scale, form, branch):
    """One token, sum by sum, in float64: the paper's equations with DeepSeek's eps."""
    x = x_SC.double()
    num_streams, dim = x.shape
    flat = [x[s, c] for s in range(num_streams) for c in range(dim)]
    rms = (sum(v * v for v in flat) / len(flat) + form.norm_eps) ** 0.5
    numbers = [sum(w * v for w, v in zip(row, flat, strict=True)) / rms for row in weight.double()]
    which = [0] * num_streams + [1] * num_streams + [2] * num_streams**2
    logits = [n * scale[w].double() + b for n, w, b in zip(numbers, which, bias.double(), strict=True)]
    pre = [1 / (1 + torch.exp(-v)) + form.eps for v in logits[:num_streams]]
    post = [2 / (1 + torch.exp(-v)) for v in logits[num_streams : 2 * num_streams]]
    comb = torch.stack(logits[2 * num_streams :]).reshape(num_streams, num_streams).exp()
    comb = comb / comb.sum(1, keepdim=True) + form.eps
    for sweep in range(form.sinkhorn_iters):
        if sweep:
            comb = comb / (comb.sum(1, keepdim=True) + form.eps)
        comb = comb / (comb.sum(0, keepdim=True) + form.eps)
    y = branch(sum(p * row for p, row in zip(pre, x, strict=True)))
    return torch.stack(
        [sum(comb[j, k] * x[j] for j in range(num_streams)) + post[k] * y for k in range(num_streams)]
    )


@pytest.mark.parametrize(("leading", "streams", "dim"), SHAPES)
def test_equals_the_equations(leading, streams, dim):
    connection = connection_of(dim, streams)
    x = torch.randn(*leading, streams, dim, requires_grad=True)
    out = connection(x, torch.tanh)
    assert out.shape == x.shape
    weights = torch.randn_like(out)
    (out * weights).sum().backward()

    twin = x.detach().double().requires_grad_()
    parameters = [
        p.detach().double().requires_grad_() for p in (connection.weight, connection.bias, connection.scale)
    ]
    tokens = [
        reference_token(token, *parameters, connection.form, torch.tanh)
        for token in twin.reshape(-1, streams, dim)
    ]
    if not tokens:
        assert x.grad.numel() == 0
        return
    expected = torch.stack(tokens).reshape(out.shape)
    assert_close(out, expected.float())
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad.float(), rtol=1e-4, atol=2e-5)
    for ours, theirs in zip((connection.weight, connection.bias, connection.scale), parameters, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=5e-5)


def deepseek(streams, dim):
    """transformers' modules with the names of its config that they read."""
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

    config = DeepseekV4Config(hidden_size=dim, hc_mult=streams)
    return theirs.DeepseekV4HyperConnection(config), theirs.DeepseekV4HyperHead(config), config


@pytest.mark.hf
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("streams", "dim"), [(4, 16), (2, 7), (3, 33)])
def test_equals_deepseeks(streams, dim, dtype):
    theirs, their_head, config = deepseek(streams, dim)
    options = {"norm_eps": config.rms_norm_eps, "eps": config.hc_eps}
    ours = connection_of(dim, streams, sinkhorn_iters=config.hc_sinkhorn_iters, **options)
    theirs.load_state_dict({"fn": ours.weight, "base": ours.bias, "scale": ours.scale})
    x, y = torch.randn(2, 5, streams, dim, dtype=dtype), torch.randn(2, 5, dim, dtype=dtype)
    x_ours, x_theirs = (x.clone().requires_grad_() for _ in range(2))
    y_ours, y_theirs = (y.clone().requires_grad_() for _ in range(2))

    reading = ours.read(x_ours)
    post, comb, collapsed = theirs(x_theirs)
    torch.testing.assert_close(reading.mappings.post, post, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reading.mappings.comb, comb, rtol=1e-5, atol=1e-6)
    assert_close(reading.input, collapsed)

    out = reading.write(y_ours + reading.input)
    # As in their decoder layer, in float32: there it is rounded to 16 bits between the steps.
    expected = (
        post.unsqueeze(-1) * (y_theirs + collapsed).float().unsqueeze(-2)
        + comb.transpose(-1, -2) @ x_theirs.float()
    )
    assert out.dtype == dtype
    assert_close(out, expected.to(dtype))
    weights = torch.randn(out.shape)
    (out.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(y_ours.grad, y_theirs.grad)
    loose = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=loose, atol=loose)
    for mine, other in ((ours.weight, theirs.fn), (ours.bias, theirs.base), (ours.scale, theirs.scale)):
        error = (mine.grad - other.grad).norm() / other.grad.norm()
        assert error < (1e-5 if dtype == torch.float32 else 3e-2), float(error)

    head = StreamHead(dim, num_streams=streams, **options)
    with torch.no_grad():
        their_head.hc_fn.copy_(head.weight.normal_())
        their_head.hc_base.copy_(head.bias.normal_())
        their_head.hc_scale.copy_(head.scale.normal_())
    their_head.input_norm.eps = config.rms_norm_eps
    assert_close(head(x), their_head(x))


def branches(dim, depth, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(dim, dim) for _ in range(depth)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, dim**-0.5, generator=generator)
    return layers


@pytest.mark.parametrize("mixing", list(MIXINGS))
@pytest.mark.parametrize("kind", [HyperConnections, SinglePassHyperConnections])
@pytest.mark.parametrize("streams", [2, 4])
def test_starts_as_the_ordinary_residual_network(kind, streams, mixing):
    depth, dim = 12, 16
    connections = [kind(dim, num_streams=streams, layer_index=i, mixing=mixing) for i in range(depth)]
    h = plain = torch.randn(3, 5, dim)
    x, pre = expand_streams(h, streams), None
    for connection, layer in zip(connections, branches(dim, depth), strict=True):
        plain = plain + torch.tanh(layer(plain))
        branch = nn.Sequential(layer, nn.Tanh())
        if kind is SinglePassHyperConnections:
            x, pre = connection(x, branch, pre)
        else:
            x = connection(x, branch)
    torch.testing.assert_close(StreamHead(dim, num_streams=streams)(x), plain, rtol=1e-4, atol=2e-4)


def test_streams_part_after_one_step():
    """Were all streams read alike, their gradients would be equal, and they equal for ever."""
    dim = 8
    connections = nn.ModuleList(HyperConnections(dim, num_streams=4, layer_index=i) for i in range(4))
    layers = nn.ModuleList(branches(dim, 4))
    optimizer = torch.optim.SGD([*connections.parameters(), *layers.parameters()], lr=0.1)
    h = torch.randn(6, dim)

    def run():
        x = expand_streams(h, 4)
        for connection, layer in zip(connections, layers, strict=True):
            x = connection(x, layer)
        return x

    before = run()
    assert (before - before[:, :1]).abs().max() < 1e-4
    for _ in range(2):
        optimizer.zero_grad()
        run().mean(-2).square().mean().backward()
        optimizer.step()
    after = run()
    assert (after - after[:, :1]).abs().max() > 1e-3
    assert all(parameter.grad.abs().max() > 0 for parameter in connections.parameters())


def test_one_stream_is_the_residual_with_a_scale():
    connection = HyperConnections(8, num_streams=1)
    assert {name: tuple(p.shape) for name, p in connection.named_parameters()} == {"scale": (1,)}
    h, layer = torch.randn(3, 8), nn.Linear(8, 8)
    assert torch.equal(connection(expand_streams(h, 1), layer).squeeze(-2), h + layer(h))
    with torch.no_grad():
        connection.scale.fill_(0.5)
    out = connection(expand_streams(h, 1), layer)
    torch.testing.assert_close(StreamHead(8, num_streams=1)(out), h + 0.5 * layer(h))
    out.sum().backward()
    torch.testing.assert_close(connection.scale.grad, layer(h).sum().reshape(1))


@pytest.mark.parametrize("mixing", ["sinkhorn", "permutations", "kronecker"])
def test_composite_gain_over_64_connections(mixing):
    """Large logits, as after long training: the product of 64 matrices hardly amplifies."""
    depth, dim, streams = 64, 16, 4
    connections = nn.ModuleList(
        connection_of(dim, streams, layer_index=i, mixing=mixing) for i in range(depth)
    )
    x = torch.randn(32, streams, dim)
    with torch.no_grad(), watch(connections) as seen:
        for connection in connections:
            x = connection(x, torch.tanh)
    assert len(seen.names) == depth
    assert seen.gains().largest <= 2
    assert torch.isfinite(x).all()


def test_composite_gain_of_the_unconstrained_form_is_not_bounded():
    connections = nn.ModuleList(
        connection_of(16, 4, layer_index=i, mixing="unconstrained") for i in range(64)
    )
    x = torch.randn(32, 4, 16)
    with torch.no_grad(), watch(connections) as seen:
        for connection in connections:
            x = connection(x / x.norm(), torch.tanh)
    assert seen.gains().largest > 100


def test_gains_are_those_of_the_product():
    h_res = [torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, -3.0], [0.0, 1.0]])]
    gains = composite_gains([matrix.T for matrix in h_res])
    product = h_res[1] @ h_res[0]
    assert gains.forward == (2.0, float(product.abs().sum(1).max()))
    assert gains.backward == (3.0, float(product.abs().sum(0).max()))
    with pytest.raises(ValueError, match="at least one"):
        composite_gains([])


def test_watch_reports_and_lets_go():
    model = nn.ModuleList(HyperConnections(8, num_streams=4, layer_index=i) for i in range(3))
    x = torch.randn(2, 4, 8)
    with watch(model) as seen:
        for connection in model:
            x = connection(x, torch.tanh)
    assert seen.report().count("\n") == 3
    numbers = seen.as_dict()
    assert numbers["row_sum_error"] < 1e-4
    assert len(numbers["gain_forward"]) == 3
    model[0](x, torch.tanh)
    assert len(seen.names) == 3
    with pytest.raises(ValueError, match="no hyper-connections"), watch(nn.Linear(2, 2)):
        pass


def test_parameters_of_16_bits_are_used_in_float32():
    connection = connection_of(8, 4).bfloat16()
    x = torch.randn(3, 4, 8, dtype=torch.bfloat16)
    mappings = connection.mappings(x)
    assert {part.dtype for part in mappings} == {torch.float32}
    assert (mappings.comb.sum(-2) - 1).abs().max() < 1e-5
    assert connection(x, torch.tanh).dtype == torch.bfloat16


def test_copies_and_states():
    connection = connection_of(8, 4)
    twin = HyperConnections(8, num_streams=4, layer_index=1)
    twin.load_state_dict(connection.state_dict())
    x = torch.randn(2, 4, 8)
    assert torch.equal(twin(x, torch.tanh), connection(x, torch.tanh))
    assert torch.equal(copy.deepcopy(connection)(x, torch.tanh), connection(x, torch.tanh))


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_streams=0"):
        HyperConnections(8, num_streams=0)
    with pytest.raises(ValueError, match="backend must be one of"):
        HyperConnections(8, backend="fast")
    with pytest.raises(ValueError, match="mixing must be one of"):
        HyperConnections(8, mixing="none")
    with pytest.raises(ValueError, match=r"\(\.\.\., 4, 8\), not \(2, 3, 8\)"):
        HyperConnections(8)(torch.zeros(2, 3, 8), torch.tanh)
    with pytest.raises(ValueError, match="at least 2 streams"):
        SinglePassHyperConnections(8, num_streams=1)
