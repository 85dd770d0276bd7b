"""What a deep stack of hyper-connections does to a signal: gains by depth, and sums of rows and columns.

    with stratakv.nn.watch(model) as seen:
        model(input_ids)
    print(seen.report())

S streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stratakv.nn.hyper_connections import HyperConnections
from stratakv.nn.mappings import Mappings


@dataclass(frozen=True)
class Gains:
    """How much the composed residual mappings amplify; 1 is an ordinary residual network.

    forward[d], backward[d]: after d + 1 connections the greatest absolute row sum of the product of
    H_res (a signal's gain) and its greatest absolute column sum (a gradient's), over all tokens.

    Source: mHC (arXiv 2512.24880), section 3.1, "Amax gain magnitude".
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The greatest of all."""
        return max((*self.forward, *self.backward))


def composite_gains(combs: Sequence[Tensor]) -> Gains:
    """Gains by depth of consecutive mixing matrices.

    Args:
        combs: (..., S, S) of each connection, from the first on; `Mappings.comb`.

    Raises:
        ValueError: no matrices.
    """
    if not combs:
        raise ValueError("composite gains need at least one mixing matrix")
    product = torch.eye(combs[0].shape[-1], dtype=torch.float64, device=combs[0].device)
    forward, backward = [], []
    for comb in combs:
        product = product @ comb.detach().double()
        # comb is H_res transposed, so is the product: its columns are the rows of H_res.
        forward.append(float(product.abs().sum(-2).max()))
        backward.append(float(product.abs().sum(-1).max()))
    return Gains(tuple(forward), tuple(backward))


def sum_errors(comb_SS: Tensor) -> tuple[float, float]:
    """How far the sums of rows and of columns of H_res are from 1 at most, over all tokens."""
    comb_SS = comb_SS.detach().double()
    return float((comb_SS.sum(-2) - 1).abs().max()), float((comb_SS.sum(-1) - 1).abs().max())


@dataclass
class Watched:
    """The mappings of one forward pass, connection by connection in the order of their calls."""

    names: list[str] = field(default_factory=list)
    mappings: list[Mappings] = field(default_factory=list)

    def gains(self) -> Gains:
        """Composite gains of the pass.

        Raises:
            ValueError: no connection with several streams was passed.
        """
        return composite_gains([one.comb for one in self.mappings])

    def as_dict(self) -> dict[str, list[float] | float]:
        """Numbers for a log, of JSON's types."""
        gains = self.gains()
        errors = [sum_errors(one.comb) for one in self.mappings]
        return {
            "gain_forward": list(gains.forward),
            "gain_backward": list(gains.backward),
            "gain_largest": gains.largest,
            "row_sum_error": max(row for row, _ in errors),
            "column_sum_error": max(column for _, column in errors),
        }

    def report(self) -> str:
        """A table for people."""
        gains = self.gains()
        lines = ["connection | row sums off | column sums off | gain forward | gain backward"]
        for name, one, forward, backward in zip(
            self.names, self.mappings, gains.forward, gains.backward, strict=True
        ):
            row, column = sum_errors(one.comb)
            lines.append(f"{name} | {row:.1e} | {column:.1e} | {forward:.4f} | {backward:.4f}")
        return "\n".join(lines)


@contextlib.contextmanager
def watch(model: nn.Module) -> Iterator[Watched]:
    """Records what the model's hyper-connections do until the end of the block.

    Each call of a connection adds an entry, so that one block should hold one forward pass. Connections
    with one stream mix nothing and are left out.

    Raises:
        ValueError: the model has none with several streams.
    """
    seen = Watched()
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, HyperConnections) and module.form is not None
    }
    if not names:
        raise ValueError("the model has no hyper-connections with several streams")

    def note(connection: HyperConnections, mappings: Mappings) -> None:
        seen.names.append(names[connection])
        seen.mappings.append(Mappings(*(part.detach() for part in mappings)))

    try:
        for module in names:
            module.observer = note
        yield seen
    finally:
        for module in names:
            module.observer = None
