"""How much of the attention a step finds: the blocks that the engine read, beside the best ones.

Set-up: 8K tokens of prose (a handbook) and of code (Python's own library), prefilled densely; then tokens
are decoded with the selection. Their queries, and the keys of all tokens, are taken from the model and
turned by its own rotary, so that the true mass of every block is known. Recall is the mass of the blocks
read over the mass of the best blocks, both with the same budget, sinks and window, and mass is averaged
over the query heads that share a KV head, as they share what is read. It is averaged over layers, KV
heads and tokens.

Two others choose beside the engine, for the same tokens. Quest: by the largest product that a query may have
with a key between the minimum and the maximum of the block's keys. Past mass: by the true mass that the
block had with the queries before, the last PAST tokens of the prompt and those decoded so far, each one
counting less than the next by a decay.

Letters: N tokens whose queries are at hand (PAST, then POSITIONS that are judged), H KV heads, G query
heads of each, S tokens, B blocks, D head dim.
Sources: Tang et al., "Quest", 2024 (arXiv:2406.10774); Zhang et al., "H2O", 2023 (arXiv:2306.14048), with
the decay of later work.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benches.bench_decode import load, prefill
from benches.harness import Result, figure
from benches.texts import prose_ids, token_ids
from stratakv.cache.selection import BLOCK_TOKENS
from stratakv.hf.compat import cache_kwargs

POSITIONS = 48
# The trained window, the decoded tokens included.
CONTEXT = 8192 - POSITIONS
SINKS = 16
WINDOW = 128
PAST = 256
DECAYS = (0.7, 0.9, 0.97, 1.0)
TEXTS = {"prose": prose_ids, "code": token_ids}


@dataclass(frozen=True)
class Recall:
    """What was found of the best blocks' mass in one text with one budget; each (layers, N, H)."""

    engine: Tensor
    # Of the mass outside the sinks and the window, which nobody has to find.
    engine_chosen: Tensor
    # By how the scores of a group's query heads become one.
    quest: dict[str, Tensor]
    # By the decay.
    past: dict[str, Tensor]


@functools.cache
def recalls() -> dict[int, dict[str, Recall]]:
    """For each budget and text, from one prefill per text."""
    import stratakv

    loaded = load("float32")
    model = loaded.model
    found: dict[int, dict[str, Recall]] = {512: {}, 1024: {}}
    positions = torch.arange(CONTEXT + POSITIONS)[None]
    # While the model is attached its rotary turns nothing.
    turns = model.model.rotary_emb(torch.zeros(1), positions)
    for name, ids in TEXTS.items():
        tokens = ids(loaded.tokenizer, CONTEXT + POSITIONS)
        with stratakv.attach(model):
            cache = stratakv.TieredCache.open(model, None, ram="3GiB")
            prefill(model, cache, tokens[: CONTEXT - PAST])
            with queries_of(model) as before:
                prefill(model, cache, tokens[CONTEXT - PAST : CONTEXT])
            for budget, texts in found.items():
                sparse = cache.fork()
                sparse.select(
                    stratakv.Selection(budget=budget, sinks=SINKS, window=WINDOW, dense_below=0, unread=1.0)
                )
                texts[name] = decode(model, sparse, tokens[CONTEXT:], before, turns, budget)
                sparse.close()
            cache.close()
    return found


@contextmanager
def queries_of(model: Any) -> Iterator[list[list[Tensor]]]:
    """For each layer, the (tokens, HGD) queries of every forward pass, before any turn."""
    layers = model.model.layers
    queries: list[list[Tensor]] = [[] for _ in layers]

    def keep(into: list[Tensor]) -> Any:
        return lambda _module, _inputs, output: into.append(output[0].clone())

    hooks = [
        layer.self_attn.q_proj.register_forward_hook(keep(into))
        for layer, into in zip(layers, queries, strict=True)
    ]
    yield queries
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def decode(
    model: Any,
    cache: Any,
    ids: list[int],
    before: list[list[Tensor]],
    turns: tuple[Tensor, Tensor],
    budget: int,
) -> Recall:
    """Decodes `ids` with the cache's selection, and judges what each step read; `before` are PAST queries."""
    layers = model.model.layers
    read: list[list[Any]] = [[] for _ in layers]
    with queries_of(model) as queries:
        for token in ids:
            model(input_ids=torch.tensor([[token]]), **cache_kwargs(cache), use_cache=True)
            for slot, blocks in enumerate(read):
                blocks.append(cache._table.read_blocks(slot)[0])
    judged = []
    for slot, layer in enumerate(layers):
        keys, _ = cache._table.snapshot(slot, torch.device("cpu")).gather(0, CONTEXT + POSITIONS)
        query = torch.cat(before[slot] + queries[slot]).unflatten(-1, (-1, keys.shape[-1]))
        judged.append(judge(*turned(query, keys[0], turns), layer.self_attn.scaling, read[slot], budget))

    def stacked(kinds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([one[name] for one in kinds]) for name in kinds[0]}

    return Recall(
        torch.stack([one.engine for one in judged]),
        torch.stack([one.engine_chosen for one in judged]),
        stacked([one.quest for one in judged]),
        stacked([one.past for one in judged]),
    )


def turned(query: Tensor, keys: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(N, H, G, D) queries and (H, S, D) keys at their positions, of (N, HG, D) and (H, S, D) without."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cos, sin = turns
    keys = apply_rotary_pos_emb(keys[None], keys[None], cos, sin)[1][0]
    query = query.transpose(0, 1)[None]
    query = apply_rotary_pos_emb(query, query, cos[:, CONTEXT - PAST :], sin[:, CONTEXT - PAST :])[0][0]
    return query.transpose(0, 1).unflatten(1, (len(keys), -1)), keys


def judge(query: Tensor, keys: Tensor, scaling: float, read: list[list[list[int]]], budget: int) -> Recall:
    """The recalls of one layer, (POSITIONS, H), from queries and keys with positions."""
    last = torch.arange(CONTEXT, CONTEXT + POSITIONS) // BLOCK_TOKENS
    blocks = torch.arange(-(-keys.shape[1] // BLOCK_TOKENS))
    back = last[:, None] - blocks
    forced = ((blocks < SINKS // BLOCK_TOKENS) | ((back >= 0) & (back < WINDOW // BLOCK_TOKENS)))[:, None]
    future = (back < 0)[:, None]
    before_and_masses = block_masses(query, keys, scaling)
    masses, query = before_and_masses[PAST:], query[PAST:]
    engine = torch.zeros_like(masses, dtype=torch.bool)
    for step, heads in enumerate(read):
        for head, chosen in enumerate(heads):
            engine[step, head, chosen] = True
    count = budget // BLOCK_TOKENS
    assert (engine.sum(-1) == count).all(), "the engine reads what the budget says"
    assert (engine >= forced).all() and not (engine & future).any(), "the sinks, the window, and no more"

    def best(scores: Tensor) -> Tensor:
        """The mask of `count` blocks, the forced ones and those of the largest scores."""
        scores = scores.masked_fill(future, -torch.inf).masked_fill(forced, torch.inf)
        return torch.zeros_like(engine).scatter(-1, scores.topk(count).indices, True)

    def share(chosen: Tensor, of: Tensor = masses) -> Tensor:
        return (of * chosen).sum(-1) / (of * oracle).sum(-1)

    oracle = best(masses)
    quest = quest_scores(query, keys, future)
    return Recall(
        share(engine),
        share(engine, masses * ~forced),
        {name: share(best(scores)) for name, scores in quest.items()},
        {f"decay {decay}": share(best(past_masses(before_and_masses, decay))) for decay in DECAYS},
    )


def past_masses(masses: Tensor, decay: float) -> Tensor:
    """(POSITIONS, H, B): for each judged token, the mass of those before it, decayed with every token."""
    total, sums = torch.zeros_like(masses[0]), []
    for one in masses:
        sums.append(total)
        total = total * decay + one
    return torch.stack(sums[PAST:])


def block_masses(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """(N, H, B): the share of a group's attention that each block has, over all tokens so far."""
    scores = torch.einsum("nhgd,hsd->nhgs", query, keys) * scaling
    future = torch.arange(keys.shape[1]) > torch.arange(CONTEXT - PAST, CONTEXT + POSITIONS)[:, None]
    shares = scores.masked_fill(future[:, None, None], -torch.inf).softmax(-1).mean(2)
    return by_block(shares, 0.0).sum(-1)


def quest_scores(query: Tensor, keys: Tensor, future: Tensor) -> dict[str, Tensor]:
    """(N, H, B) of Quest's scores, by how those of a group's query heads are combined."""
    keys = keys.transpose(1, 2)
    least = by_block(keys, torch.inf).amin(-1).bfloat16().float()
    most = by_block(keys, -torch.inf).amax(-1).bfloat16().float()
    scores = torch.einsum("nhgd,hdb->nhgb", query.clamp(min=0), most)
    scores += torch.einsum("nhgd,hdb->nhgb", query.clamp(max=0), least)
    weights = (scores * query.shape[-1] ** -0.5).masked_fill(future[:, None], -torch.inf).softmax(-1)
    return {"largest": scores.amax(2), "mean": scores.mean(2), "mean share": weights.mean(2)}


def by_block(tensor: Tensor, padding: float) -> Tensor:
    """(..., B, 16) of (..., S)."""
    short = -tensor.shape[-1] % BLOCK_TOKENS
    padded = torch.nn.functional.pad(tensor, (0, short), value=padding)
    return padded.unflatten(-1, (-1, BLOCK_TOKENS))


def best_of(kinds: list[dict[str, Tensor]]) -> tuple[str, list[float]]:
    """The kind of a chooser that serves it best, and its recall of each text."""
    means = {name: [float(one[name].mean()) for one in kinds] for name in kinds[0]}
    return max(means.items(), key=lambda item: sum(item[1]))


def details_of(texts: dict[str, Recall]) -> dict[str, Any]:
    name, quest = best_of([one.quest for one in texts.values()])
    decay, past = best_of([one.past for one in texts.values()])
    worst = min(float(one.engine.mean((1, 2)).min()) for one in texts.values())
    return {
        **{text: round(float(one.engine.mean()), 4) for text, one in texts.items()},
        **{f"{text}_quest": round(value, 4) for text, value in zip(texts, quest, strict=True)},
        **{f"{text}_past_mass": round(value, 4) for text, value in zip(texts, past, strict=True)},
        **{
            f"{text}_without_sinks_and_window": round(float(one.engine_chosen.mean()), 4)
            for text, one in texts.items()
        },
        "worst_layer": round(worst, 4),
        "summary_bytes": {"engine": 140, "quest": 256},
        "quest_group": name,
        "past_mass": decay,
        "positions": POSITIONS,
        "context": CONTEXT,
    }


def mass_recall(budget: int) -> Result:
    texts = recalls()[budget]
    return Result([float(one.engine.mean()) for one in texts.values()], details_of(texts))


ORACLE = "the best blocks by their true mass: same budget, sinks and window"


@figure(
    "mass_recall_b512",
    "attention mass of the blocks read, of prose and code at 8K context, budget 512",
    unit="of the oracle's",
    target=0.97,
    peer=ORACLE,
    limit="1: the oracle",
)
def mass_recall_b512() -> Result:
    return mass_recall(512)


@figure(
    "mass_recall_b1024",
    "attention mass of the blocks read, of prose and code at 8K context, budget 1024",
    unit="of the oracle's",
    target=0.97,
    peer=ORACLE,
    limit="1: the oracle",
)
def mass_recall_b1024() -> Result:
    return mass_recall(1024)


@figure(
    "mass_recall_b512_minus_quest",
    "the same less that of Quest's blocks, budget 512",
    unit="of the oracle's",
    target=0,
    peer="Quest: minimum and maximum of 16 keys in bfloat16, 256 bytes per block where ours are 140",
    limit="what Quest leaves to be found",
)
def mass_recall_b512_minus_quest() -> Result:
    texts = recalls()[512]
    _, quest = best_of([one.quest for one in texts.values()])
    ours = [float(one.engine.mean()) for one in texts.values()]
    return Result([own - other for own, other in zip(ours, quest, strict=True)], details_of(texts))
