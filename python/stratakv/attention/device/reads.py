"""What attention on a device reads: pages of planes in slots, and which of their blocks for which head.

Letters: B rows, H KV heads, K blocks that are read, A slots of a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stratakv.cache.planes import PlaneLayout


@dataclass(frozen=True)
class PlanePools:
    """The slots of a device.

    Attributes:
        codes: (A, codes_layout.page_bytes) uint8.
        residuals: (A', residuals_layout.page_bytes) uint8.
        codes_layout: of a slot of codes.
        residuals_layout: of a slot of residuals.
        key_dim: elements of a key.
        value_dim: elements of a value.
        has_byte_residuals: the residuals are those of float16, a byte each.
    """

    codes: Tensor
    residuals: Tensor
    codes_layout: PlaneLayout
    residuals_layout: PlaneLayout
    key_dim: int
    value_dim: int
    has_byte_residuals: bool


@dataclass(frozen=True)
class Reads:
    """The blocks of every (row, KV head), in any order; int32, what is past a count is not looked at.

    Attributes:
        slots: (B, H, K), slots of codes.
        residual_slots: (B, H, K), slots of residuals; -1 reads the codes alone.
        within: (B, H, K), the block's place in its page.
        distances: (B, H, K), whole blocks from where the page is read as if it began to the end of the whole
            pages: what `Turns` turns the query by.
        counts: (B, H).
    """

    slots: Tensor
    residual_slots: Tensor
    within: Tensor
    distances: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Partial:
    """Attention over a part of what is read.

    Attributes:
        output: (..., G, Dv) float32, the softmax-weighted mean of the values.
        log_sum: (..., G) float32, the logarithm of the softmax's denominator; -inf where nothing was read.
    """

    output: Tensor
    log_sum: Tensor
