"""What hyper-connections cost in training, on the CPU, and what they do to a signal over depth."""

from __future__ import annotations

import gc
import json
import statistics
import time
from pathlib import Path

from benches.harness import NotMeasurableHereError, Result, figure
from benches.texts import HANDBOOK

# One training step of a small model: blocks as wide as those of a 100M model, rows of a usual length.
BATCH, LENGTH = 2, 512
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "num_layers": 4,
    "num_heads": 12,
    "num_kv_heads": 4,
    "max_positions": LENGTH,
}
NUM_ROUNDS = 15
# The residual part alone: connections around a branch that costs nothing.
DEPTH, STREAMS = 8, 4


def move(parameters):
    """Away from where they start, where much is zero."""
    import torch

    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.02)


def model_of(**options):
    """A model, its optimizer, and tokens; connections away from where they start."""
    import torch

    from stratakv.nn import StrataLM, TransformerConfig

    torch.manual_seed(0)
    model = StrataLM(TransformerConfig(**SIZES, **options))
    move(
        parameter
        for name, parameter in model.named_parameters()
        if "connection" in name or "stream_head" in name
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return model, optimizer, torch.randint(0, SIZES["vocab_size"], (BATCH, LENGTH))


def step_seconds(model, optimizer, ids):
    """One sample: loss, gradients, update."""
    start = time.perf_counter()
    optimizer.zero_grad()
    model.loss(ids).backward()
    optimizer.step()
    return time.perf_counter() - start


def connections_of(dim):
    """The same in every call."""
    import torch

    from stratakv.nn import HyperConnections

    torch.manual_seed(0)
    connections = torch.nn.ModuleList(
        HyperConnections(dim, num_streams=STREAMS, layer_index=index) for index in range(DEPTH)
    )
    move(connections.parameters())
    return connections


def ours(num_tokens, dim):
    """Our connections, one after the other, as a function of the streams."""
    import torch

    connections = connections_of(dim)

    def run(x):
        for connection in connections:
            x = connection(x, torch.nn.Identity())
        return x

    return run, torch.randn(BATCH, num_tokens // BATCH, STREAMS, dim)


def compiled(num_tokens, dim):
    """Their plain PyTorch, compiled: one graph of a connection, which takes its parameters, serves all."""
    import torch

    from stratakv.nn.mappings import gather, mappings_of, project, scatter

    connections = connections_of(dim)
    form = connections[0].form

    @torch.compile(fullgraph=True, dynamic=False)
    def through(x, weight, bias, scale):
        mappings = mappings_of(project(x, weight, form.norm_eps), scale, bias, form)
        return scatter(x, gather(x, mappings.pre), mappings.post, mappings.comb)

    def run(x):
        for connection in connections:
            x = through(x, connection.weight, connection.bias, connection.scale)
        return x

    return run, torch.randn(BATCH, num_tokens // BATCH, STREAMS, dim)


def theirs(num_tokens, dim):
    """The `hyper-connections` package's manifold-constrained ones."""
    import torch

    try:
        from hyper_connections.mHCv2 import get_init_and_expand_reduce_stream_functions as make
    except ImportError as error:
        raise NotMeasurableHereError("the hyper-connections package is not installed") from error
    init, _, _ = make(STREAMS, dim=dim, sinkhorn_iters=20)
    connections = torch.nn.ModuleList(init(layer_index=index) for index in range(DEPTH))
    move(connections.parameters())

    def run(x):
        for connection in connections:
            branch_input, add = connection(x)
            x = add(branch_input)
        return x

    return run, torch.randn(BATCH, num_tokens // BATCH, STREAMS, dim)


def residual_seconds(run, x):
    """One sample: forward and backward."""
    leaf = x.clone().requires_grad_()
    start = time.perf_counter()
    run(leaf).sum().backward()
    return time.perf_counter() - start


def kept_bytes(run, x):
    """What autograd keeps between the passes, shared memory once."""
    import torch

    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(leaf)
    del out
    return sum(kept.values())


def median_ms(seconds):
    """Milliseconds, rounded."""
    return round(1000 * statistics.median(seconds), 1)


def rounds(first, second):
    """Alternating samples of both, garbage collected before and not during."""
    for one in (first, second):
        one()
        one()
    gc.collect()
    gc.disable()
    try:
        return [(first(), second()) for _ in range(NUM_ROUNDS)]
    finally:
        gc.enable()


@figure(
    "mhc_step_overhead_cpu",
    "a training step with four mHC streams over one with the ordinary residual, hidden 768, 1024 tokens",
    unit="of the ordinary step, more",
    target=0.15,
    at_most=True,
    peer="the same model with x + F(x), alternating steps of AdamW",
    limit="3 % of this model's operations, and passes over streams four times as wide as the residual",
)
def mhc_step_overhead_cpu() -> Result:
    import torch

    plain, mhc = model_of(num_streams=1, learnable_scale=False), model_of(num_streams=STREAMS)
    pairs = rounds(lambda: step_seconds(*plain), lambda: step_seconds(*mhc))
    return Result(
        [ours / theirs - 1 for theirs, ours in pairs],
        {
            "threads": torch.get_num_threads(),
            "plain_ms": median_ms(one for one, _ in pairs),
            "mhc_ms": median_ms(other for _, other in pairs),
        },
    )


@figure(
    "mhc_vs_hyper_connections",
    "the residual part of a training step: eight mHC connections, four streams, 1024 tokens of 768",
    unit="times the package's speed",
    target=2,
    peer="hyper-connections from PyPI, its mHC with 20 Sinkhorn iterations, alternating passes",
    limit="four passes over the streams forward, nine backward, at the speed of the memory",
)
def mhc_vs_hyper_connections() -> Result:
    dim = SIZES["hidden_size"]
    our, their = ours(BATCH * LENGTH, dim), theirs(BATCH * LENGTH, dim)
    pairs = rounds(lambda: residual_seconds(*our), lambda: residual_seconds(*their))
    return Result(
        [theirs / ours for ours, theirs in pairs],
        {
            "ours_ms": median_ms(one for one, _ in pairs),
            "package_ms": median_ms(other for _, other in pairs),
        },
    )


@figure(
    "mhc_vs_compiled",
    "the same eight connections beside their plain PyTorch under torch.compile",
    unit="times the compiled speed",
    target=1,
    peer="torch.compile (inductor, C++) of `nn/mappings.py`, alternating passes; compiling is not counted",
    limit="four passes over the streams forward, nine backward, at the speed of the memory",
)
def mhc_vs_compiled() -> Result:
    import torch

    dim = SIZES["hidden_size"]
    (our, x), (their, _) = ours(BATCH * LENGTH, dim), compiled(BATCH * LENGTH, dim)
    torch.testing.assert_close(our(x), their(x), rtol=1e-3, atol=1e-4)
    pairs = rounds(lambda: residual_seconds(our, x), lambda: residual_seconds(their, x))
    return Result(
        [theirs / ours for ours, theirs in pairs],
        {
            "threads": torch.get_num_threads(),
            "ours_ms": median_ms(one for one, _ in pairs),
            "compiled_ms": median_ms(other for _, other in pairs),
        },
    )


@figure(
    "mhc_memory_vs_hyper_connections",
    "what autograd keeps for the same eight connections",
    unit="of the package's bytes",
    target=1,
    at_most=True,
    peer="hyper-connections from PyPI",
    limit="the streams before each connection, and the branch's output",
)
def mhc_memory_vs_hyper_connections() -> Result:
    dim = SIZES["hidden_size"]
    our, their = kept_bytes(*ours(BATCH * LENGTH, dim)), kept_bytes(*theirs(BATCH * LENGTH, dim))
    return Result([our / their], {"ours_mib": our >> 20, "package_mib": their >> 20})


@figure(
    "mhc_composite_gain_64",
    "greatest composite gain over 64 connections, parameters far from their start",
    unit="times",
    target=2,
    at_most=True,
    peer="the unconstrained form with the same parameters, in the details",
    limit="1: a doubly stochastic product",
)
def mhc_composite_gain_64() -> Result:
    import torch

    from stratakv.nn import HyperConnections, watch

    def gain(mixing, seed):
        torch.manual_seed(seed)
        connections = torch.nn.ModuleList(
            HyperConnections(64, num_streams=STREAMS, layer_index=index, mixing=mixing) for index in range(64)
        )
        with torch.no_grad():
            for parameter in connections.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.5))
            x = torch.randn(256, STREAMS, 64)
            with watch(connections) as seen:
                for connection in connections:
                    x = connection(x / x.square().mean().sqrt(), torch.tanh)
        return seen.gains().largest

    seeds = range(5)
    unconstrained = sorted(gain("unconstrained", seed) for seed in seeds)
    return Result(
        [gain("sinkhorn", seed) for seed in seeds], {"unconstrained": unconstrained[len(seeds) // 2]}
    )


COMPARISON = Path(__file__).parents[1] / "build" / "compare"


@figure(
    "mhc_steps_to_plain_loss",
    "share of its steps after which mHC has the plain model's final held-out loss, three seeds",
    unit="of the steps",
    target=0.85,
    at_most=True,
    peer="the same model with x + F(x), widened to as many parameters, on the same batches",
    limit="the learning rate falls over all steps, so that much of the loss comes at the end",
)
def mhc_steps_to_plain_loss() -> Result:
    """`stratakv train compare` on a book; meant for 20 minutes, and a run that was stopped goes on."""
    from benches.texts import prose
    from stratakv.cli import main

    if not HANDBOOK.is_dir():
        raise NotMeasurableHereError("the book is not installed (apt-get install debian-handbook)")
    COMPARISON.mkdir(parents=True, exist_ok=True)
    book = COMPARISON / "book.txt"
    book.write_text("\n\n".join(prose()))
    out = COMPARISON / "runs"
    code = main(["train", "compare", "--text", str(book), "--out", str(out), "--json"])
    if code != 0:
        raise SystemExit(f"stratakv train compare ended with {code}")
    summary = json.loads((out / "compare.json").read_text())
    shares = summary["variants"]["mhc"]["steps_to_plain_loss"]
    return Result(
        # Not reached counts as all steps and half as many again: the median of three stays a number.
        [1.5 if share is None else share for share in shares],
        {
            "final_losses": {name: entry["final_loss"] for name, entry in summary["variants"].items()},
            "shares": {name: entry["steps_to_plain_loss"] for name, entry in summary["variants"].items()},
            "parameters": {name: entry["parameters"] for name, entry in summary["variants"].items()},
            "stress": summary["stress"],
            "steps": summary["steps"],
        },
    )
