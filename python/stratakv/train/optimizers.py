"""AdamW and Muon, and which parameters each of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from stratakv.train.config import TrainConfig
from stratakv.train.group import split_like, whole

ADAM_BETAS = (0.9, 0.95)
MOMENTUM = 0.95
# Of the quintic iteration towards the nearest orthogonal matrix (Jordan et al., 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
# Makes an update's root mean square that of AdamW, so that both share a learning rate (arXiv 2502.16982).
UPDATE_RMS = 0.2
TABLE_LR_SCALE = 5.0


def orthogonalize(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix with orthonormal rows or columns; singular values come out in 0.7 to 1.2.

    Args:
        matrix: (R, C), computed in float32.

    Source: Muon (Keller Jordan et al., 2024).
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if is_tall else matrix.float()
    x = x / (x.norm() + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    near: Tensor = (x.T if is_tall else x).to(matrix.dtype)
    return near


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised; for matrices only.

    Args:
        params: matrices.
        lr: learning rate, of AdamW's size.
        weight_decay: decoupled.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        params = list(params)
        if any(parameter.dim() != 2 for parameter in params):
            raise ValueError("Muon updates matrices only: give the rest to AdamW")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; a closure is not called."""
        assert closure is None, "no closures"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                mixed = parameter.grad.lerp(momentum, MOMENTUM)
                # A part of a matrix has other singular values than the whole.
                update = split_like(orthogonalize(whole(mixed)), parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * UPDATE_RMS * max(parameter.shape) ** 0.5)
        return None


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """What updates each of the model's parameters, every one exactly once.

    Matrices of the blocks decay, and are Muon's where that was chosen. Embeddings, norms and
    connections do not decay: a connection's values have their meaning at zero. Tables of memories do
    not either, and learn faster, since a row is seldom looked up (Engram, arXiv 2601.07372, appendix A).
    A group's `lr_scale` is a factor of the run's learning rate.
    """
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and ".layers." in name and "connection" not in name
        if name.endswith(".memory.table.weight"):
            tables.append(parameter)
        elif is_matrix and not name.endswith("_norm"):
            matrices.append(parameter)
        else:
            rest.append(parameter)
    adam: dict[str, Any] = {"lr": config.lr, "betas": ADAM_BETAS, "fused": True}
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0}]
    if tables:
        groups.append({"params": tables, "weight_decay": 0.0, "lr_scale": TABLE_LR_SCALE})
    if config.optimizer == "muon":
        muon = Muon(matrices, lr=config.lr, weight_decay=config.weight_decay)
        return [muon, torch.optim.AdamW(groups, **adam)]
    groups.insert(0, {"params": matrices, "weight_decay": config.weight_decay})
    return [torch.optim.AdamW(groups, **adam)]
