"""What `stratakv bench gpu` works on: a layer of a model, made up on the spot, so that no weights are needed.

Letters: H KV heads, G query heads of a group, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratakv.attention.device.reads import PlanePools, Reads
from stratakv.attention.device.summaries import Asked, SummaryLayout, arrange
from stratakv.attention.device.tier import HotTier
from stratakv.attention.device.turns import Turns
from stratakv.cache.page_table import LayerGeometry, PageTable
from stratakv.cache.planes import PlaneLayout
from stratakv.cache.rotary import Rotary
from stratakv.cache.selection import BLOCK_TOKENS, Selection
from stratakv.cache.store import Store

PAGE_TOKENS = 64
APPEND_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large what is measured is; the defaults suit a GPU.

    Attributes:
        contexts: tokens of the contexts that are decoded over.
        budget: tokens that a step reads per head.
        chunk: tokens of a prefill's chunk.
        heads: H.
        group: G.
        dim: D.
        copy_bytes: bytes of the buffers whose copies are timed.
        matrix: M and N of the matrix products.
        repeats: how often each figure is measured.
    """

    contexts: tuple[int, ...] = (128 << 10, 1 << 20)
    budget: int = 2048
    chunk: int = 512
    heads: int = 8
    group: int = 4
    dim: int = 128
    copy_bytes: int = 1 << 30
    matrix: int = 8192
    repeats: int = 20


def random_reads(device: torch.device, sizes: Sizes) -> tuple[Tensor, PlanePools, Reads, Turns]:
    """A budget of blocks for each head, scattered over pages of random bytes."""
    geometry = LayerGeometry(sizes.heads, sizes.dim, sizes.dim, torch.bfloat16)
    layouts = (PlaneLayout.of_codes(geometry, PAGE_TOKENS), PlaneLayout.of_residuals(geometry, PAGE_TOKENS))
    num_blocks = sizes.budget // BLOCK_TOKENS
    # Bytes that are finite codes, and scales of 2^-7 at most.
    codes, residuals = (
        torch.randint(120, (num_blocks, layout.page_bytes), dtype=torch.uint8).to(device)
        for layout in layouts
    )
    pools = PlanePools(codes, residuals, *layouts, sizes.dim, sizes.dim, has_byte_residuals=False)
    shape = (1, sizes.heads, num_blocks)
    reads = Reads(
        torch.randint(num_blocks, shape).to(device, torch.int32),
        torch.full(shape, -1, dtype=torch.int32, device=device),
        torch.randint(PAGE_TOKENS // BLOCK_TOKENS, shape).to(device, torch.int32),
        torch.arange(num_blocks, 0, -1, dtype=torch.int32, device=device).expand(shape).contiguous(),
        torch.full(shape[:2], num_blocks, dtype=torch.int32, device=device),
    )
    turns = Turns(rotary_of(sizes.dim), sizes.dim, device)
    turns.grow(num_blocks + 1)
    query = torch.randn(1, sizes.heads, sizes.group, sizes.dim, device=device)
    return query, pools, reads, turns


def random_summaries(
    device: torch.device, sizes: Sizes, context: int
) -> tuple[Tensor, Asked, Tensor, SummaryLayout]:
    """Summaries of random bytes, all scored from one place."""
    layout = SummaryLayout.of(rotary_of(sizes.dim), sizes.dim)
    num_blocks = context // BLOCK_TOKENS
    # Scales of small positive numbers, whatever the bytes.
    summaries = torch.randint(40, (1, sizes.heads, num_blocks, layout.num_bytes), dtype=torch.uint8)
    asked = arrange(torch.randn(1, sizes.heads, 1, sizes.group, sizes.dim, device=device), layout)
    places = torch.zeros(num_blocks, dtype=torch.int32, device=device)
    return summaries.to(device), asked, places, layout


def rotary_of(dim: int) -> Rotary:
    """The frequencies that most models have."""
    return Rotary(tuple(10_000.0 ** (-2 * i / dim) for i in range(dim // 2)))


class Layer:
    """One layer of a context in a table, with a hot tier that holds all of it."""

    def __init__(self, device: torch.device, sizes: Sizes, context: int) -> None:
        self.sizes, self.device = sizes, device
        self.limit_bytes = 4 * context * sizes.heads * sizes.dim + (1 << 20)
        rotary = rotary_of(sizes.dim)
        self.store = Store(None, ram=self.limit_bytes * 5 // 4 + (64 << 20))
        self.table = PageTable(
            self.store,
            num_slots=1,
            page_tokens=PAGE_TOKENS,
            settings=rotary.settings(),
            rotary=rotary,
            planes=True,
        )
        self.table.select(Selection(budget=sizes.budget, dense_below=0), max(context // 4, PAGE_TOKENS))
        for start in range(0, context, APPEND_TOKENS):
            self._append(min(APPEND_TOKENS, context - start))
        self.tier = HotTier(self.table, self.limit_bytes, device)

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()
        self.store.close()

    def query(self, tokens: int = 1) -> Tensor:
        """(1, H * G, T, D) that nobody has asked yet."""
        shape = (1, self.sizes.heads * self.sizes.group, tokens, self.sizes.dim)
        return torch.randn(shape).mul(2 * self.sizes.dim**-0.5).to(self.device, torch.bfloat16)

    def _append(self, tokens: int) -> None:
        """Keys of a block have a topic in common, so that some blocks matter more than others."""
        shape = (1, self.sizes.heads, tokens, self.sizes.dim)
        topics = torch.randn(*shape[:2], -(-tokens // BLOCK_TOKENS), self.sizes.dim)
        keys = torch.randn(shape) + 2 * topics.repeat_interleave(BLOCK_TOKENS, dim=2)[:, :, :tokens]
        self.table.append(0, keys.bfloat16(), torch.randn(shape).bfloat16())
