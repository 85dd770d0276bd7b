"""What `stratakv bench gpu` measures: the ceilings of a device, and decoding beside them.

Each figure is of many repetitions, and says what it is held against. What is worked on is in `gpu_work`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from stratakv import fp8
from stratakv.attention.device import reference
from stratakv.attention.device.backend import backend_for
from stratakv.attention.device.tier import HotTier
from stratakv.cache.selection import BLOCK_TOKENS
from stratakv.cli.gpu_work import (
    APPEND_TOKENS,
    PAGE_TOKENS,
    Layer,
    Sizes,
    random_reads,
    random_summaries,
)
from stratakv.fp8.capability import detect

DEVICE_COPY = "device copy, read and write"


@dataclass(frozen=True)
class Figure:
    """One measured number: the median of its samples.

    Attributes:
        name: what was measured, with its size.
        unit: of the samples.
        samples: one of each repetition.
        baseline: what to compare with.
    """

    name: str
    unit: str
    samples: list[float]
    baseline: str = ""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


class IncorrectError(RuntimeError):
    """A kernel whose result is not its reference's: nothing is measured then."""


def measure(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """All figures, one after the other.

    Raises:
        IncorrectError: before the first one, where a kernel is wrong on this device.
    """
    check(device, sizes)
    yield from _ceilings(device, sizes)
    yield from _kernels(device, sizes)
    for context in sizes.contexts:
        yield from _decoding(device, sizes, context)
    yield from _linears(device, sizes)


def check(device: torch.device, sizes: Sizes) -> None:
    """Compares kernels with their references, and a step with the same on the CPU.

    Raises:
        IncorrectError: they differ by more than float32 sums in another order, and one rounding, make.
    """
    query, pools, reads, turns = random_reads(device, sizes)
    backend = backend_for(device.type)
    # As a step has them, and as a prefill.
    for queries in (query, torch.randn_like(query.repeat(1, 1, 64, 1))):
        found, expected = (
            module.attend(queries, pools, reads, turns).output for module in (backend, reference)
        )
        _expect_near(f"attend, {queries.shape[2]} queries", found, expected, 1e-4)
    asked = random_summaries(device, sizes, APPEND_TOKENS)
    _expect_near("score", backend.score(*asked), reference.score(*asked), 1e-4)
    with Layer(device, sizes, max(4 * sizes.budget, 2 * PAGE_TOKENS)) as layer:
        with_cpu = HotTier(layer.table, layer.limit_bytes, torch.device("cpu"))
        for what, query in {"a step": layer.query(), "a prefill": layer.query(PAGE_TOKENS)}.items():
            found, expected = (tier.attend(0, query.to(tier.device), 1.0) for tier in (layer.tier, with_cpu))
            _expect_near(what, found, expected, 2e-2)


def _expect_near(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    found, expected = found.cpu().float(), expected.cpu().float()
    far, most = (found - expected).abs().max().item(), expected.abs().max().item()
    if not far <= tolerance * most:
        raise IncorrectError(f"{what}: {far:.3g} from the reference, whose largest value is {most:.3g}")


def seconds_of(device: torch.device, repeats: int, call: Callable[[], object]) -> list[float]:
    """Durations of a call, two calls of warming up aside; what it launches is waited for."""
    samples = []
    for repeat in range(repeats + 2):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        if repeat >= 2:
            samples.append(time.perf_counter() - start)
    return samples


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _rates(amount: float, seconds: list[float]) -> list[float]:
    return [amount / sample for sample in seconds]


def _ms(seconds: list[float]) -> list[float]:
    return [1e3 * sample for sample in seconds]


def _ceilings(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """What the device can do at best: its memory, the way to it, its matrix products."""
    source = torch.zeros(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds_of(device, sizes.repeats, lambda: target.copy_(source))
    yield Figure(DEVICE_COPY, "GB/s", _rates(2e-9 * sizes.copy_bytes, copied))
    host = torch.zeros(sizes.copy_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    copied = seconds_of(device, sizes.repeats, lambda: target.copy_(host, non_blocking=True))
    yield Figure("host to device, pinned", "GB/s", _rates(1e-9 * sizes.copy_bytes, copied))
    square = torch.randn(sizes.matrix, sizes.matrix, dtype=torch.bfloat16, device=device)
    multiplied = seconds_of(device, sizes.repeats, lambda: square @ square)
    yield Figure("bfloat16 matrix product", "TFLOP/s", _rates(2e-12 * sizes.matrix**3, multiplied))


def _kernels(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Kernels alone, by the bytes that they have to read."""
    backend = backend_for(device.type)
    query, pools, reads, turns = random_reads(device, sizes)
    num_bytes = reads.slots.numel() * BLOCK_TOKENS * 2 * (sizes.dim + 1)
    taken = seconds_of(device, sizes.repeats, lambda: backend.attend(query, pools, reads, turns))
    yield Figure("attention over a budget, FP8", "GB/s", _rates(1e-9 * num_bytes, taken), DEVICE_COPY)
    for context in sizes.contexts:
        asked = random_summaries(device, sizes, context)
        taken = seconds_of(device, sizes.repeats, partial(backend.score, *asked))
        name = f"{context >> 10}K: scores of all blocks"
        yield Figure(name, "GB/s", _rates(1e-9 * asked[0].numel(), taken), DEVICE_COPY)


def _decoding(device: torch.device, sizes: Sizes, context: int) -> Iterator[Figure]:
    """One layer's steps and chunks: ours, dense attention on the device, and over what is brought there."""
    name = f"{context >> 10}K"
    with Layer(device, sizes, context) as layer:
        query = layer.query()
        again = seconds_of(device, sizes.repeats, lambda: layer.tier.attend(0, query, 1.0))
        yield Figure(f"{name}: a step, its pages on the device", "ms", _ms(again))
        fresh = seconds_of(device, sizes.repeats, lambda: layer.tier.attend(0, layer.query(), 1.0))
        yield Figure(f"{name}: a step of a new query", "ms", _ms(fresh))
        chunk = layer.query(sizes.chunk)
        prefilled = seconds_of(device, sizes.repeats, lambda: layer.tier.attend(0, chunk, 1.0))
        yield Figure(f"{name}: a prefill's {sizes.chunk} tokens", "ms", _ms(prefilled))
    shape = (1, sizes.heads, context, sizes.dim)
    host = [torch.zeros(shape, dtype=torch.bfloat16, pin_memory=device.type == "cuda") for _ in "kv"]
    held = [part.to(device) for part in host]

    def attend(parts: list[Tensor], query: Tensor = query) -> Tensor:
        keys, values = parts
        return scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    # Without a mask: a chunk's own tokens are a small part.
    chunks = seconds_of(device, sizes.repeats, lambda: attend(held, chunk))
    yield Figure(f"{name}: dense SDPA of {sizes.chunk} tokens, all on the device", "ms", _ms(chunks))
    dense = seconds_of(device, sizes.repeats, lambda: attend(held))
    yield Figure(f"{name}: dense SDPA, all on the device", "ms", _ms(dense))
    # What transformers' offloaded cache does for each layer.
    brought = seconds_of(
        device, sizes.repeats, lambda: attend([part.to(device, non_blocking=True) for part in host])
    )
    yield Figure(f"{name}: dense SDPA, offloaded to the host", "ms", _ms(brought))


def _linears(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """A linear layer in FP8 with its critical tokens in 16 bits, where the device multiplies FP8."""
    if not detect(device).scaled_mm:
        return
    name = "linear layer, bfloat16"
    linear = nn.Sequential(nn.Linear(sizes.matrix, sizes.matrix, bias=False)).to(device, torch.bfloat16)
    rows = torch.randn(sizes.matrix, sizes.matrix, dtype=torch.bfloat16, device=device)
    flops = 2e-12 * sizes.matrix**3
    with torch.inference_mode():
        yield Figure(name, "TFLOP/s", _rates(flops, seconds_of(device, sizes.repeats, lambda: linear(rows))))
        fp8.convert(linear)
        mixed = seconds_of(device, sizes.repeats, lambda: linear(rows))
        yield Figure("linear layer, FP8 and 16 bits", "TFLOP/s", _rates(flops, mixed), name)
