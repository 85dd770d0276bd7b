"""Attention as its definition says, in one piece and in float64: the oracle of the fast paths."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(query keys^T * scale + mask) values, computed in float64.

    Args:
        query: (B, Q, T, Dk), any float dtype.
        keys: (B, H, S, Dk); Q is a multiple of H, and query head q reads head q // (Q / H).
        values: (B, H, S, Dv).
        scale: factor of the scores; Dk ** -0.5 by default.
        mask: broadcasts to (B, Q, T, S). Bool: True takes part. Float: added to the scores.

    Returns:
        (B, Q, T, Dv) in the query's dtype. A query that sees nothing gives zeros.
    """
    group = query.shape[1] // keys.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys = keys.double().repeat_interleave(group, dim=1)
    values = values.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("bqtd,bqsd->bqts", query.double(), keys) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return torch.einsum("bqts,bqsd->bqtd", weights, values).to(query.dtype)
