"""Decoding beside what people use today: transformers' caches, and llama.cpp with the same weights.

Set-up: SmolLM2-135M on the CPU. The cache of each is filled with the same 4K tokens of code, repeated; then
single tokens are decoded. Ours reads 1024 tokens a step. transformers' caches and ours work on the weights in
bfloat16; llama.cpp on the file's own 4-bit weights, with its cache in q8_0 and flash attention, which is what
its users run. Each peer's steps alternate with ours, and a ratio is of one such pair.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benches.bench_decode import load
from benches.bench_sparse import BUDGET, filled, our_step_seconds, real_keys, selecting, step_seconds
from benches.harness import NotMeasurableHereError, Result, figure
from benches.llama_peer import PART, LlamaPeer, require_llama
from benches.texts import token_ids

ROUNDS = 5
STEPS = 4
# A peer whose step takes longer is asked for one of them, twice.
SLOW_SECONDS = 4.0


@dataclass
class Peer:
    """Seconds of its steps, those of ours beside them, and the bytes of its cache."""

    bytes: int
    seconds: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        return [peer / own for peer, own in zip(self.seconds, self.ours, strict=True)]


def transformers_caches(model: Any, context: int) -> dict[str, Callable[[], Any]]:
    """How to make each cache; quantised ones at their libraries' defaults."""
    from transformers import DynamicCache, QuantizedCache, StaticCache

    config = model.config
    return {
        "DynamicCache": lambda: DynamicCache(config=config),
        "StaticCache": lambda: StaticCache(config=config, max_cache_len=context + 64),
        "QuantizedCache fp8": lambda: QuantizedCache("fp8", config),
        "QuantizedCache quanto int4": lambda: QuantizedCache("quanto", config),
        "QuantizedCache hqq int4": lambda: QuantizedCache("hqq", config, axis_key=1, axis_value=1),
    }


def held_bytes(thing: Any, seen: set[int]) -> int:
    """Bytes of all tensors that a cache holds, the inner ones of quantised tensors."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        if hasattr(thing, "__tensor_flatten__"):
            return sum(held_bytes(getattr(thing, name), seen) for name in thing.__tensor_flatten__()[0])
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(held_bytes(part, seen) for part in thing.values())
    if isinstance(thing, list | tuple):
        return sum(held_bytes(part, seen) for part in thing)
    return held_bytes(vars(thing), seen) if hasattr(thing, "layers") or hasattr(thing, "update") else 0


def alternate(peer: Peer, step: Callable[[int], float], ours: Callable[[], float]) -> Peer:
    """Times a peer's steps and ours in turns."""
    slow = step(1) > SLOW_SECONDS
    for _ in range(2 if slow else ROUNDS):
        peer.seconds.append(step(1 if slow else STEPS))
        peer.ours.append(ours())
    return peer


@torch.inference_mode()
def peers_at(context: int) -> tuple[dict[str, Peer], int]:
    """Every peer that is installed, at a context; and the bytes of our cache."""
    # First: without it there is no figure, and the others take minutes.
    require_llama()
    path, loaded = gguf(), load("bfloat16")
    model, parts, peers = loaded.model, real_keys(torch.bfloat16), {}
    with contextlib.closing(selecting(model, context)) as own:
        ours = functools.partial(our_step_seconds, model, own)
        for name, make in transformers_caches(model, context).items():
            try:
                cache = filled(make(), parts, context)
            except ImportError:
                continue  # An optional library: the table has what was measured.
            step = functools.partial(step_seconds, model, cache, crop=False)
            peers[name] = alternate(Peer(held_bytes(cache, set())), step, ours)
            del cache, step
        with contextlib.closing(LlamaPeer(str(path), context, torch.get_num_threads())) as llama:
            llama.fill(token_ids(loaded.tokenizer, PART), context)
            peers["llama.cpp q8_0"] = alternate(Peer(llama.cache_bytes()), llama.step_seconds, ours)
        return peers, own.stats()["ram"]["used_bytes"]


def gguf() -> Path:
    """The file that the demo's weights come from."""
    from stratakv.cli.models import find_model

    source = find_model(None)
    if source.gguf_file is None:
        raise NotMeasurableHereError("the demo's model is no GGUF file")
    return Path(source.location) / source.gguf_file


def against_llama(context: int) -> Result:
    peers, bytes_ = peers_at(context)
    seconds = {name: statistics.median(peer.seconds) for name, peer in peers.items()}
    seconds["ours"] = statistics.median(second for peer in peers.values() for second in peer.ours)
    held = {name: peer.bytes for name, peer in peers.items()} | {"ours": bytes_}
    details = {
        "context": context,
        "budget": BUDGET,
        "tokens_per_s": {name: round(1 / value, 3) for name, value in seconds.items()},
        "ratios": {name: round(statistics.median(peer.ratios()), 2) for name, peer in peers.items()},
        "cache_mib": {name: round(value / 2**20) for name, value in held.items()},
    }
    return Result(peers["llama.cpp q8_0"].ratios(), details)


PEER = "llama.cpp, the same file's 4-bit weights, q8_0 cache, flash attention; others in the details"
LIMIT = "one read of our bfloat16 weights, 2.7 times the bytes of its; its read of the whole cache besides"


def register(context: int) -> None:
    @figure(
        f"decode_{context >> 10}k_vs_llamacpp",
        f"decoding at {context >> 10}K context, budget {BUDGET}, beside llama.cpp",
        unit="times llama.cpp's tokens/s",
        target=None,
        peer=PEER,
        limit=LIMIT,
    )
    def vs_llamacpp() -> Result:
        return against_llama(context)


for _context in (8 << 10, 32 << 10, 128 << 10):
    register(_context)
