"""Rotary positions in PyTorch: what the engine does to keys and queries of page-rotated tables.

Letters: B rows, H heads, T tokens, D head dim, N frequencies.
Source: Su et al., "RoFormer", 2021 (arXiv:2104.09864).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Frequencies of a rotary embedding, and which elements of a head it turns.

    Attributes:
        inv_freq: radians per position of each pair; the first two elements per frequency are
            turned, the rest of a head is left alone.
        interleaved: pairs are neighbours, (0, 1), (2, 3), ...; otherwise element i is paired
            with element i + N.
    """

    inv_freq: tuple[float, ...]
    interleaved: bool = False

    @property
    def dims(self) -> int:
        """Elements of a head that are turned."""
        return 2 * len(self.inv_freq)

    def settings(self) -> dict[str, str]:
        """What tells stored keys of this rotary from others, for people and for page keys."""
        digest = hashlib.blake2b(struct.pack(f"<{len(self.inv_freq)}d", *self.inv_freq), digest_size=8)
        return {
            "rotary_dims": str(self.dims),
            "rotary_frequencies": digest.hexdigest(),
            "rotary_pairs": "interleaved" if self.interleaved else "halves",
        }

    def rotate(self, tensor_BHTD: Tensor, positions_T: Tensor) -> Tensor:
        """Turns each token to its position: float64 angles, float32 products, rounded once."""
        inv_freq = torch.tensor(self.inv_freq, dtype=torch.float64)
        angles_TN = positions_T.to("cpu", torch.float64)[:, None] * inv_freq
        cos, sin = (part.float().to(tensor_BHTD.device) for part in (angles_TN.cos(), angles_TN.sin()))
        return turn(tensor_BHTD.float(), cos, sin, interleaved=self.interleaved).to(tensor_BHTD.dtype)


def turn(tensor: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turns the first 2N elements of (..., D) by angles whose cosines and sines broadcast to (..., N).

    In the arithmetic of the given dtypes, in the order of operations that transformers' models use.
    """
    num = cos.shape[-1]
    head, rest = tensor[..., : 2 * num], tensor[..., 2 * num :]
    if interleaved:
        first, second = head[..., 0::2], head[..., 1::2]
    else:
        first, second = head[..., :num], head[..., num:]
    turned = (first * cos + -second * sin, second * cos + first * sin)
    head = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat([head, rest], dim=-1) if rest.shape[-1] else head
