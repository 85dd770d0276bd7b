"""Decoding that reads a part of a long context: how far from dense, and how fast.

Set-up of the distances: prose (a handbook) and code (Python's own library), prefilled densely; then
every token is decoded with the selection, question and answer alike, teacher-forced, and its
next-token distribution is compared with the one that a cache of float32 gives which reads everything.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import torch

from benches.bench_decode import load, prefill
from benches.harness import Result, figure
from benches.texts import prose_ids, token_ids
from stratakv.hf.compat import cache_kwargs

POSITIONS = 48
STEPS = 6
ROUNDS = 5
BUDGET = 1024
EVERYTHING = 1 << 20
# Tokens that a filled cache gets from the model.
ASKED = 128


@torch.inference_mode()
def log_probabilities(model: Any, cache: Any, ids: list[int]) -> torch.Tensor:
    """(N, V) of every next token, one decoding step per id."""
    rows = []
    for token in ids:
        result = model(input_ids=torch.tensor([[token]]), **cache_kwargs(cache), use_cache=True)
        rows.append(result.logits[0, -1].float().log_softmax(-1))
    return torch.stack(rows)


@functools.cache
def distances(context: int) -> dict[str, list[float]]:
    """For each way of reading, the mean KL divergence from dense on prose and on code."""
    import stratakv

    def reading(budget: int, **options: float) -> Any:
        return stratakv.Selection(budget=budget, dense_below=0, unread=1.0, **options)

    ways = {
        "fp8": reading(EVERYTHING, critical_fraction=0.0),
        "mixed": reading(EVERYTHING),
        "b512": reading(512),
        "b1024": reading(1024),
    }
    loaded = load("float32")
    model = loaded.model
    found: dict[str, list[float]] = {way: [] for way in ways}
    for ids in (prose_ids, token_ids):
        tokens = ids(loaded.tokenizer, context + POSITIONS)
        with stratakv.attach(model):
            with stratakv.TieredCache.open(model, None, ram="3GiB") as cache:
                prefill(model, cache, tokens[:context])
                dense = log_probabilities(model, cache, tokens[context:])
            with stratakv.TieredCache.open(model, None, ram="3GiB", precision="mixed") as cache:
                prefill(model, cache, tokens[:context])
                for way, selection in ways.items():
                    with cache.fork() as fork:
                        fork.select(selection)
                        theirs = log_probabilities(model, fork, tokens[context:])
                    found[way].append(float((dense.exp() * (dense - theirs)).sum(-1).mean()))
    return found


def distance(context: int, way: str) -> Result:
    samples = distances(context)[way]
    details = {"prose": samples[0], "code": samples[1], "positions": POSITIONS, "context": context}
    return Result([statistics.mean(samples)], details)


PEER = "a float32 cache reading everything; for Quest and an oracle see docs/selection.md"


@figure(
    "kl_4k_fp8",
    "mean KL divergence from dense at 4K context, everything read in FP8",
    unit="nats",
    target=0.0025,
    at_most=True,
    peer="a float32 cache; transformers' FP8 per tensor 0.014 to 0.017, quanto int4 0.008 to 0.010",
    limit="0: what is read is rounded to 3 bits of mantissa",
)
def kl_4k_fp8() -> Result:
    return distance(4096, "fp8")


@figure(
    "kl_4k_mixed",
    "mean KL divergence from dense at 4K context, 5 % read in 16 bits and the rest in FP8",
    unit="nats",
    target=0.0005,
    at_most=True,
    peer="a float32 cache reading everything",
    limit="0",
)
def kl_4k_mixed() -> Result:
    return distance(4096, "mixed")


@figure(
    "kl_4k_b512",
    "mean KL divergence from dense at 4K context, budget 512",
    unit="nats",
    target=0.022,
    at_most=True,
    peer=PEER,
    limit="0.012: blocks chosen by an oracle",
)
def kl_4k_b512() -> Result:
    return distance(4096, "b512")


@figure(
    "kl_4k_b1024",
    "mean KL divergence from dense at 4K context, budget 1024",
    unit="nats",
    target=0.010,
    at_most=True,
    peer=PEER,
    limit="0.003: blocks chosen by an oracle",
)
def kl_4k_b1024() -> Result:
    return distance(4096, "b1024")


# The trained window, the evaluated tokens included: past it a dense answer is no reference.
TRAINED = 8192


@figure(
    "kl_8k_b512",
    "mean KL divergence from dense at 8K context, budget 512",
    unit="nats",
    target=None,
    peer=PEER,
    limit="0.019: 2-bit residuals, of nearly twice the bytes; Quest's is 0.10",
)
def kl_8k_b512() -> Result:
    return distance(TRAINED - POSITIONS, "b512")


@figure(
    "kl_8k_b1024",
    "mean KL divergence from dense at 8K context, budget 1024",
    unit="nats",
    target=None,
    peer=PEER,
    limit="0: every block read",
)
def kl_8k_b1024() -> Result:
    return distance(TRAINED - POSITIONS, "b1024")


NEEDLE = "The special magic number for {city} is {number}."
QUESTION = "\n\nWhat is the special magic number for {city}?"
CITIES = ("Paris", "Cairo", "Lima", "Oslo", "Kyoto")


def chat_parts(tokenizer: Any, city: str) -> tuple[list[int], list[int]]:
    """Ids of what precedes a text in a chat, and of the question that follows it."""
    messages = [{"role": "user", "content": "<text>" + QUESTION.format(city=city)}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, after = prompt.split("<text>")
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    return encode(before), encode(after)


@torch.inference_mode()
def finds(loaded: Any, cache: Any, question: list[int], answer: list[int]) -> bool:
    """Whether every digit of the answer is the most likely token once what precedes it was said.

    Every token of the question and of the answer has a selection of its own.
    """
    assert len(question) <= 32, "longer ones are a prefill, which is dense here"
    found = []
    for piece, said in zip([question, *([token] for token in answer)], answer, strict=False):
        result = loaded.model(input_ids=torch.tensor([piece]), **cache_kwargs(cache), use_cache=True)
        if loaded.tokenizer.decode([said]).strip().isdigit():
            found.append(int(result.logits[0, -1].argmax()) == said)
    assert len(found) == 5, "the answer has five digits"
    return all(found)


CONTEXTS = (2048, 4096, 7900)
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def find_needles(loaded: Any, context: int) -> dict[str, str]:
    """Asks for a needle at each of five depths of the same text, without and with a selection."""
    import stratakv

    model, tokenizer = loaded.model, loaded.tokenizer
    # The needle, the chat around it and the answer have about 100 tokens.
    filler = prose_ids(tokenizer, context - 100)
    found = {"dense": "", "sparse": ""}
    with stratakv.attach(model):
        before = stratakv.TieredCache.open(model, None, ram="4GiB")
        prefill(model, before, chat_parts(tokenizer, CITIES[0])[0])
        reached = 0
        for index, (city, depth) in enumerate(zip(CITIES, DEPTHS, strict=True)):
            at = int(len(filler) * depth)
            needle = NEEDLE.format(city=city, number=10000 + 7919 * (index + 1) % 90000)
            answer = tokenizer.encode(needle, add_special_tokens=False)
            prefill(model, before, filler[reached:at])
            reached = at
            dense = before.fork()
            prefill(model, dense, tokenizer.encode(f"\n{needle}\n") + filler[at:])
            sparse = dense.fork()
            sparse.select(stratakv.Selection(budget=512, dense_below=0, unread=1.0))
            for name, cache in (("dense", dense), ("sparse", sparse)):
                found[name] += "+" if finds(loaded, cache, chat_parts(tokenizer, city)[1], answer) else "-"
                cache.close()
        before.close()
    return found


@figure(
    "needle_8k_b512_minus_dense",
    "needles found at 2K, 4K and 8K, five depths, budget 512, less those that dense attention finds",
    unit="of 15",
    target=0,
    peer="the same cache reading everything",
    limit="0: as many as dense attention finds",
)
def needle_8k_b512_minus_dense() -> Result:
    """A needle is found where all its digits are the most likely tokens, those before them given."""
    loaded = load("float32")
    found = {context: find_needles(loaded, context) for context in CONTEXTS}
    counts = {name: sum(one[name].count("+") for one in found.values()) for name in ("dense", "sparse")}
    by_depth = {f"{name}_{context}": one[name] for context, one in found.items() for name in counts}
    return Result([counts["sparse"] - counts["dense"]], {**counts, **by_depth})


@torch.inference_mode()
def step_seconds(model: Any, cache: Any, steps: int = STEPS, *, crop: bool = True) -> float:
    """Seconds of one decoding step; the cache is cropped back, where it can be."""
    token = torch.tensor([[5]])
    start = time.perf_counter()
    for _ in range(steps):
        model(input_ids=token, **cache_kwargs(cache), use_cache=True)
    seconds = (time.perf_counter() - start) / steps
    if crop:
        cache.crop(-steps)
    return seconds


@functools.cache
def real_keys(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of 4K tokens of prose, per layer, computed by the model once."""
    import stratakv

    loaded = load("float32")
    with stratakv.attach(loaded.model):
        cache = stratakv.TieredCache.open(loaded.model, None, ram="1GiB")
        prefill(loaded.model, cache, token_ids(loaded.tokenizer, 4096))
        slots = range(len(cache.layers))
        parts = [cache._table.snapshot(slot, torch.device("cpu")).gather(0, 4096) for slot in slots]
        cache.close()
    return [(keys.to(dtype), values.to(dtype)) for keys, values in parts]


@torch.inference_mode()
def filled(cache: Any, parts: list[tuple[torch.Tensor, torch.Tensor]], context: int) -> Any:
    """A transformers cache with the real keys and values repeated."""
    for index, (keys, values) in enumerate(parts):
        times = context // keys.shape[2]
        cache.update(keys.repeat(1, 1, times, 1), values.repeat(1, 1, times, 1), index)
    return cache


def our_step_seconds(model: Any, cache: Any) -> float:
    """Seconds of one step of an attached cache, after as many that bring it back to the processor."""
    import stratakv

    with stratakv.attach(model):
        step_seconds(model, cache)
        return step_seconds(model, cache)


def decode_ratio(context: int, dtype: str) -> Result:
    """Steps of `DynamicCache` and of a selecting cache, in turns."""
    from transformers import DynamicCache

    model = load(dtype).model
    sparse = selecting(model, context)
    dynamic = filled(DynamicCache(config=model.config), real_keys(model.dtype), context)
    peers, ours = [], []
    for _ in range(ROUNDS):
        peers.append(step_seconds(model, dynamic))
        ours.append(our_step_seconds(model, sparse))
    details = {
        "dynamic_tokens_per_s": round(1 / statistics.median(peers), 3),
        "sparse_tokens_per_s": round(1 / statistics.median(ours), 2),
        "budget": BUDGET,
        "dtype": dtype,
        "context": context,
    }
    return Result([peer / own for peer, own in zip(peers, ours, strict=True)], details)


def selecting(model: Any, context: int) -> Any:
    """A filled cache that reads BUDGET tokens a step."""
    import stratakv

    with stratakv.attach(model):
        cache = stratakv.TieredCache.open(model, None, ram="8GiB", precision="mixed")
        for index, (keys, values) in enumerate(real_keys(model.dtype)):
            for _ in range(context // keys.shape[2]):
                cache._table.append(index, keys, values)
        cache.select(stratakv.Selection(budget=BUDGET, dense_below=0, unread=1.0))
        # The last tokens come from the model, whose queries show what a long context is asked for.
        cache.crop(-ASKED)
        prefill(model, cache, token_ids(load("float32").tokenizer, ASKED))
        step_seconds(model, cache)
    return cache


LIMIT = "one read of the weights, of the summaries and of the budget's keys and values"


@figure(
    "decode_32k_ratio",
    "decoding at 32K context, budget 1024, bfloat16",
    unit="times DynamicCache's tokens/s",
    target=8,
    peer="transformers DynamicCache, scaled_dot_product_attention",
    limit=LIMIT,
)
def decode_32k_ratio() -> Result:
    return decode_ratio(32 << 10, "bfloat16")


@figure(
    "decode_32k_ratio_f32",
    "decoding at 32K context, budget 1024, float32",
    unit="times DynamicCache's tokens/s",
    target=8,
    peer="transformers DynamicCache, scaled_dot_product_attention",
    limit=LIMIT,
)
def decode_32k_ratio_f32() -> Result:
    return decode_ratio(32 << 10, "float32")


@figure(
    "decode_128k_ratio",
    "decoding at 128K context, budget 1024, bfloat16",
    unit="times DynamicCache's tokens/s",
    target=30,
    peer="transformers DynamicCache, scaled_dot_product_attention",
    limit=LIMIT,
)
def decode_128k_ratio() -> Result:
    return decode_ratio(128 << 10, "bfloat16")


@figure(
    "decode_128k_over_8k_step",
    "one step at 128K context over one at 8K, budget 1024, bfloat16",
    unit="ratio",
    target=1.3,
    at_most=True,
    peer="itself at 8K",
    limit="1 and the read of the summaries, 3.4 % of the keys and values",
)
def decode_128k_over_8k_step() -> Result:
    import stratakv

    model = load("bfloat16").model
    caches = {context: selecting(model, context) for context in (8 << 10, 128 << 10)}
    times: dict[int, list[float]] = {context: [] for context in caches}
    with stratakv.attach(model):
        for _ in range(ROUNDS):
            for context, cache in caches.items():
                times[context].append(step_seconds(model, cache))
    details = {
        f"ms_{context >> 10}k": round(1e3 * statistics.median(own), 1) for context, own in times.items()
    }
    samples = [far / near for near, far in zip(times[8 << 10], times[128 << 10], strict=True)]
    return Result(samples, details)
