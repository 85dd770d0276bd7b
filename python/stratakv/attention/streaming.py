"""Exact attention over pages that never hold more than one tile of keys and values.

Each tile's attention is computed on its own and merged by its log-sum-exp in float32, so the
result does not depend on how many tiles there are, up to rounding.
Source of the merge: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

Letters: B rows, Q query heads, H key/value heads, G = Q / H, T query tokens, S stored tokens,
L tokens of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.attention.masks import bias_or_none
from stratakv.attention.workspace import DEFAULT_TILE_BYTES, WORKSPACE
from stratakv.cache.page_table import Snapshot

_FUSED_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def stream_attention(
    query_BQTD: Tensor,
    snapshot: Snapshot,
    *,
    scale: float,
    softcap: float | None = None,
    mask_BQTS: Tensor | None = None,
    tile_bytes: int = DEFAULT_TILE_BYTES,
) -> Tensor:
    """Attention of queries over everything that a snapshot holds.

    Args:
        query_BQTD: (B, Q, T, Dk) on the snapshot's device, in its dtype; Q a multiple of H.
        snapshot: (B, H, S, Dk) keys and (B, H, S, Dv) values in pages; with a rotary, the queries
            are at their positions already.
        scale: factor of the scores.
        softcap: bound of the scores, see `softcap_attention`; they are then kept.
        mask_BQTS: four dimensions that broadcast to (B, Q, T, S); bool (True takes part) or
            float (added to the scores).
        tile_bytes: bound of a tile's keys and values, and of its scores where they are kept.

    Returns:
        (B, Q, T, Dv) in the query's dtype. A query that sees nothing gives zeros.
    """
    num_rows, num_queries, num_new, _ = query_BQTD.shape
    merged = _Merge(num_rows, num_queries, num_new, snapshot.geometry.value_dim, query_BQTD.device)
    is_fused = softcap is None and _is_fused(query_BQTD, snapshot.geometry.value_dim)
    tile_tokens = _tile_tokens(query_BQTD, snapshot, mask_BQTS, tile_bytes, is_fused=is_fused)
    scratch = _scratch(snapshot, tile_tokens)
    for start in range(0, snapshot.length, tile_tokens):
        stop = min(start + tile_tokens, snapshot.length)
        keys_BHLD, values_BHLD = snapshot.gather(start, stop, scratch, turn="placed")
        bias_BQTL = None if mask_BQTS is None else bias_or_none(mask_BQTS[..., start:stop])
        tile = (query_BQTD, keys_BHLD, values_BHLD, scale, bias_BQTL)
        merged.add(*(_masked_fused_tile(*tile) if is_fused else _plain_tile(*tile, softcap=softcap)))
    return merged.result(query_BQTD.dtype)


def _scratch(snapshot: Snapshot, tile_tokens: int) -> Tensor | None:
    """Buffer for tiles read on the CPU; other devices copy tiles asynchronously, so they get fresh ones."""
    if snapshot.device.type != "cpu":
        return None
    tokens = min(tile_tokens, snapshot.length)
    numel = tokens * snapshot.geometry.token_bytes(snapshot.num_rows) // snapshot.geometry.dtype.itemsize
    return WORKSPACE.buffer(numel, snapshot.geometry.dtype)


def _tile_tokens(
    query_BQTD: Tensor, snapshot: Snapshot, mask_BQTS: Tensor | None, tile_bytes: int, *, is_fused: bool
) -> int:
    """Tokens of a tile: whole pages, at least one.

    Neither the tile, nor its bias, nor scores that are kept take more than `tile_bytes`.
    """
    token_bytes = snapshot.geometry.token_bytes(snapshot.num_rows)
    if not is_fused:
        token_bytes = max(token_bytes, query_BQTD[..., 0].numel() * 4)
    elif mask_BQTS is not None:
        group = query_BQTD.shape[1] // snapshot.geometry.num_heads
        heads = 1 if mask_BQTS.shape[1] == 1 else snapshot.geometry.num_heads
        token_bytes = max(token_bytes, 4 * mask_BQTS.shape[0] * heads * group * query_BQTD.shape[2])
    page_tokens = snapshot.table.page_tokens
    return max(tile_bytes // token_bytes // page_tokens, 1) * page_tokens


def _is_fused(query_BQTD: Tensor, value_dim: int) -> bool:
    return query_BQTD.device.type == "cpu" and query_BQTD.shape[-1] == value_dim


def _masked_fused_tile(
    query_BQTD: Tensor, keys_BHLD: Tensor, values_BHLD: Tensor, scale: float, bias_BQTL: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One tile's (B, Q, T, Dv) output and the (B, Q, T) log of its softmax's denominator."""
    output, log_sum = _fused_tile(query_BQTD, keys_BHLD, values_BHLD, scale, bias_BQTL)
    if bias_BQTL is not None:
        # The fused kernel reports a log-sum of 0 for a query that sees nothing of the tile.
        log_sum = log_sum.masked_fill((bias_BQTL == -torch.inf).all(-1), -torch.inf)
    return output, log_sum


def _fused_tile(
    query_BQTD: Tensor, keys_BHLD: Tensor, values_BHLD: Tensor, scale: float, bias_BQTL: Tensor | None
) -> tuple[Tensor, Tensor]:
    """PyTorch's CPU kernel. The queries of a group are laid out as more tokens of their head."""
    num_rows, num_queries, num_new, dim = query_BQTD.shape
    num_heads = keys_BHLD.shape[1]
    folded = (num_rows, num_heads, num_queries // num_heads * num_new)
    if bias_BQTL is not None:
        bias_BQTL = _fold(bias_BQTL, num_heads, num_queries // num_heads, num_new)
    output, log_sum = _FUSED_CPU(
        query_BQTD.reshape(*folded, dim), keys_BHLD, values_BHLD, attn_mask=bias_BQTL, scale=scale
    )
    return (
        output.reshape(num_rows, num_queries, num_new, dim),
        log_sum.reshape(num_rows, num_queries, num_new),
    )


def _fold(bias_BQTL: Tensor, num_heads: int, group: int, num_new: int) -> Tensor:
    """A bias laid out as the folded queries are. One that all heads share stays one: (B, 1, G * T, L)."""
    num_rows, bias_heads, _, tokens = bias_BQTL.shape
    if bias_heads == 1:
        shared = bias_BQTL.expand(num_rows, 1, num_new, tokens)
        return shared.repeat(1, 1, group, 1) if group > 1 else shared
    each = bias_BQTL.expand(num_rows, bias_heads, num_new, tokens)
    return each.reshape(num_rows, num_heads, group * num_new, tokens)


def _plain_tile(  # as its fused twin, which has no cap
    query_BQTD: Tensor,
    keys_BHLD: Tensor,
    values_BHLD: Tensor,
    scale: float,
    bias_BQTL: Tensor | None,
    *,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Any device and any head dims, in float32."""
    num_rows, num_queries, num_new, dim = query_BQTD.shape
    num_heads = keys_BHLD.shape[1]
    query_BHGTD = query_BQTD.reshape(num_rows, num_heads, -1, num_new, dim).float()
    scores_BHGTL = torch.einsum("bhgtd,bhld->bhgtl", query_BHGTD, keys_BHLD.float()) * scale
    scores = scores_BHGTL.reshape(num_rows, num_queries, num_new, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias_BQTL is not None:
        scores = scores + bias_BQTL
    log_sum = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - log_sum.masked_fill(log_sum == -torch.inf, 0.0)[..., None])
    weights_BHGTL = weights.reshape(scores_BHGTL.shape)
    output = torch.einsum("bhgtl,bhld->bhgtd", weights_BHGTL, values_BHLD.float())
    return output.reshape(num_rows, num_queries, num_new, -1), log_sum


class _Merge:
    """A softmax-weighted sum that grows tile by tile, in float32."""

    def __init__(
        self, num_rows: int, num_queries: int, num_new: int, value_dim: int, device: torch.device
    ) -> None:
        shape = (num_rows, num_queries, num_new)
        self._output = torch.zeros(*shape, value_dim, device=device)
        self._log_sum = torch.full(shape, -torch.inf, device=device)

    def add(self, output: Tensor, log_sum: Tensor) -> None:
        total = torch.logaddexp(self._log_sum, log_sum)
        # Where nothing is seen yet the total is -inf: any finite reference keeps the weights at 0.
        reference = total.masked_fill(total == -torch.inf, 0.0)
        self._output.mul_(torch.exp(self._log_sum - reference)[..., None])
        self._output.addcmul_(output.float(), torch.exp(log_sum - reference)[..., None])
        self._log_sum = total

    def result(self, dtype: torch.dtype) -> Tensor:
        return self._output.to(dtype)
