"""Attention over blocks in paged planes: split over what is read, sums in float32.

A program has some queries of one (row, KV head), all of a step's, and a part of its blocks, and goes through
them one at a time with a running softmax; the parts are merged afterwards. Per block it loads 16 rows of
codes, of residuals where the block is critical, turns the queries to face the block, and multiplies.

Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stratakv.attention.device.kernels.bits import restore, scale_of
from stratakv.attention.device.kernels.merging import merge
from stratakv.attention.device.reads import Partial, PlanePools, Reads
from stratakv.attention.device.turns import Turns
from stratakv.cache.selection import BLOCK_TOKENS

# tl.dot takes no fewer rows.
LEAST_ROWS = 16
# More queries than a step has are cut: what a program holds of them has to fit its registers.
MOST_ROWS = 32
# Blocks that a program reads, about: fewer keep no GPU busy, more leave most of it idle at short contexts.
BLOCKS_PER_PART = 16


def attend(query_BHGD: Tensor, pools: PlanePools, reads: Reads, turns: Turns) -> Partial:
    """See `reference.attend`."""
    num_rows, num_heads, group, _ = query_BHGD.shape
    size = reads.slots.shape[-1]
    tiles = triton.cdiv(group, MOST_ROWS)
    parts = max(triton.cdiv(size, BLOCKS_PER_PART * tiles), 1)
    shape = (num_rows, num_heads, parts, group)
    output = query_BHGD.new_empty(*shape, pools.value_dim, dtype=torch.float32)
    log_sum = query_BHGD.new_empty(shape, dtype=torch.float32)
    attend_kernel[(num_rows * num_heads, parts, tiles)](
        query_BHGD.contiguous(),
        turns.partner(query_BHGD).contiguous(),
        turns.entries,
        pools.codes,
        pools.residuals,
        reads.slots,
        reads.residual_slots,
        reads.within,
        reads.distances,
        reads.counts,
        output,
        log_sum,
        num_heads,
        size,
        num_warps=warps(group),
        **constants(pools, group),
    )
    return merge(Partial(output, log_sum))


def warps(group: int) -> int:
    """Warps of a program: with twice the queries, twice as many share its registers."""
    return 4 if group <= LEAST_ROWS else 8


def constants(pools: PlanePools, group: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    codes, residuals = pools.codes_layout, pools.residuals_layout
    return {
        "GROUP": group,
        "GROUP_PAD": min(max(triton.next_power_of_2(group), LEAST_ROWS), MOST_ROWS),
        "KEY_DIM": pools.key_dim,
        "KEY_PAD": max(triton.next_power_of_2(pools.key_dim), LEAST_ROWS),
        "VALUE_DIM": pools.value_dim,
        "VALUE_PAD": max(triton.next_power_of_2(pools.value_dim), LEAST_ROWS),
        "PAGE_TOKENS": codes.page_tokens,
        "CODE_HEAD": codes.head_bytes,
        "CODE_PAGE": codes.page_bytes,
        "REST_HEAD": residuals.head_bytes,
        "REST_PAGE": residuals.page_bytes,
        "KEY_REST": residuals.key_row,
        "VALUE_REST": residuals.value_row,
        "IS_BYTE": int(pools.has_byte_residuals),
        "BLOCK": BLOCK_TOKENS,
    }


@triton.jit
def load_rows(codes, rest, rest_slot, first, DIM: tl.constexpr, PAD: tl.constexpr, REST: tl.constexpr,
              IS_BYTE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """(BLOCK, PAD) float32 over their scales: rows from `first` on; `codes` and `rest` are row 0's."""
    token = first + tl.arange(0, BLOCK)[:, None]
    element = tl.arange(0, PAD)[None, :]
    code = tl.load(codes + token * DIM + element, mask=(element < DIM) & (token >= 0), other=0)
    # No byte of a row is read where there is no slot of residuals.
    end = tl.where(rest_slot >= 0, REST, 0)
    if IS_BYTE:
        packed = tl.load(rest + token * REST + element, mask=(element < end) & (token >= 0), other=0)
        residual = packed.to(tl.int8, bitcast=True).to(tl.int32)
    else:
        byte = tl.arange(0, PAD // 2)[None, :]
        packed = tl.load(rest + token * REST + byte, mask=(byte < end) & (token >= 0), other=0).to(tl.int32)
        nibble = tl.interleave(packed & 15, packed >> 4)
        residual = ((nibble ^ 8) - 8) * 8
    return restore(code, residual)


@triton.jit
def attend_kernel(query, partner, turns, codes, residuals, slots, residual_slots, within, distances, counts,
                  output, log_sum, num_heads, size,
                  GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KEY_DIM: tl.constexpr, KEY_PAD: tl.constexpr,
                  VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr, PAGE_TOKENS: tl.constexpr,
                  CODE_HEAD: tl.constexpr, CODE_PAGE: tl.constexpr, REST_HEAD: tl.constexpr,
                  REST_PAGE: tl.constexpr, KEY_REST: tl.constexpr, VALUE_REST: tl.constexpr,
                  IS_BYTE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One part of one (row, KV head): GROUP_PAD of (GROUP, VALUE_DIM) and (GROUP) at (head, part)."""
    head, part = tl.program_id(0), tl.program_id(1)
    of_row = head % num_heads
    row_G = tl.program_id(2) * GROUP_PAD + tl.arange(0, GROUP_PAD)[:, None]
    element_D = tl.arange(0, KEY_PAD)[None, :]
    value_D = tl.arange(0, VALUE_PAD)[None, :]
    token_T = tl.arange(0, BLOCK)
    is_query = (row_G < GROUP) & (element_D < KEY_DIM)
    at_query = (head * GROUP + row_G) * KEY_DIM + element_D
    query_GD = tl.load(query + at_query, mask=is_query, other=0.0)
    partner_GD = tl.load(partner + at_query, mask=is_query, other=0.0)

    count = tl.load(counts + head)
    each = tl.cdiv(count, tl.num_programs(1))
    first = part * each
    largest_G1 = tl.full((GROUP_PAD, 1), float("-inf"), tl.float32)
    sum_G1 = tl.zeros((GROUP_PAD, 1), tl.float32)
    mean_GD = tl.zeros((GROUP_PAD, VALUE_PAD), tl.float32)
    for index in range(first, min(first + each, count)):
        at = head * size + index
        slot = tl.load(slots + at).to(tl.int64)
        rest_slot = tl.load(residual_slots + at).to(tl.int64)
        first_token = tl.load(within + at) * BLOCK
        turn = turns + tl.load(distances + at) * (2 * KEY_DIM)
        cos_D = tl.load(turn + element_D, mask=element_D < KEY_DIM, other=0.0)
        sin_D = tl.load(turn + KEY_DIM + element_D, mask=element_D < KEY_DIM, other=0.0)
        facing_GD = query_GD * cos_D + partner_GD * sin_D

        page = codes + slot * CODE_PAGE + of_row * CODE_HEAD
        rest = residuals + rest_slot * REST_PAGE + of_row * REST_HEAD
        rows, rest_rows = page + 2 * PAGE_TOKENS, rest + 2 * PAGE_TOKENS
        keys_TD = load_rows(
            rows, rest_rows, rest_slot, first_token, KEY_DIM, KEY_PAD, KEY_REST, IS_BYTE, BLOCK
        )
        rows += PAGE_TOKENS * KEY_DIM
        rest_rows += PAGE_TOKENS * KEY_REST
        values_TD = load_rows(
            rows, rest_rows, rest_slot, first_token, VALUE_DIM, VALUE_PAD, VALUE_REST, IS_BYTE, BLOCK
        )
        key_scale_T = scale_of(tl.load(page + first_token + token_T))
        value_scale_T = scale_of(tl.load(page + PAGE_TOKENS + first_token + token_T))

        # Three products of tf32 are as good as one of float32, and the codes need but one of them.
        scores_GT = tl.dot(facing_GD, tl.trans(keys_TD), input_precision="tf32x3") * key_scale_T[None, :]
        most_G1 = tl.maximum(largest_G1, tl.max(scores_GT, 1, keep_dims=True))
        # Before anything finite was seen, any reference keeps the weights at 0.
        reference_G1 = tl.where(most_G1 == float("-inf"), 0.0, most_G1)
        weights_GT = tl.exp(scores_GT - reference_G1)
        fade_G1 = tl.exp(largest_G1 - reference_G1)
        sum_G1 = sum_G1 * fade_G1 + tl.sum(weights_GT, 1, keep_dims=True)
        weights_GT *= value_scale_T[None, :]
        mean_GD = mean_GD * fade_G1 + tl.dot(weights_GT, values_TD, input_precision="tf32x3")
        largest_G1 = most_G1

    at_part = (head * tl.num_programs(1) + part) * GROUP + row_G
    # Where nothing was seen the sum is 0, the mean 0 and the largest score -inf.
    divisor_G1 = tl.where(sum_G1 == 0.0, 1.0, sum_G1)
    is_output = (row_G < GROUP) & (value_D < VALUE_DIM)
    tl.store(output + at_part * VALUE_DIM + value_D, mean_GD / divisor_G1, mask=is_output)
    tl.store(log_sum + at_part, largest_G1 + tl.log(divisor_G1), mask=row_G < GROUP)
