"""FP8 e4m3 codes with scales: by rows, by tiles of 1 x 128, or by blocks of 128 x 128.

Letters: M rows (tokens), K input features, N output features, T tiles of 128 features; a suffix p: padded.

Format: `float8_e4m3fn` (4 bits of exponent, 3 of mantissa, no infinities, largest value 448). A value is
`code * scale` with a float32 scale, the largest magnitude under it / 448: that element is kept to 2^-4 at
worst, as is every one down to 2^-15 of it; smaller ones lose bits. Two ways to choose what is under a scale:

- "rows": activations have a scale per token, weights one per output channel.
- "tiles": activations have a scale per token and 128 features, weights one per 128 x 128 block. A large
  element costs only its neighbours their bits, which is what models with outlier channels need. Source:
  DeepSeek-V3 (arXiv 2412.19437), section 3.3.2.

Layouts, which are those that torch's products ask for on CUDA:

- codes: row-major as `nn.Linear` stores weights, so that the transpose, which is passed as the second
  matrix, is column-major without a copy.
- padding is zeros, which add nothing; padded results are cut off. By rows, K and N are padded to multiples of
  16. By tiles, K and N to multiples of 128, and M to one of 4, since scales are read 16 bytes at a time.
- scales: by rows (M, 1) or (Np, 1), contiguous; of tiles (Mp, T), each tile's column contiguous; of blocks
  (Np / 128, T4), contiguous, T4 being T rounded up to a multiple of 4.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
TILE = 128
# What features are padded to.
Scales = Literal["rows", "tiles"]
ALIGNMENT: dict[Scales, int] = {"rows": 16, "tiles": TILE}
# Of the rows of tiles, and of the scales of a block row.
SCALE_ALIGNMENT = 4
# The names of `torch.nn.functional.ScalingType`.
Scaling = Literal["RowWise", "BlockWise1x128", "BlockWise128x128"]


class Quantized(NamedTuple):
    """A matrix's codes (rows, features) `float8_e4m3fn`, and its float32 scales (see above for shapes)."""

    codes: Tensor
    scale: Tensor
    scaling: Scaling = "RowWise"


def quantize_activations(rows_MK: Tensor, scales: Scales) -> Quantized:
    """(M, K) of any floating dtype but float8: a scale per row, or per tile of a row."""
    return quantize_tiles(rows_MK) if scales == "tiles" else quantize_rows(rows_MK)


def quantize_weight(weight_NK: Tensor, scales: Scales) -> Quantized:
    """(N, K), as a linear layer has it: a scale per output channel, or per block."""
    return quantize_blocks(weight_NK) if scales == "tiles" else quantize_second(weight_NK, scales)


def quantize_second(matrix_NK: Tensor, scales: Scales) -> Quantized:
    """`quantize_activations` for the second matrix of a product, whose rows are padded to 16 too."""
    return quantize_activations(_pad(matrix_NK, ALIGNMENT["rows"], 1), scales)


def weight_scaling(scales: Scales) -> Scaling:
    """What `quantize_weight` gives."""
    return "BlockWise128x128" if scales == "tiles" else "RowWise"


def quantize_rows(rows_MK: Tensor) -> Quantized:
    """Quantises each row by its own largest magnitude.

    A row of zeros has zero codes. A row with an infinity or a NaN becomes NaN throughout, as a
    product with it would; other rows are not touched by it.

    Args:
        rows_MK: (M, K), any floating dtype but float8; computed in float32.
    """
    rows_MK = _pad(rows_MK.float(), 1, ALIGNMENT["rows"])
    scale_M1 = rows_MK.abs().amax(dim=1, keepdim=True) / FP8_MAX
    # A scale below the smallest normal number would be flushed to zero by some devices.
    scale_M1 = scale_M1.clamp_min(torch.finfo(torch.float32).tiny)
    # The quotient may be rounded to just over the maximum: the cast of some releases makes that NaN.
    quotient_MK = (rows_MK / scale_M1).clamp(-FP8_MAX, FP8_MAX)
    # Row-major even where the input is a transposed view, which elementwise operations would follow.
    codes_MK = quotient_MK.to(FP8, memory_format=torch.contiguous_format)
    return Quantized(codes_MK, scale_M1)


def quantize_tiles(rows_MK: Tensor) -> Quantized:
    """Quantises each 1 x 128 tile as `quantize_rows` does a row: (Mp, Kp) codes, (Mp, T) scales."""
    rows_MK = _pad(rows_MK, SCALE_ALIGNMENT, TILE)
    tiles = quantize_rows(rows_MK.reshape(-1, TILE))
    scale_MT = tiles.scale.view(rows_MK.shape[0], -1)
    return Quantized(tiles.codes.view(rows_MK.shape), scale_MT.t().contiguous().t(), "BlockWise1x128")


def quantize_blocks(weight_NK: Tensor) -> Quantized:
    """Quantises each 128 x 128 block as `quantize_rows` does a row: (Np, Kp) codes, (Np / 128, T4) scales."""
    weight_NK = _pad(weight_NK, TILE, TILE)
    num_down, num_across = weight_NK.shape[0] // TILE, weight_NK.shape[1] // TILE
    by_block = weight_NK.reshape(num_down, TILE, num_across, TILE).transpose(1, 2)
    blocks = quantize_rows(by_block.reshape(-1, TILE * TILE))
    codes_NK = blocks.codes.view(by_block.shape).transpose(1, 2).reshape(weight_NK.shape)
    scale_NT = blocks.scale.view(num_down, num_across)
    return Quantized(codes_NK, _pad(scale_NT, 1, SCALE_ALIGNMENT), "BlockWise128x128")


def dequantize(matrix: Quantized) -> Tensor:
    """The float32 values that the codes stand for, padding included."""
    scale = matrix.scale
    if matrix.scaling == "BlockWise128x128":
        scale = scale.repeat_interleave(TILE, dim=0)
    if matrix.scaling != "RowWise":
        scale = scale.repeat_interleave(TILE, dim=1)[:, : matrix.codes.shape[1]]
    return matrix.codes.float() * scale


def _pad(matrix: Tensor, rows: int, features: int) -> Tensor:
    """Zeros below and to the right, up to multiples."""
    below, right = -matrix.shape[0] % rows, -matrix.shape[1] % features
    return functional.pad(matrix, (0, right, 0, below)) if below or right else matrix
