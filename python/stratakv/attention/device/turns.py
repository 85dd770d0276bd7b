"""Turning queries to where blocks are read as if they stood.

Keys are stored turned by their offset in their page, and a page is read as if it began some whole
blocks before the end of the whole pages: the query, placed relative to that end, is turned on by so
many blocks. With compact positions the blocks that are read follow each other without gaps; with true
ones they keep their distance. No angle grows with the context, and no key is turned.

Letters: B rows, H KV heads, G query heads of a group, D elements of a key, M distances in blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.cache.rotary import Rotary
from stratakv.cache.selection import BLOCK_TOKENS


class Turns:
    """Cosines and signed sines of whole blocks, kept on a device and grown when needed.

    Angles are computed in float64. A turn by entry (c, s) of a query is `query * c + partner(query) * s`,
    whichever elements the rotary pairs; elements that are not turned have c = 1, s = 0.
    """

    def __init__(self, rotary: Rotary, key_dim: int, device: torch.device) -> None:
        self.rotary = rotary
        self.key_dim = key_dim
        self.device = device
        self._partners = torch.tensor(_partners(rotary, key_dim), device=device)
        self.entries = torch.empty(0, 2, key_dim, device=device)

    def grow(self, count: int) -> None:
        """Makes `entries` (M, 2, D) float32 with M >= count: entry i turns by i blocks."""
        if len(self.entries) < count:
            steps = torch.arange(-(-count // 64) * 64)
            self.entries = self._of_positions(steps * BLOCK_TOKENS).to(self.device)

    def partner(self, query: Tensor) -> Tensor:
        """(..., D): the other element of each element's pair."""
        partner: Tensor = query[..., self._partners]
        return partner

    def place(self, query: Tensor, positions: Tensor) -> Tensor:
        """Turns (..., T, D) float32 queries to T positions, or all to one; they may be negative."""
        cos_TD, sin_TD = self._of_positions(positions).to(query.device).unbind(1)
        placed: Tensor = query * cos_TD + self.partner(query) * sin_TD
        return placed

    def by_blocks(self, query: Tensor, blocks: Tensor) -> Tensor:
        """Turns (..., D) float32 queries on by numbers of blocks, below M, that broadcast to (...)."""
        entries = self.entries[blocks.long()]
        turned: Tensor = query * entries[..., 0, :] + self.partner(query) * entries[..., 1, :]
        return turned

    def back_by_blocks(self, keys: Tensor, blocks: Tensor) -> Tensor:
        """Turns (..., D) float32 keys back: products with queries are those of queries that are turned on."""
        entries = self.entries[blocks.long()]
        turned: Tensor = keys * entries[..., 0, :] - self.partner(keys) * entries[..., 1, :]
        return turned

    def _of_positions(self, positions: Tensor) -> Tensor:
        """(M, 2, D) of M positions, on the CPU."""
        angles_MN = positions.double()[:, None] * torch.tensor(self.rotary.inv_freq, dtype=torch.float64)
        entries = torch.zeros(len(positions), 2, self.key_dim)
        entries[:, 0] = 1.0
        first, second = _pairs(self.rotary)
        for elements, sign in ((first, -1.0), (second, 1.0)):
            entries[:, 0, elements] = angles_MN.cos().float()
            entries[:, 1, elements] = sign * angles_MN.sin().float()
        return entries


def _pairs(rotary: Rotary) -> tuple[list[int], list[int]]:
    """First and second element of each pair."""
    num = len(rotary.inv_freq)
    if rotary.interleaved:
        return list(range(0, 2 * num, 2)), list(range(1, 2 * num, 2))
    return list(range(num)), list(range(num, 2 * num))


def _partners(rotary: Rotary, key_dim: int) -> list[int]:
    partners = list(range(key_dim))
    for first, second in zip(*_pairs(rotary), strict=True):
        partners[first], partners[second] = second, first
    return partners
