"""The processes of a run: one, or as many as `torchrun` started, with the model's parameters shared out.

FSDP2: each process keeps a part of every parameter and of its optimizer's state, and computes its rows of
each batch. What a checkpoint holds is whole, so that a run goes on with another number of processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from stratakv.nn.transformer import Block

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Group:
    """Which of how many processes this is.

    Attributes:
        rank: of this process, from 0.
        size: processes in all.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Group:
        """What `torchrun` says; joins the other processes, where there are any.

        Raises:
            RuntimeError: they cannot be reached.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and says what happens."""
        return self.rank == 0

    def leave(self) -> None:
        """Ends the tie to the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def share_out(self, model: nn.Module) -> None:
        """Splits the model's parameters, block by block; with one process nothing happens."""
        if self.size == 1:
            return
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  slow to import, and seldom needed

        for part in model.modules():
            if isinstance(part, Block):
                fully_shard(part)
        fully_shard(model)

    def rows(self, batch_BT: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return batch_BT[self.rank :: self.size]

    def mean(self, value: Tensor) -> float:
        """The mean over all processes."""
        value = value.detach().float().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return float(value) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process must call this."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another one is split; every process must call this with the same values."""
    if not isinstance(like, DTensor):
        return tensor
    made: Any = distribute_tensor(tensor, like.device_mesh, like.placements)
    split: Tensor = made
    return split
