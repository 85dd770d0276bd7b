"""Attention masks: from what models pass to what the kernels take.

Letters: B rows, Q query heads, T query tokens, S stored tokens.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor


def as_4d(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor | None:
    """A view of the mask with four dimensions that broadcasts to (B, Q, T, S) and spans S.

    Returns:
        The view, or None for a mask of another kind, which is left to PyTorch.
    """
    if mask.dim() > 4 or not (mask.dtype == torch.bool or mask.dtype.is_floating_point):
        return None
    view = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    fits = all(have in (1, want) for have, want in zip(view.shape[:3], shape[:3], strict=True))
    return view if fits and view.shape[3] == shape[3] else None


def causal_mask(num_new: int, length: int, device: torch.device) -> Tensor:
    """(T, S): True where query t of the last T tokens sees token s."""
    seen = torch.ones(num_new, length, dtype=torch.bool, device=device)
    return seen.tril(length - num_new)


def to_bias(mask: Tensor) -> Tensor:
    """The float32 term that a mask adds to the scores: -inf where a bool mask excludes."""
    if mask.dtype == torch.bool:
        bias = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        return bias.masked_fill_(mask.logical_not(), -torch.inf)
    return mask.float()


class BiasCache(threading.local):
    """The bias of the last mask: all layers of a step share one mask, so it is converted once."""

    def __init__(self) -> None:
        self._mask: weakref.ref[Tensor] | None = None
        self._version = -1
        self._bias: Tensor | None = None

    def bias(self, mask_B1TS: Tensor, original: Tensor) -> Tensor | None:
        """(B or 1, T or 1, S) float32, or None where the mask excludes nothing.

        Args:
            mask_B1TS: the mask as four dimensions, one head.
            original: the tensor object that the model passed, by which repeats are recognised.
        """
        # Tensors made in inference mode count no versions: a change in place would go unseen.
        if original.is_inference():
            return _contiguous_bias(mask_B1TS[:, 0])
        known = self._mask is not None and self._mask() is original and self._version == original._version
        if not known:
            self._bias = _contiguous_bias(mask_B1TS[:, 0])
            self._mask, self._version = weakref.ref(original), original._version
        return self._bias


def bias_or_none(mask: Tensor) -> Tensor | None:
    """`to_bias`, or None where the mask excludes nothing, as of most tiles of a causal mask."""
    excludes = not bool(mask.all()) if mask.dtype == torch.bool else bool(mask.any())
    return to_bias(mask) if excludes else None


def _contiguous_bias(mask_BTS: Tensor) -> Tensor | None:
    bias = bias_or_none(mask_BTS)
    return None if bias is None else bias.contiguous()
