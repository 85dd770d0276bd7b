"""Which blocks a step reads: the engine's rule in PyTorch, for any device and without waiting for it.

Letters: B rows, H KV heads, N blocks of whole pages, K blocks that may be read, F blocks of a focus.
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
        shares: (B, H, K) float32, infinite where no number was given; past a count they mean nothing.
        unread: (B, H) float32, the estimated share of the mass that is not read.
    """

    blocks: Tensor
    counts: Tensor
    critical: Tensor
    shares: Tensor
    unread: Tensor


def shares_of(masses_BHGN: Tensor) -> Tensor:
    """(B, H, N) shares of the mass, the mean over a group's queries, from logarithms of estimated masses.

    A mass that is no number stays none; the others are compared without it.
    """
    is_number = ~masses_BHGN.isnan()
    shares = masses_BHGN.masked_fill(~is_number, -torch.inf).softmax(-1).nan_to_num(0.0)
    return shares.masked_fill(~is_number, torch.nan).mean(2)


def choose(shares_BHN: Tensor, budget: Budget, focus_BF: Tensor | None = None) -> Choice:
    """Chooses sinks, window, focus, and the blocks of the largest shares.

    Args:
        shares_BHN: not negative; one that is no number counts as the largest.
        budget: how many. More are read, best first, while more than `unread` of the mass is left.
        focus_BF: int64, blocks that all heads of a row read; N or more for none.
    """
    num_heads, num_blocks = shares_BHN.shape[1:]
    always_BF = _always(shares_BHN, budget, focus_BF)
    is_always_BN = _mask(always_BF, num_blocks)
    always_B = is_always_BN.sum(-1)
    rank_BHN = torch.where(shares_BHN.isnan(), torch.inf, shares_BHN)
    most = max(int(budget.blocks * budget.growth), budget.blocks)
    best_BHK, best_index_BHK = rank_BHN.masked_fill(is_always_BN[:, None], -1.0).topk(min(most, num_blocks))
    best_BHK = best_BHK.clamp(min=0.0)

    always_BH = rank_BHN.masked_fill(~is_always_BN[:, None], 0.0).sum(-1)
    total_BH = rank_BHN.sum(-1)
    before_BHK = always_BH[..., None] + best_BHK.cumsum(-1) - best_BHK
    wants_more = total_BH[..., None] - before_BHK > budget.unread * total_BH[..., None]
    place_K = torch.arange(best_BHK.shape[-1], device=shares_BHN.device)
    wanted_B11, most_B11 = ((limit - always_B)[:, None, None] for limit in (budget.blocks, most))
    # Shares fall: those that are wanted for what would be left unread are the best ones too.
    is_taken = (place_K < wanted_B11) | (wants_more & (place_K < most_B11))
    is_taken &= place_K < (num_blocks - always_B)[:, None, None]
    read_BH = always_BH + best_BHK.masked_fill(~is_taken, 0.0).sum(-1)
    unread_BH = ((total_BH - read_BH) / total_BH).clamp(min=0.0).nan_to_num(0.0)

    always_BHF = always_BF[:, None].expand(-1, num_heads, -1)
    chosen = torch.cat([always_BHF, best_index_BHK.masked_fill(~is_taken, num_blocks)], dim=-1)
    size = min(max(most, always_BF.shape[-1]), num_blocks)
    blocks_BHK = chosen.sort(-1).values[..., :size]
    counts_BH = always_B[:, None] + is_taken.sum(-1)
    ranks_BHK = torch.nn.functional.pad(rank_BHN, (0, 1), value=-1.0).gather(-1, blocks_BHK)
    critical_BHK = _critical(ranks_BHK, counts_BH, budget.critical)
    return Choice(blocks_BHK, counts_BH, critical_BHK, ranks_BHK, unread_BH)


def _always(shares_BHN: Tensor, budget: Budget, focus_BF: Tensor | None) -> Tensor:
    """(B, F): sinks, window and focus, each once; N where there is less."""
    num_rows, _, num_blocks = shares_BHN.shape
    sinks = min(budget.sinks, num_blocks)
    window = min(budget.window, num_blocks - sinks)
    block_N = torch.arange(num_blocks, device=shares_BHN.device)
    ends = torch.cat([block_N[:sinks], block_N[num_blocks - window :]]).expand(num_rows, -1)
    if focus_BF is None:
        return ends
    focus_BF = focus_BF.sort(-1).values
    is_new = torch.nn.functional.pad(focus_BF.diff(dim=-1) != 0, (1, 0), value=True)
    is_new &= (focus_BF >= sinks) & (focus_BF < num_blocks - window)
    return torch.cat([ends, focus_BF.where(is_new, num_blocks)], dim=-1)


def _mask(blocks_BF: Tensor, num_blocks: int) -> Tensor:
    """(B, N): where the blocks are."""
    mask = torch.zeros(len(blocks_BF), num_blocks + 1, dtype=torch.bool, device=blocks_BF.device)
    return mask.scatter_(1, blocks_BF, value=True)[:, :num_blocks]


def _critical(ranks_BHK: Tensor, counts_BH: Tensor, fraction: float) -> Tensor:
    """(B, H, K): the given share of what is read, rounded up, by the largest shares."""
    order_BHK = ranks_BHK.sort(dim=-1, descending=True, stable=True).indices
    num_critical_BH = (counts_BH.float() * fraction).ceil().minimum(counts_BH)
    is_first_BHK = torch.arange(order_BHK.shape[-1], device=ranks_BHK.device) < num_critical_BH[..., None]
    return torch.zeros_like(is_first_BHK).scatter_(-1, order_BHK, is_first_BHK)
