"""Which kernel serves an attention over pages.

- a step of decoding, or a prefill's chunk, of a long context in a table with a hot tier: that tier, on its
  device;
- few query tokens on the CPU, or many of which the engine selects for: the engine's kernel, straight
  from the pages;
- a layer that fits the tile budget: gathered, then the very call that the model made;
- otherwise: streamed in tiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stratakv.attention.masks import BiasCache, as_4d, causal_mask
from stratakv.attention.streaming import stream_attention
from stratakv.attention.workspace import DEFAULT_TILE_BYTES, WORKSPACE
from stratakv.cache.page_table import Snapshot

# The engine's kernel reads a page once for all its query tokens and is made for up to this many.
FEW_TOKENS = 32

_BIASES = BiasCache()


def paged_attention(
    query: Tensor,
    snapshot: Snapshot,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    tile_bytes: int = DEFAULT_TILE_BYTES,
) -> Tensor | None:
    """Exact attention of queries over a snapshot of one layer.

    Args:
        query: (B, Q, T, Dk), Q a multiple of the layer's heads. In a table with a rotary, of the last
            T tokens and without positions.
        snapshot: S tokens of (B, H, Dk) keys and (B, H, Dv) values.
        mask: broadcasts to (B, Q, T, S). Bool: True takes part. Float: added to the scores.
        causal: instead of a mask: query t of T sees all but the last T - 1 - t tokens.
        scale: factor of the scores; Dk ** -0.5 by default.
        softcap: bound of the scores, see `softcap_attention`; served in tiles.
        tile_bytes: bound of the keys and values that are copied out of pages at a time.

    Returns:
        (B, Q, T, Dv), or None where no kernel here takes these shapes: the caller then uses
        PyTorch on materialised keys and values. Backward through it raises RuntimeError.
    """
    mask_4d = None
    if not _fits(query, snapshot):
        return None
    if mask is not None:
        mask_4d = as_4d(mask, (*query.shape[:3], snapshot.length))
        if mask_4d is None:
            return None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    hot = snapshot.table.hot
    is_hot = _is_for_device(query, snapshot, mask, causal, softcap)
    with torch.no_grad():
        if hot is not None and not is_hot:
            hot.forget(snapshot.slot)
        if hot is not None and is_hot:
            snapshot.check()
            output = hot.attend(snapshot.slot, query.detach(), scale)
        elif causal and softcap is None and _is_for_engine(query, snapshot):
            output = _engine(query.detach(), snapshot, None, scale, causal=True)
        else:
            if causal:
                mask = _shared_causal_mask(query.shape[2], snapshot.length, query.device)
                mask_4d = as_4d(mask, (*query.shape[:3], snapshot.length))
            output = _choose(
                query.detach(), snapshot, mask, mask_4d, scale=scale, softcap=softcap, tile_bytes=tile_bytes
            )
    if torch.is_grad_enabled() and query.requires_grad:
        return _NoGradient.apply(output, query)  # type: ignore[no-any-return]
    return output


def _fits(query: Tensor, snapshot: Snapshot) -> bool:
    geometry = snapshot.geometry
    return (
        query.dim() == 4
        and query.shape[0] == snapshot.num_rows
        and query.shape[1] % geometry.num_heads == 0
        and query.shape[2] > 0
        and query.shape[3] == geometry.key_dim
        and query.dtype == geometry.dtype
        and query.device == snapshot.device
        and snapshot.length > 0
    )


@lru_cache(maxsize=1)
def _shared_causal_mask(num_new: int, length: int, device: torch.device) -> Tensor:
    """The mask of a pass, made once for all its layers."""
    return causal_mask(num_new, length, device)


def _is_for_engine(query: Tensor, snapshot: Snapshot) -> bool:
    """Whether causal queries go to the engine: few of them, or such that it selects for."""
    table = snapshot.table
    is_few = query.shape[2] <= FEW_TOKENS
    return query.device.type == "cpu" and (is_few or snapshot.length > table.dense_prefill_below)


def _is_for_device(
    query: Tensor, snapshot: Snapshot, mask: Tensor | None, causal: bool, softcap: float | None
) -> bool:
    """Whether the hot tier attends: for the last tokens, over everything that the table holds."""
    table, num_new = snapshot.table, query.shape[2]
    return (
        table.hot is not None
        and mask is None
        and softcap is None
        and (causal or num_new == 1)
        and snapshot.length == table.length(snapshot.slot)
        and table.hot.serves(snapshot.slot, num_new, query.device)
    )


def _choose(
    query: Tensor,
    snapshot: Snapshot,
    mask: Tensor | None,
    mask_4d: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
    tile_bytes: int,
) -> Tensor:
    is_engine_case = softcap is None and (mask_4d is None or mask_4d.shape[1] == 1)
    if query.device.type == "cpu" and query.shape[2] <= FEW_TOKENS and is_engine_case:
        bias = None if mask is None or mask_4d is None else _BIASES.bias(mask_4d, mask)
        return _engine(query, snapshot, bias, scale)
    rotary = snapshot.table.rotary
    if rotary is not None:
        query = rotary.rotate(query, torch.arange(snapshot.length - query.shape[2], snapshot.length))
    group = query.shape[1] // snapshot.geometry.num_heads
    if softcap is None and snapshot.num_bytes * group <= tile_bytes:
        return _whole(query, snapshot, mask, scale, group)
    return stream_attention(
        query, snapshot, scale=scale, softcap=softcap, mask_BQTS=mask_4d, tile_bytes=tile_bytes
    )


def _engine(
    query: Tensor, snapshot: Snapshot, bias: Tensor | None, scale: float, *, causal: bool = False
) -> Tensor:
    snapshot.check()
    if query.stride(-1) != 1:
        query = query.contiguous()
    output = query.new_empty(*query.shape[:3], snapshot.geometry.value_dim)
    snapshot.table.native.attend(snapshot.slot, query, output, scale, bias, causal)
    return output


def _whole(query: Tensor, snapshot: Snapshot, mask: Tensor | None, scale: float, group: int) -> Tensor:
    """The model's own call, on a copy: the same numbers to the last bit."""
    buffer = None
    if snapshot.device.type == "cpu":
        numel = snapshot.num_bytes // snapshot.geometry.dtype.itemsize
        buffer = WORKSPACE.buffer(numel, snapshot.geometry.dtype)
    keys, values = snapshot.gather(0, snapshot.length, buffer, turn="placed")
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


class _NoGradient(torch.autograd.Function):
    """Marks a result as depending on its query, and refuses to differentiate it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, query: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "pages hold no gradients, so a forward pass over a cached past cannot be differentiated: "
            "train without a cache, or run the model under torch.no_grad()"
        )
