"""Attention whose scores are capped: softcap * tanh(scores / softcap), as Gemma 2 has it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop


def softcap_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    softcap: float,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Attention in one piece, in the order of operations that transformers' models use.

    Args:
        query: (B, Q, T, Dk).
        keys: (B, H, S, Dk), Q a multiple of H.
        values: (B, H, S, Dv).
        scale: factor of the scores, before they are capped.
        softcap: bound of the scores.
        mask: broadcasts to (B, Q, T, S). Bool: True takes part. Float: added to the scores.
        is_causal: query t sees all but the last T - 1 - t keys.
        dropout: share of the weights that is dropped.

    Returns:
        (B, Q, T, Dv) in the query's dtype.
    """
    group = query.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
    scores = torch.tanh(query @ keys.mT * scale / softcap) * softcap
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        seen = seen.tril(scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return drop(weights, dropout) @ values
