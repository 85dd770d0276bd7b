"""Random pages in planes, queries and reads, with the rows that they were made of beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratakv.attention.device.reads import PlanePools, Reads
from stratakv.cache.page_table import LayerGeometry
from stratakv.cache.planes import PlaneLayout
from stratakv.cache.rotary import Rotary
from stratakv.fp8 import codecs


def rotary(dim, *, dims=None, interleaved=False):
    """Frequencies as models have them, over the first `dims` elements."""
    pairs = (dims or dim // 2 * 2) // 2
    return Rotary(tuple(10_000.0 ** (-i / pairs) for i in range(pairs)), interleaved)


@dataclass
class Made:
    """Pools, and what both precisions of every slot should read as: (A, H, P, D) float32."""

    pools: PlanePools
    coded: dict[str, Tensor]
    restored: dict[str, Tensor]


def pools(slots=5, heads=2, page_tokens=32, key_dim=16, value_dim=16, dtype=torch.bfloat16):
    """Slots of random pages; slot i of the residuals belongs to slot i of the codes."""
    geometry = LayerGeometry(heads, key_dim, value_dim, dtype)
    layouts = (PlaneLayout.of_codes(geometry, page_tokens), PlaneLayout.of_residuals(geometry, page_tokens))
    scales, codes, rest = [], [], []
    coded, restored = {}, {}
    for name, dim in (("keys", key_dim), ("values", value_dim)):
        rows = torch.randn(slots, heads, page_tokens, dim).to(dtype)
        planes = codecs.encode_rows(rows.flatten(0, 2))
        shape = (slots, heads, page_tokens)
        coded[name] = codecs.decode_rows(planes, torch.float32).view(*shape, dim)
        restored[name] = codecs.restore_rows(planes, torch.float32).view(*shape, dim)
        scales.append(planes.scales.view(shape))
        codes.append(planes.codes.view(slots, heads, -1))
        rest.append(planes.residual.view(slots, heads, -1))
    both = (torch.cat([*scales, *rows], -1).flatten(1).contiguous() for rows in (codes, rest))
    return Made(PlanePools(*both, *layouts, key_dim, value_dim, dtype == torch.float16), coded, restored)


def reads(made, rows=2, size=7, *, critical=0.5, distances=50):
    """Random blocks of random slots; counts from nothing to everything, some of each precision."""
    layout = made.pools.codes_layout
    shape = (rows, layout.num_heads, size)
    slots = torch.randint(len(made.pools.codes), shape)
    counts = torch.randint(size + 1, shape[:2])
    counts.view(-1)[0] = 0
    counts.view(-1)[-1] = size
    return Reads(
        slots.int(),
        torch.where(torch.rand(shape) < critical, slots, -1).int(),
        torch.randint(layout.page_tokens // 16, shape).int(),
        torch.randint(distances, shape).int(),
        counts.int(),
    )
