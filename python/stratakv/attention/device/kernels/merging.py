"""Merging the parts of an attention by the logarithms of their denominators."""

import triton
import triton.language as tl
from torch import Tensor

from stratakv.attention.device.reads import Partial


def merge(parts: Partial) -> Partial:
    """See `reference.merge`."""
    num_rows, num_heads, num_parts, group, dim = parts.output.shape
    output: Tensor = parts.output.new_empty(num_rows, num_heads, group, dim)
    log_sum: Tensor = parts.log_sum.new_empty(num_rows, num_heads, group)
    merge_kernel[(num_rows * num_heads * group,)](
        parts.output.contiguous(),
        parts.log_sum.contiguous(),
        output,
        log_sum,
        num_parts,
        group,
        **constants(num_parts, dim),
    )
    return Partial(output, log_sum)


def constants(num_parts: int, dim: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {
        "PARTS_PAD": triton.next_power_of_2(num_parts),
        "DIM": dim,
        "DIM_PAD": triton.next_power_of_2(dim),
    }


@triton.jit
def merge_kernel(parts, part_log_sums, output, log_sum, num_parts, group,
                 PARTS_PAD: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr):  # fmt: skip
    """One query head: (DIM) out of (num_parts, DIM)."""
    query = tl.program_id(0)
    head, of_group = query // group, query % group
    part_S = tl.arange(0, PARTS_PAD)
    element_D = tl.arange(0, DIM_PAD)
    at_S = (head * num_parts + part_S) * group + of_group
    log_sum_S = tl.load(part_log_sums + at_S, mask=part_S < num_parts, other=float("-inf"))
    largest = tl.max(log_sum_S, 0)
    reference = tl.where(largest == float("-inf"), 0.0, largest)
    weight_S = tl.exp(log_sum_S - reference)
    total = tl.sum(weight_S, 0)
    # Where nothing was seen all weights are 0 and the largest logarithm -inf.
    divisor = tl.where(total == 0.0, 1.0, total)
    is_in = (part_S < num_parts)[:, None] & (element_D < DIM)[None, :]
    parts_SD = tl.load(parts + at_S[:, None] * DIM + element_D[None, :], mask=is_in, other=0.0)
    mean_D = tl.sum(weight_S[:, None] * parts_SD, 0) / divisor
    tl.store(output + query * DIM + element_D, mean_D, mask=element_D < DIM)
    tl.store(log_sum + query, largest + tl.log(divisor))
