"""Streams written again in the backward pass: the same gradients to the bit, and less that is kept."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from stratakv import _native
from stratakv.nn import (
    HyperConnections,
    StrataLM,
    TransformerConfig,
    expand_streams,
    group_size,
    streams_recomputed,
)
from tests.nn.test_hyper_connections import connection_of

pytestmark = pytest.mark.skipif(_native.simd_level() == "scalar", reason="no vector instructions")


def stack_of(depth=7, dim=16):
    """Connections, and branches that count how often they run."""
    connections = nn.ModuleList(connection_of(dim, 4, layer_index=index) for index in range(depth))
    branches = [nn.Sequential(nn.Linear(dim, dim), nn.Tanh()) for _ in connections]
    calls = []
    for branch in branches:
        branch.register_forward_hook(lambda *_: calls.append(1))
    return connections, nn.ModuleList(branches), calls


def through(connections, branches, h, between=lambda x: x):
    """The last streams, and references to the streams after each connection."""
    x, seen = expand_streams(h, 4), []
    for connection, branch in zip(connections, branches, strict=True):
        x = between(connection(x, branch))
        seen.append(weakref.ref(x))
    return x, seen


def gradients(modules, h, loss):
    h.grad = None
    modules.zero_grad()
    loss.backward()
    return [h.grad.clone(), *(parameter.grad.clone() for parameter in modules.parameters())]


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit(every, dtype):
    connections, branches, calls = stack_of()
    branches.to(dtype)
    modules = nn.ModuleList([connections, branches])
    h = torch.randn(3, 5, 16, dtype=dtype, requires_grad=True)
    expected = gradients(modules, h, through(connections, branches, h)[0].sin().sum())
    calls.clear()
    with streams_recomputed(every=every):
        out, _ = through(connections, branches, h)
    found = gradients(modules, h, out.sin().sum())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert len(calls) == len(connections), "no branch runs twice"


@pytest.mark.parametrize(("every", "num_kept"), [(1, 6), (2, 3), (3, 2), (7, 0)])
def test_one_of_a_group_is_kept(every, num_kept):
    """Of the streams after seven connections; the last are the output, the first connection's are `h`."""
    connections, branches, _ = stack_of()
    h = torch.randn(4, 16, requires_grad=True)
    with streams_recomputed(every=every):
        out, seen = through(connections, branches, h)
    gc.collect()
    kept = streams_kept(out)
    assert len(kept) == num_kept + 1, "and the copy of `h` that the first connection made"
    assert sum(reference() is not None for reference in seen) <= num_kept + 1


def streams_kept(out):
    """Memory of the (N, 4, 16) streams that the graph holds, by address."""
    found, todo, done = set(), [out.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in done:
            continue
        done.add(node)
        todo += [following for following, _ in node.next_functions]
        if node.name() == "_ReadBackward" and node.saved_tensors[0] is not None:
            found.add(node.saved_tensors[0].data_ptr())
    return found


def test_twice_through_one_graph():
    connections, branches, _ = stack_of()
    h = torch.randn(4, 16, requires_grad=True)
    with streams_recomputed(every=4):
        out, _ = through(connections, branches, h)
    once = torch.autograd.grad(out.sum(), h, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out.sum(), h)[0], once)


@pytest.mark.parametrize(
    "between",
    [lambda x: x * 1.5, lambda x: x.clone(), lambda x: x.mul_(1.5), lambda x: (x * 2 + 1) / 2],
    ids=["another tensor", "a copy", "in place", "several"],
)
def test_streams_that_something_else_made_are_kept(between):
    connections, branches, _ = stack_of(4)
    modules = nn.ModuleList([connections, branches])
    h = torch.randn(4, 16, requires_grad=True)
    expected = gradients(modules, h, through(connections, branches, h, between)[0].sin().sum())
    with streams_recomputed(every=4):
        out, _ = through(connections, branches, h, between)
    assert len(streams_kept(out)) == 4
    found = gradients(modules, h, out.sin().sum())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_model():
    model = StrataLM(
        TransformerConfig(vocab_size=40, hidden_size=32, num_layers=4, num_heads=2, intermediate_size=48)
    )
    ids = torch.randint(40, (2, 9))
    grads = []
    for recompute in ("nothing", "streams", "blocks"):
        model.zero_grad()
        model.loss(ids, recompute=recompute).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for other in grads[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(grads[0], other, strict=True))
    with pytest.raises(ValueError, match="recompute must be one of nothing, streams, blocks, not True"):
        model.loss(ids, recompute=True)


def test_what_cannot_be_written_again_is_said():
    connection = HyperConnections(24, num_streams=4)
    x = torch.randn(3, 4, 24, requires_grad=True)
    with (
        streams_recomputed(every=2),
        pytest.warns(UserWarning, match="streams are kept, not recomputed.*width 24"),
    ):
        connection(x, torch.tanh)
    with streams_recomputed(every=2), torch.no_grad():
        connection(x, torch.tanh)
    with pytest.raises(ValueError, match="every=0 must be at least 1"), streams_recomputed(every=0):
        pass


def test_the_group_that_takes_the_least_memory():
    for streams, connections in ((4, 60), (2, 16), (4, 1), (3, 500)):

        def kept(every, streams=streams, connections=connections):
            return streams * connections / every + (streams + 2) * every

        best = min(range(1, connections + 1), key=kept)
        assert abs(group_size(streams, connections) - best) <= 1
