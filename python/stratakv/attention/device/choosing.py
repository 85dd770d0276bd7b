"""Which blocks a step reads: the engine's rule in PyTorch, for any device and without waiting for it.

Letters: B rows, H KV heads, N blocks of whole pages, K blocks that may be read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """What one step reads of the whole pages, in blocks (docs/selection.md).

    Attributes:
        blocks: blocks that are read, sinks and window among them.
        sinks: the first blocks, always read.
        window: the last blocks, always read.
        critical: share of what is read that is read in 16 bits.
        unread: share of the mass above which more is read.
        growth: how many budgets may be read then.
    """

    blocks: int
    sinks: int
    window: int
    critical: float
    unread: float = 1.0
    growth: float = 1.0

    @property
    def most_blocks(self) -> int:
        """Blocks that are read at most."""
        return max(int(self.blocks * self.growth), self.blocks, self.sinks + self.window)


@dataclass(frozen=True)
class Choice:
    """The blocks of every (row, KV head).

    Attributes:
        blocks: (B, H, K) int64, ascending; past its count an entry is N.
        counts: (B, H) int64, at most K.
        critical: (B, H, K) bool, what is read in 16 bits.
        unread: (B, H) float32, the estimated share of the mass that is not read.
    """

    blocks: Tensor
    counts: Tensor
    critical: Tensor
    unread: Tensor


def shares_of(masses_BHGN: Tensor) -> Tensor:
    """(B, H, N) shares of the mass, the mean over a group's queries, from logarithms of estimated masses.

    A mass that is no number stays none; the others are compared without it.
    """
    is_number = ~masses_BHGN.isnan()
    shares = masses_BHGN.masked_fill(~is_number, -torch.inf).softmax(-1).nan_to_num(0.0)
    return shares.masked_fill(~is_number, torch.nan).mean(2)


def choose(shares_BHN: Tensor, budget: Budget) -> Choice:
    """Chooses sinks, window, and the blocks of the largest shares.

    Args:
        shares_BHN: not negative; one that is no number counts as the largest.
        budget: how many. More are read, best first, while more than `unread` of the mass is left.
    """
    num_blocks = shares_BHN.shape[-1]
    ends_F = _ends(budget, num_blocks, shares_BHN.device)
    room = num_blocks - len(ends_F)
    wanted = min(max(budget.blocks - len(ends_F), 0), room)
    most = min(max(int(budget.blocks * budget.growth) - len(ends_F), wanted), room)
    rank_BHN = torch.where(shares_BHN.isnan(), torch.inf, shares_BHN)
    best_BHK, best_index_BHK = rank_BHN.index_fill(-1, ends_F, -1.0).topk(most)

    ends_BH = rank_BHN[..., ends_F].sum(-1)
    total_BH = rank_BHN.sum(-1)
    before_BHK = ends_BH[..., None] + best_BHK.cumsum(-1) - best_BHK
    # Shares fall: those that are wanted for what would be left unread are the best ones too.
    is_taken = total_BH[..., None] - before_BHK > budget.unread * total_BH[..., None]
    is_taken |= torch.arange(most, device=shares_BHN.device) < wanted
    read_BH = ends_BH + best_BHK.masked_fill(~is_taken, 0.0).sum(-1)
    unread_BH = ((total_BH - read_BH) / total_BH).clamp(min=0.0).nan_to_num(0.0)

    taken_BHK = best_index_BHK.masked_fill(~is_taken, num_blocks)
    blocks_BHK = torch.cat([ends_F.expand(*taken_BHK.shape[:2], -1), taken_BHK], dim=-1).sort(-1).values
    counts_BH = len(ends_F) + is_taken.sum(-1)
    critical_BHK = _critical(rank_BHN, blocks_BHK, counts_BH, budget.critical)
    return Choice(blocks_BHK, counts_BH, critical_BHK, unread_BH)


def _ends(budget: Budget, num_blocks: int, device: torch.device) -> Tensor:
    """Sinks and window, ascending."""
    sinks = min(budget.sinks, num_blocks)
    window = min(budget.window, num_blocks - sinks)
    block_N = torch.arange(num_blocks, device=device)
    return torch.cat([block_N[:sinks], block_N[num_blocks - window :]])


def _critical(rank_BHN: Tensor, blocks_BHK: Tensor, counts_BH: Tensor, fraction: float) -> Tensor:
    """(B, H, K): the given share of what is read, rounded up, by the largest shares."""
    padded = torch.nn.functional.pad(rank_BHN, (0, 1), value=-1.0)
    order_BHK = padded.gather(-1, blocks_BHK).sort(dim=-1, descending=True, stable=True).indices
    num_critical_BH = (counts_BH.float() * fraction).ceil().minimum(counts_BH)
    is_first_BHK = torch.arange(order_BHK.shape[-1], device=rank_BHN.device) < num_critical_BH[..., None]
    return torch.zeros_like(is_first_BHK).scatter_(-1, order_BHK, is_first_BHK)
