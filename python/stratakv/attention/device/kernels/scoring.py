"""Estimating blocks' masses from their summaries.

A program goes through some blocks of one (row, KV head); each may be scored from a place of its own. Products
of the queries' 8-bit elements with the 2-bit codes are of float16 and exact; everything else is in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stratakv.attention.device.kernels.bits import load_half
from stratakv.attention.device.summaries import Asked, SummaryLayout
from stratakv.cache.selection import BLOCK_TOKENS

# tl.dot takes no fewer rows.
LEAST_ROWS = 16
# Blocks of a program.
BLOCKS = 8


def score(summaries_BHNZ: Tensor, asked: Asked, places_N: Tensor, layout: SummaryLayout) -> Tensor:
    """See `reference.score`."""
    num_rows, num_heads, num_blocks, _ = summaries_BHNZ.shape
    num_places, group = asked.steps.shape[2:]
    masses = asked.steps.new_empty(num_rows, num_heads, group, num_blocks, dtype=torch.float32)
    if not masses.numel():
        return masses
    score_kernel[(num_rows * num_heads, triton.cdiv(num_blocks, BLOCKS))](
        summaries_BHNZ.flatten(0, 1),
        summaries_BHNZ.stride(1),
        asked.whole.contiguous(),
        asked.slow.contiguous(),
        asked.steps.contiguous(),
        places_N.int(),
        masses,
        num_blocks,
        num_places,
        **constants(layout, group),
    )
    return masses


def constants(layout: SummaryLayout, group: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {
        "GROUP": group,
        "GROUP_PAD": max(triton.next_power_of_2(group), LEAST_ROWS),
        "DIM": layout.key_dim,
        "DIM_PAD": max(triton.next_power_of_2(layout.key_dim), LEAST_ROWS),
        "SLOW": layout.num_slow,
        "SLOW_PAD": max(triton.next_power_of_2(layout.num_slow), LEAST_ROWS),
        "WORD_GROUPS": layout.word_groups,
        "MEAN_BYTES": layout.mean_bytes,
        "STEPS": layout.steps_start,
        "SCALES": layout.scales_start,
        "BYTES": layout.num_bytes,
        "BLOCKS": BLOCKS,
        "TOKENS": BLOCK_TOKENS,
    }


@triton.jit
def load_codes(codes, SLOW: tl.constexpr, SLOW_PAD: tl.constexpr, WORD_GROUPS: tl.constexpr,
               TOKENS: tl.constexpr):  # fmt: skip
    """(SLOW_PAD, TOKENS) codes about their middle, in halves: -3, -1, 1 or 3."""
    element = tl.arange(0, SLOW_PAD)[:, None]
    token = tl.arange(0, TOKENS)[None, :]
    group, place = element // 16, element % 16
    is_word = group < WORD_GROUPS
    in_words = (group * TOKENS + token) * 4 + place % 4
    in_halves = WORD_GROUPS * TOKENS * 4 + token * 2 + place // 4
    shift = tl.where(is_word, place // 4, place % 4) * 2
    packed = tl.load(
        codes + tl.where(is_word, in_words, in_halves), mask=(element < SLOW) & (token >= 0), other=0
    )
    return ((packed.to(tl.int32) >> shift) & 3) * 2 - 3


@triton.jit
def score_kernel(summaries, head_stride, whole, slow, steps, places, masses, num_blocks, num_places,
                 GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
                 SLOW: tl.constexpr, SLOW_PAD: tl.constexpr, WORD_GROUPS: tl.constexpr,
                 MEAN_BYTES: tl.constexpr, STEPS: tl.constexpr, SCALES: tl.constexpr, BYTES: tl.constexpr,
                 BLOCKS: tl.constexpr, TOKENS: tl.constexpr):  # fmt: skip
    """Logarithms of masses, (GROUP) per block, of BLOCKS blocks of one (row, KV head)."""
    head = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCKS
    row_G = tl.arange(0, GROUP_PAD)
    element_D = tl.arange(0, DIM_PAD)
    element_L = tl.arange(0, SLOW_PAD)
    token_T = tl.arange(0, TOKENS)
    is_row = row_G < GROUP
    for block in range(first, min(first + BLOCKS, num_blocks)):
        summary = summaries + head * head_stride + block * BYTES
        asked = (head * num_places + tl.load(places + block)) * GROUP + row_G

        half = tl.where(element_D < MEAN_BYTES, 0, 1)
        packed_D = tl.load(summary + element_D - half * MEAN_BYTES, mask=element_D < DIM, other=0)
        mean_D = ((packed_D.to(tl.int32) >> (half * 4)) & 15).to(tl.float32) - 8.0
        at_GD = asked[:, None] * DIM + element_D[None, :]
        whole_GD = tl.load(whole + at_GD, mask=is_row[:, None] & (element_D < DIM)[None, :], other=0.0)
        centre_G = tl.sum(whole_GD * mean_D[None, :], 1) * load_half(summary + SCALES)

        codes_LT = load_codes(summary + MEAN_BYTES, SLOW, SLOW_PAD, WORD_GROUPS, TOKENS)
        at_GL = asked[:, None] * SLOW + element_L[None, :]
        slow_GL = tl.load(slow + at_GL, mask=is_row[:, None] & (element_L < SLOW)[None, :], other=0.0)
        sums_GT = tl.dot(slow_GL, codes_LT.to(tl.float16))
        steps_T = (tl.load(summary + STEPS + token_T % 8).to(tl.int32) >> (token_T // 8 * 4)) & 15
        step_G = tl.load(steps + asked, mask=is_row, other=0.0) * load_half(summary + SCALES + 2) * 0.5
        scores_GT = sums_GT * (steps_T + 1).to(tl.float32)[None, :] * step_G[:, None]

        largest_G = tl.max(scores_GT, 1)
        sum_G = tl.sum(tl.exp(scores_GT - largest_G[:, None]), 1)
        mass_G = centre_G + largest_G + tl.log(sum_G)
        tl.store(masses + (head * GROUP + row_G) * num_blocks + block, mass_G, mask=is_row)
