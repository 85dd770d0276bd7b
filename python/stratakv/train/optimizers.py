"""AdamW, Muon and Adam for rows, and which parameters each of them has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from stratakv.nn.conditional_memory import ConditionalMemory
from stratakv.nn.mapped_table import MappedTable
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
# What a connection's projections give is multiplied by alpha, which begins at 0.01: an update of theirs is
# felt a hundredth. docs/mhc.md has what it brings.
PROJECTION_LR_SCALE = 30.0
# As torch's own clipping has it.
CLIP_EPS = 1e-6


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


class EachAlone(torch.optim.Optimizer, ABC):
    """An optimizer that updates each parameter by itself, given its gradient and its group's options."""

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
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)
        return None

    @abstractmethod
    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Of one parameter."""


class Muon(EachAlone):
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

    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Of one matrix."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(grad, 1 - MOMENTUM)
        mixed = grad.lerp(momentum, MOMENTUM)
        # A part of a matrix has other singular values than the whole.
        update = split_like(orthogonalize(whole(mixed)), parameter)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * UPDATE_RMS * max(parameter.shape) ** 0.5)


class RowAdam(EachAlone):
    """Adam for tables with sparse gradients: only rows that have one are read and written, moments too.

    What `torch.optim.SparseAdam` computes; that one does not take tables whose rows lie apart.

    Args:
        params: (N, D) tables.
        lr: learning rate.
        betas: of the moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Of one table."""
        table, state = parameter, self.state[parameter]
        if not state:
            self.start(table, torch.zeros_like(table), torch.zeros_like(table))
        grad, (first, second) = grad.coalesce(), group["betas"]
        rows_R, grad_RD = grad.indices()[0], grad.values()
        state["step"] += 1
        mean_RD = state["exp_avg"].index_select(0, rows_R).lerp_(grad_RD, 1 - first)
        square_RD = state["exp_avg_sq"].index_select(0, rows_R).mul_(second)
        square_RD.addcmul_(grad_RD, grad_RD, value=1 - second)
        state["exp_avg"].index_copy_(0, rows_R, mean_RD)
        state["exp_avg_sq"].index_copy_(0, rows_R, square_RD)
        step = float(state["step"])
        size = group["lr"] * (1 - second**step) ** 0.5 / (1 - first**step)
        update_RD = mean_RD.div_(square_RD.sqrt_().add_(group["eps"]))
        table.data.index_add_(0, rows_R, update_RD, alpha=-size)

    def start(self, table: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Gives a table its moments, (N, D) zeros each."""
        # A count that is a tensor, as everything that a checkpoint holds.
        step = torch.tensor(0.0)
        self.state[table].update(step=step, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """What updates each of the model's parameters, every one exactly once.

    Matrices of the blocks decay, and are Muon's where that was chosen. Embeddings, norms and
    connections do not decay: a connection's values have their meaning at zero. Its projections learn
    faster. Tables of memories do not decay either, and learn faster, since a row is seldom looked up (Engram,
    arXiv 2601.07372, appendix A).
    Where `config.sparse_tables` they are RowAdam's, and what it keeps lies where the table lies.
    A group's `lr_scale` is a factor of the run's learning rate.

    Raises:
        ValueError: tables in files, whose gradients are sparse, without `config.sparse_tables`.
    """
    if not config.sparse_tables and any(isinstance(module, MappedTable) for module in model.modules()):
        raise ValueError("tables in files are updated by rows: give sparse_tables=True")
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    projections: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and ".layers." in name and "connection" not in name
        if name.endswith(".memory.table.weight"):
            tables.append(parameter)
        elif is_matrix and not name.endswith("_norm"):
            matrices.append(parameter)
        elif name.endswith(("_connection.weight", "stream_head.weight")):
            projections.append(parameter)
        else:
            rest.append(parameter)
    adam: dict[str, Any] = {"lr": config.lr, "betas": ADAM_BETAS, "fused": True}
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0}]
    if projections:
        groups.append({"params": projections, "weight_decay": 0.0, "lr_scale": PROJECTION_LR_SCALE})
    optimizers: list[torch.optim.Optimizer] = []
    if tables and config.sparse_tables:
        optimizers.append(_row_adam(model, config))
    elif tables:
        groups.append({"params": tables, "weight_decay": 0.0, "lr_scale": TABLE_LR_SCALE})
    if config.optimizer == "muon":
        optimizers.append(Muon(matrices, lr=config.lr, weight_decay=config.weight_decay))
    else:
        groups.insert(0, {"params": matrices, "weight_decay": config.weight_decay})
    return [*optimizers, torch.optim.AdamW(groups, **adam)]


def _row_adam(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    tables = [module.table for module in model.modules() if isinstance(module, ConditionalMemory)]
    for table in tables:
        table.sparse = True
    group = {"params": [table.weight for table in tables], "lr_scale": TABLE_LR_SCALE}
    adam = RowAdam([group], lr=config.lr, betas=ADAM_BETAS)
    for table in tables:
        if isinstance(table, MappedTable):
            adam.start(table.weight, *table.add_planes(2))
    return adam


@torch.no_grad()
def clip_gradients(model: nn.Module, norm_max: float) -> Tensor:
    """`clip_grad_norm_`, for sparse gradients too: scales them where their norm is greater, and gives it."""
    owners = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if not any(owner.grad.is_sparse for owner in owners if owner.grad is not None):
        return torch.nn.utils.clip_grad_norm_(owners, norm_max)
    values: list[Tensor] = []
    for owner in owners:
        assert owner.grad is not None
        if owner.grad.is_sparse:
            owner.grad = owner.grad.coalesce()
        values.append(owner.grad.values() if owner.grad.is_sparse else owner.grad)
    norm = torch.nn.utils.get_total_norm(values)
    scale = (norm_max / (norm + CLIP_EPS)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)
    return norm
