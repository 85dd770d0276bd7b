"""Scoring, attention and merging in plain PyTorch: the oracle of the kernels, and what other devices run.

Each function has a twin of the same name and arguments in `kernels`. Whole tensors are made of everything
that is read, in float32: right on any device, and not fast.

Letters: B rows, H KV heads, G query heads of a group, N blocks, K blocks that are read, F places that
queries score from, D elements, L slow elements of a summary, P tokens of a page, S parts that are merged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.attention.device.reads import Partial, PlanePools, Reads
from stratakv.attention.device.summaries import Asked, SummaryLayout
from stratakv.attention.device.turns import Turns
from stratakv.cache.planes import PlaneLayout
from stratakv.cache.selection import BLOCK_TOKENS

NOT_FINITE = 255  # the scale byte of a row that is no number


def score(summaries_BHNZ: Tensor, asked: Asked, places_N: Tensor, layout: SummaryLayout) -> Tensor:
    """Estimates the logarithm of the mass that each query gives each block.

    Args:
        summaries_BHNZ: uint8, `layout.num_bytes` each.
        asked: queries from F places.
        places_N: which of these each block is scored from; integers.
        layout: of the summaries.

    Returns:
        (B, H, G, N) float32; NaN for blocks whose keys are no numbers.
    """
    mean_scale_BHN, rest_scale_BHN = _scales(summaries_BHNZ, layout)
    mean_bytes = summaries_BHNZ[..., : layout.mean_bytes]
    mean_BHND = torch.cat([mean_bytes & 15, mean_bytes >> 4], dim=-1)[..., : layout.key_dim].float() - 8
    whole_BHNGD = asked.whole[:, :, places_N]
    centre_BHGN = torch.einsum("bhngd,bhnd->bhgn", whole_BHNGD, mean_BHND) * mean_scale_BHN[:, :, None]

    codes_BHNTL = _codes(summaries_BHNZ, layout).float() - 1.5
    sums = torch.einsum("bhngl,bhntl->bhgnt", asked.slow[:, :, places_N].float(), codes_BHNTL)
    step_BHGN1 = (asked.steps[:, :, places_N].transpose(2, 3) * rest_scale_BHN[:, :, None])[..., None]
    scores_BHGNT = sums * _token_steps(summaries_BHNZ, layout)[:, :, None] * step_BHGN1
    masses_BHGN: Tensor = centre_BHGN + scores_BHGNT.logsumexp(-1)
    return masses_BHGN


def attend(query_BHGD: Tensor, pools: PlanePools, reads: Reads, turns: Turns) -> Partial:
    """Attention over the blocks that are read, each in its own precision.

    Args:
        query_BHGD: float32, scaled, placed relative to the end of the whole pages.
        pools: the slots.
        reads: what is read of them.
        turns: of the layer's rotary, grown beyond the distances.

    Returns:
        (B, H, G, Dv) and (B, H, G).
    """
    keys_BHKTD = read_rows(pools, reads, "keys")
    values_BHKTD = read_rows(pools, reads, "values")
    if query_BHGD.shape[2] > BLOCK_TOKENS:
        # There are fewer keys to turn.
        keys_BHKTD = turns.back_by_blocks(keys_BHKTD, reads.distances[..., None])
        scores_BHGKT = torch.einsum("bhgd,bhktd->bhgkt", query_BHGD, keys_BHKTD)
    else:
        facing_BHKGD = turns.by_blocks(query_BHGD[:, :, None], reads.distances[..., None])
        scores_BHGKT = torch.einsum("bhkgd,bhktd->bhgkt", facing_BHKGD, keys_BHKTD)
    size = reads.slots.shape[-1]
    is_read_BHK = torch.arange(size, device=query_BHGD.device) < reads.counts[..., None]
    scores_BHGKT = scores_BHGKT.masked_fill(~is_read_BHK[:, :, None, :, None], -torch.inf)
    values_BHKTD = values_BHKTD.masked_fill(~is_read_BHK[..., None, None], 0.0)
    return weigh(scores_BHGKT.flatten(3), values_BHKTD.flatten(2, 3))


def weigh(scores: Tensor, values: Tensor) -> Partial:
    """The softmax of (..., G, T) scores over (..., T, Dv) values, all float32."""
    log_sum = scores.logsumexp(-1)
    weights = torch.exp(scores - log_sum.masked_fill(log_sum == -torch.inf, 0.0)[..., None])
    return Partial(weights @ values, log_sum)


def merge(parts: Partial) -> Partial:
    """One attention out of S parts: (B, H, S, G, Dv) and (B, H, S, G).

    Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
    """
    log_sum = parts.log_sum.logsumexp(2)
    reference = log_sum.masked_fill(log_sum == -torch.inf, 0.0)
    weights_BHSG = torch.exp(parts.log_sum - reference[:, :, None])
    return Partial(torch.einsum("bhsg,bhsgd->bhgd", weights_BHSG, parts.output), log_sum)


def read_rows(pools: PlanePools, reads: Reads, part: str) -> Tensor:
    """(B, H, K, 16, D) float32: the "keys" or "values" of every block that is read, without its position."""
    dim = pools.key_dim if part == "keys" else pools.value_dim
    codes = _slices(pools.codes, pools.codes_layout, reads.slots, reads.within, part)
    packed = _slices(pools.residuals, pools.residuals_layout, reads.residual_slots, reads.within, part)
    rest = _byte_rest(packed) if pools.has_byte_residuals else _nibble_rest(packed)[..., :dim]
    rest = rest.masked_fill((reads.residual_slots < 0)[..., None, None], 0)
    scales = _token_scales(pools.codes, pools.codes_layout, reads.slots, reads.within, part)
    return restore(codes, rest, scales)


def restore(codes: Tensor, rest: Tensor, scale_bytes: Tensor) -> Tensor:
    """Values of rows in planes (`fp8/codecs.py`), in bits: what both planes say is a float16 of value / 2^8.

    Args:
        codes: (..., D) uint8.
        rest: (..., D) int32, the residuals in units of a float16's last place; 0 for the codes alone.
        scale_bytes: (...) uint8.

    Returns:
        (..., D) float32.
    """
    magnitude = (codes & 0x7F).int() * 128 + rest
    half = (magnitude | (codes.int() & 0x80) << 8).to(torch.uint16).view(torch.float16)
    exponents = scale_bytes.int()
    # Byte 0 is 2^-127, a subnormal number.
    scales = torch.where(exponents == 0, 1 << 22, exponents << 23).view(torch.float32)
    scales = scales.masked_fill(exponents == NOT_FINITE, torch.nan)
    return half.float() * 256.0 * scales[..., None]


def _slices(pool: Tensor, layout: PlaneLayout, slots: Tensor, within: Tensor, part: str) -> Tensor:
    """(B, H, K, 16, row bytes) of a pool."""
    start = layout.keys_start if part == "keys" else layout.values_start
    row = layout.key_row if part == "keys" else layout.value_row
    rows_AHB = _heads(pool, layout)[:, :, start : start + layout.page_tokens * row]
    rows_AHPR = rows_AHB.reshape(*rows_AHB.shape[:2], -1, row)
    return _blocks(rows_AHPR, slots, within)


def _token_scales(pool: Tensor, layout: PlaneLayout, slots: Tensor, within: Tensor, part: str) -> Tensor:
    """(B, H, K, 16) scale bytes."""
    start = 0 if part == "keys" else layout.page_tokens
    return _blocks(_heads(pool, layout)[:, :, start : start + layout.page_tokens], slots, within)


def _heads(pool: Tensor, layout: PlaneLayout) -> Tensor:
    return pool.view(len(pool), layout.num_heads, layout.head_bytes)


def _blocks(rows_AHP: Tensor, slots_BHK: Tensor, within_BHK: Tensor) -> Tensor:
    """(B, H, K, 16, ...) of (A, H, P, ...): blocks of each head's own; what is no slot is taken for one."""
    num_slots, num_heads = rows_AHP.shape[:2]
    blocks = rows_AHP.reshape(num_slots, num_heads, -1, BLOCK_TOKENS, *rows_AHP.shape[3:])
    head_H1 = torch.arange(num_heads, device=slots_BHK.device)[:, None]
    chosen: Tensor = blocks[slots_BHK.long().clamp(0, num_slots - 1), head_H1, within_BHK.long()]
    return chosen


def _nibble_rest(packed: Tensor) -> Tensor:
    """(..., 2 R) int32 of two residuals a byte, which stand 3 bits from a float16's last place."""
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).int()
    return ((nibbles ^ 8) - 8) * 8


def _byte_rest(packed: Tensor) -> Tensor:
    return packed.view(torch.int8).int()


def _scales(summaries: Tensor, layout: SummaryLayout) -> Tensor:
    """(2, ...) float32: scales of the mean key and of the residuals."""
    start = layout.scales_start
    return summaries[..., start : start + 4].contiguous().view(torch.float16).float().movedim(-1, 0)


def _token_steps(summaries: Tensor, layout: SummaryLayout) -> Tensor:
    """(..., 16): the scale of each token's residuals, in steps."""
    packed = summaries[..., layout.steps_start : layout.steps_start + BLOCK_TOKENS // 2]
    return torch.cat([packed & 15, packed >> 4], dim=-1).float() + 1


def _codes(summaries: Tensor, layout: SummaryLayout) -> Tensor:
    """(..., 16, L) codes, 0 to 3: where docs/format.md has them."""
    element = torch.arange(layout.num_slow)
    token = torch.arange(BLOCK_TOKENS)[:, None]
    group, place = element // 16, element % 16
    in_words = (group * BLOCK_TOKENS + token) * 4 + place % 4
    in_halves = layout.word_groups * BLOCK_TOKENS * 4 + token * 2 + place // 4
    is_word = group < layout.word_groups
    where = torch.where(is_word, in_words, in_halves).to(summaries.device)
    shift = torch.where(is_word, place // 4, place % 4).mul(2).to(summaries.device, torch.uint8)
    return summaries[..., layout.mean_bytes + where] >> shift & 3
