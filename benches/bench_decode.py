"""Decoding with everything warm, beside `DynamicCache`, on the real model."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benches.harness import Result, figure
from benches.texts import token_ids

CONTEXT = 8192
STEPS = 12
ROUNDS = 9


def load(dtype: str) -> Any:
    from stratakv.cli.models import find_model, load

    return load(find_model(None), dtype)


@torch.inference_mode()
def decode(model: Any, cache: Any, first: int) -> tuple[float, list[int]]:
    """Greedy decoding of STEPS tokens; seconds for one, and the tokens. The cache is cropped back."""
    from stratakv.hf.compat import cache_kwargs

    token, tokens = first, []
    start = time.perf_counter()
    for _ in range(STEPS):
        logits = model(input_ids=torch.tensor([[token]]), **cache_kwargs(cache), use_cache=True).logits
        token = int(logits[0, -1].argmax())
        tokens.append(token)
    seconds = (time.perf_counter() - start) / STEPS
    cache.crop(-STEPS)
    return seconds, tokens


@torch.inference_mode()
def prefill(model: Any, cache: Any, ids: list[int]) -> None:
    """Fills a cache by the model, in chunks."""
    from stratakv.hf.compat import cache_kwargs

    for start in range(0, len(ids), 512):
        piece = torch.tensor([ids[start : start + 512]])
        model(input_ids=piece, **cache_kwargs(cache), use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def prefilled(model: Any, ids: list[int], caches: list[Any]) -> None:
    """Fills the first cache by the model and the others with its keys and values."""
    first, *others = caches
    prefill(model, first, ids)
    for other in others:
        for index, layer in enumerate(first.layers):
            other.update(layer.keys, layer.values, index)


def exact_decode(dtype: str) -> Result:
    from transformers import DynamicCache

    import stratakv

    loaded = load(dtype)
    model = loaded.model
    ids = token_ids(loaded.tokenizer, CONTEXT + 1)
    dynamic = DynamicCache(config=model.config)
    tiered = stratakv.TieredCache(model.config, ram="2GiB")
    prefilled(model, ids[:-1], [dynamic, tiered])
    # A figure of something wrong is worth nothing: the tokens are compared first.
    expected, found = decode(model, dynamic, ids[-1])[1], decode(model, tiered, ids[-1])[1]
    if dtype == "float32":
        assert found == expected, f"{found} instead of {expected}"
    pairs = [(decode(model, dynamic, ids[-1])[0], decode(model, tiered, ids[-1])[0]) for _ in range(ROUNDS)]
    details = {
        "dynamic_tokens_per_s": round(1 / statistics.median(peer for peer, _ in pairs), 2),
        "tiered_tokens_per_s": round(1 / statistics.median(ours for _, ours in pairs), 2),
        "dtype": dtype,
        "context": CONTEXT,
        "tokens_equal": found == expected,
    }
    return Result([peer / ours for peer, ours in pairs], details)


LIMIT = (
    "one read of the weights and of the KV at the memory's bandwidth; DynamicCache also reads and writes "
    "the KV once more to append"
)


@figure(
    "exact_decode_8k_ratio",
    "exact decoding at 8K context, everything warm, float32",
    unit="times DynamicCache's tokens/s",
    target=1.5,
    peer="transformers DynamicCache, scaled_dot_product_attention",
    limit=LIMIT,
)
def exact_decode_8k_ratio() -> Result:
    return exact_decode("float32")


@figure(
    "exact_decode_8k_ratio_bf16",
    "exact decoding at 8K context, everything warm, bfloat16",
    unit="times DynamicCache's tokens/s",
    target=1.5,
    peer="transformers DynamicCache, scaled_dot_product_attention",
    limit=LIMIT,
)
def exact_decode_8k_ratio_bf16() -> Result:
    return exact_decode("bfloat16")


@figure(
    "append_cost_128k_over_8k",
    "appending one token at 128K context over the same at 8K",
    unit="ratio",
    target=1.2,
    at_most=True,
    peer="itself at 8K; DynamicCache's is in the details",
    limit="1: an append copies one token",
)
def append_cost_128k_over_8k() -> Result:
    from transformers import LlamaConfig

    import stratakv

    # The demo model's layers, fewer of them: the cost per layer is what is compared.
    config = LlamaConfig(num_hidden_layers=4, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    caches = {}
    for length in (8 << 10, 128 << 10):
        caches[length] = stratakv.TieredCache(config, ram="4GiB")
        fill(caches[length], config, length)
    samples, times = [], {length: [] for length in caches}
    for _ in range(ROUNDS):
        for length, cache in caches.items():
            times[length].append(append_seconds(cache, config))
        samples.append(times[128 << 10][-1] / times[8 << 10][-1])
    details = {
        f"us_per_token_{length >> 10}k": round(1e6 * statistics.median(times[length]), 1) for length in times
    }
    return Result(samples, details)


def fill(cache: Any, config: Any, length: int) -> None:
    shape = (1, config.num_key_value_heads, 4096, 64)
    for _ in range(length // 4096):
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(shape), torch.randn(shape), layer)


def append_seconds(cache: Any, config: Any, count: int = 256) -> float:
    """Seconds to append one token to every layer, averaged over whole pages, which are sealed on the way."""
    token = torch.randn(1, config.num_key_value_heads, 1, 64)
    start = time.perf_counter()
    for _ in range(count):
        for layer in range(config.num_hidden_layers):
            cache.update(token, token, layer)
    return (time.perf_counter() - start) / count
