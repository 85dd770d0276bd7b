"""Attention to the tokens that no slot has: the tail after the last whole page, and a prefill's own.

They come from the engine in the model's dtype, a few at a time.

Letters: B rows, H KV heads, G query heads of a group, T query tokens, R = G * T, L tokens that are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.attention.device.reads import Partial
from stratakv.attention.device.reference import weigh
from stratakv.attention.device.turns import Turns
from stratakv.cache.page_table import Snapshot


def attend_own(query_BHGTD: Tensor, snapshot: Snapshot, first: int, end: int, turns: Turns) -> Partial:
    """Attention of the last T of `end` tokens to tokens [first, end), none to what comes after it.

    Args:
        query_BHGTD: float32, scaled, without positions.
        snapshot: of the layer, on the queries' device.
        first: first token that is read.
        end: one past the last.
        turns: of the layer's rotary.

    Returns:
        (B, H, R, Dv) and (B, H, R).
    """
    num_new, page_tokens = query_BHGTD.shape[3], snapshot.table.page_tokens
    keys_BHLD, values_BHLD = snapshot.gather(first, end, turn="stored")
    keys_BHLD, tokens_T = keys_BHLD.float(), torch.arange(end - num_new, end)
    scores = []
    # Keys are turned by their offset in their page, so each page is faced from where it begins.
    for page in range(first // page_tokens, -(-end // page_tokens)):
        start, stop = max(page * page_tokens, first), min((page + 1) * page_tokens, end)
        facing_BHGTD = turns.place(query_BHGTD, tokens_T - page * page_tokens)
        scores.append(facing_BHGTD @ keys_BHLD[:, :, None, start - first : stop - first].mT)
    scores_BHGTL = torch.cat(scores, dim=-1)
    if num_new > 1:
        is_later_TL = torch.arange(first, end) > tokens_T[:, None]
        scores_BHGTL = scores_BHGTL.masked_fill(is_later_TL.to(scores_BHGTL.device), -torch.inf)
    return weigh(scores_BHGTL.flatten(2, 3), values_BHLD.float())
