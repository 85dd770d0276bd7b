"""Forward passes whose logits nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from stratakv.hf.compat import cache_kwargs, last_logits_only

if TYPE_CHECKING:
    from stratakv.hf.cache import TieredCache

CHUNK_TOKENS = 512


@torch.inference_mode()
def feed(model: nn.Module, cache: TieredCache, ids: list[int], *, chunk: int = CHUNK_TOKENS) -> None:
    """Appends tokens to a cache by computing them, `chunk` of them in a pass."""
    device = next(model.parameters()).device
    for start in range(0, len(ids), chunk):
        input_ids_BT = torch.tensor([ids[start : start + chunk]], device=device)
        model(input_ids=input_ids_BT, use_cache=True, **last_logits_only(model), **cache_kwargs(cache))
