"""Which rows (tokens) of a matrix product are critical, and so are multiplied in 16 bits.

One `TokenRouting` belongs to one converted model; all its layers ask it. It serves one forward pass
at a time. Letters: B batch, T tokens, M = B * T rows.

The rule, in the order of precedence:

1. `critical_fraction` 0: none; 1: all.
2. A call of at least `mixed_rows_min` rows: the `round(critical_fraction * M)` most important ones.
   Importance is what was given for as many rows (`importance`), otherwise each row's own norm
   (`relative_norm`), which needs no attention scores. How many is known without looking at the
   values, so a GPU is not waited for.
3. A smaller call, such as decoding, is bound by reading the weights, and a mixture would read both
   copies: it goes one way as a whole. It is critical iff its importance was given and exceeds the
   running (1 - critical_fraction) quantile: the largest of its rows' importances is compared with
   those of the last `history` small steps for which it was given, and no step is critical before
   `MIN_HISTORY` of them. Where none was given it is not critical: a row alone has no others to be
   measured against, and looking at it would stall a GPU in every layer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Below 16 values, a quantile near 1 is the largest of too few to mean anything.
MIN_HISTORY = 16


def relative_norm(rows_MK: Tensor) -> Tensor:
    """(M,) float32: each row's Euclidean norm over the mean of all rows' norms.

    1 is an ordinary row; rows with massive activations, as of attention sinks, are far above. Chosen
    by measurement over the largest magnitude: `docs/fp8.md` has both. NaN ranks highest.
    """
    norms_M: Tensor = torch.linalg.vector_norm(rows_MK, dim=1, dtype=torch.float32)
    mean_1: Tensor = norms_M.mean()
    return norms_M / mean_1.clamp_min(torch.finfo(torch.float32).tiny)


class TokenRouting:
    """The critical rows of a model's matrix products. The module's docstring has the rule.

    Args:
        critical_fraction: share of rows in 16 bits, 0 to 1.
        mixed_rows_min: the smallest call that is split between both precisions, >= 1 rows.
        history: small steps whose importances the running quantile is over, >= `MIN_HISTORY`.

    Raises:
        ValueError: one of them out of range.
    """

    def __init__(self, critical_fraction: float, *, mixed_rows_min: int = 64, history: int = 256) -> None:
        if not 0 <= critical_fraction <= 1:
            raise ValueError(f"critical_fraction must be from 0 to 1, not {critical_fraction}")
        if mixed_rows_min < 1:
            raise ValueError(f"mixed_rows_min must be at least 1, not {mixed_rows_min}")
        if history < MIN_HISTORY:
            raise ValueError(f"history must be at least {MIN_HISTORY}, not {history}")
        self.critical_fraction = float(critical_fraction)
        self.mixed_rows_min = mixed_rows_min
        self._history: deque[float] = deque(maxlen=history)
        self._given_M: Tensor | None = None
        self._small_is_critical = False

    def __repr__(self) -> str:
        return f"TokenRouting(critical_fraction={self.critical_fraction:g})"

    def set_importance(self, importance_BT: Tensor) -> None:
        """Sets how much each token of the next calls matters, until it is set again or cleared.

        Typically the attention that each token received in the previous layer, or in the previous
        step; any scale will do. Calls with another number of rows than B * T (the next step's, a
        vision tower's, an expert's share of the tokens) do not see it.

        Args:
            importance_BT: (B, T) floating, finite; on the model's device if T is large, on the CPU if
                the step is small, since a small step's largest value is read here, once for all layers.

        Raises:
            ValueError: of another shape, not floating, or empty.
        """
        if importance_BT.dim() != 2 or not importance_BT.is_floating_point() or not importance_BT.numel():
            raise ValueError(
                "importance must be a floating-point tensor of shape (batch, tokens), not "
                f"{importance_BT.dtype} of {tuple(importance_BT.shape)}"
            )
        self._given_M = importance_BT.detach().reshape(-1)
        if self._given_M.numel() < self.mixed_rows_min:
            self._small_is_critical = self._exceeds_history(float(self._given_M.max()))

    def clear_importance(self) -> None:
        """Forgets what `set_importance` was given; the running quantile stays."""
        self._given_M = None

    @contextmanager
    def importance(self, importance_BT: Tensor) -> Iterator[None]:
        """`set_importance` for the calls of a `with` block; what was given before counts again after it."""
        before = self._given_M, self._small_is_critical
        self.set_importance(importance_BT)
        try:
            yield
        finally:
            self._given_M, self._small_is_critical = before

    def num_critical(self, num_rows: int) -> int:
        """How many of a call's rows are critical; needs no look at the device."""
        if self.critical_fraction in (0.0, 1.0):
            return num_rows if self.critical_fraction else 0
        if num_rows >= self.mixed_rows_min:
            return int(self.critical_fraction * num_rows + 0.5)
        given = self._given_M is not None and self._given_M.numel() == num_rows
        return num_rows if given and self._small_is_critical else 0

    def critical_rows(self, rows_MK: Tensor, count: int) -> Tensor:
        """(count,) int64 indices of the most important rows, most important first."""
        given_M = self._given_M
        if given_M is not None and given_M.numel() == rows_MK.shape[0]:
            importance_M = given_M.to(rows_MK.device)
        else:
            importance_M = relative_norm(rows_MK)
        return importance_M.topk(count).indices

    def _exceeds_history(self, value: float) -> bool:
        """Whether a small step is critical; notes its value."""
        known = sorted(self._history)
        self._history.append(value)
        if len(known) < MIN_HISTORY:
            return False
        place = math.ceil((1 - self.critical_fraction) * len(known)) - 1
        return value > known[max(place, 0)]
