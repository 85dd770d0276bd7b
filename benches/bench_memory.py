"""What a context takes in RAM when its pages are kept in planes."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benches.bench_decode import load
from benches.bench_sparse import EVERYTHING, real_keys, step_seconds
from benches.harness import Result, figure

CONTEXT = 16 << 10
# Limits to try, as shares of the bfloat16 bytes.
SHARES = [share / 1000 for share in range(540, 801, 5)]


def misses_of_a_step(share: float, bytes_16: int) -> tuple[int, int]:
    """Pages that a step reading all codes misses under the limit, and the bytes then in RAM."""
    import stratakv

    model = load("bfloat16").model
    codes = stratakv.Selection(budget=EVERYTHING, dense_below=0, unread=1.0, critical_fraction=0.0)
    ram = int(share * bytes_16)
    with (
        tempfile.TemporaryDirectory() as directory,
        stratakv.attach(model),
        stratakv.TieredCache.open(model, directory, ram=ram, budget=codes) as cache,
    ):
        fill(cache, model)
        step_seconds(model, cache)
        step_seconds(model, cache)
        before = cache.stats()["ram"]["misses"]
        step_seconds(model, cache)
        ram_stats = cache.stats()["ram"]
        return ram_stats["misses"] - before, ram_stats["used_bytes"]


def fill(cache: Any, model: Any) -> None:
    """Repeats the real keys and values, as tokens with ids: their pages are then written at once."""
    parts = real_keys(model.dtype)
    tokens = parts[0][0].shape[2]
    for start in range(0, CONTEXT, tokens):
        cache._table.native.note_tokens([list(range(start, start + tokens))])
        for index, (keys, values) in enumerate(parts):
            cache._table.append(index, keys, values)
    cache.flush()


def restored_errors(model: Any) -> dict[str, float]:
    """The largest differences of keys and values restored from both planes, over the largest of them.

    Keys are rounded when they are turned to be stored, and again when they are turned back.
    """
    import stratakv

    with (
        stratakv.attach(model),
        stratakv.TieredCache.open(model, None, ram="4GiB", precision="mixed") as cache,
    ):
        fill(cache, model)
        real = real_keys(model.dtype)[7]
        found = cache._table.snapshot(7, torch.device("cpu")).gather(0, real[0].shape[2])
    parts = zip(("keys", "values"), real, found, strict=True)
    return {f"{name}_restored_error": float((b - a).abs().max() / a.abs().max()) for name, a, b in parts}


@figure(
    "kv_ram_over_bf16",
    "bytes in RAM with which no step over all codes of 16K tokens reads the disk",
    unit="of the bfloat16 bytes",
    target=0.55,
    at_most=True,
    peer="the same keys and values in bfloat16",
    limit="0.536: a byte per value, a scale per row, and the summaries",
)
def kv_ram_over_bf16() -> Result:
    model = load("bfloat16").model
    keys, values = real_keys(model.dtype)[0]
    layers = len(real_keys(model.dtype))
    bytes_16 = layers * (CONTEXT // keys.shape[2]) * (keys.nbytes + values.nbytes)
    for share in SHARES:
        misses, used = misses_of_a_step(share, bytes_16)
        if misses == 0:
            details = {"limit_over_bf16": share, "context": CONTEXT, **restored_errors(model)}
            return Result([used / bytes_16], details)
    raise RuntimeError(f"steps read the disk even with {SHARES[-1]} of the bytes")
