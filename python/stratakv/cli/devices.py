"""Where a command's model runs: a GPU if there is one, and what is kept in its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stratakv.cli.errors import UsageError

if TYPE_CHECKING:
    import argparse

    import torch

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """What `--device` and `--hot` mean on this machine.

    Attributes:
        device: where the model runs.
        hot: bytes of the device's memory for pages; None keeps none there.
    """

    device: torch.device
    hot: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Placement:
        """The placement that a command's arguments ask for.

        Raises:
            UsageError: a device that is not here, or `--hot` without a GPU or without a budget.
        """
        device = _device(args.device)
        if args.hot is not None:
            _check_hot(device, args.budget)
        return cls(device, args.hot)

    def described(self, cache: Any) -> dict[str, Any]:
        """What a report says of it: the device, and what a hot tier counted, where there is one."""
        hot = cache.stats().get("hot")
        return {"device": str(self.device)} | ({} if hot is None else {"hot": hot})


def _device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, number = name.partition(":")
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in counts or (number and not number.isdigit()):
        raise UsageError(f"--device {name}: accepted are auto, cpu, cuda, cuda:N and mps")
    index = int(number or 0)
    if index >= counts[kind]:
        here = [f"{other}:{place}" for other in ("cuda", "mps") for place in range(counts[other])]
        raise UsageError(
            f"--device {name}: PyTorch finds no such device here",
            f"there is {', '.join([*here, 'cpu'])}; --device auto takes a GPU where there is one",
        )
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, index)


def _check_hot(device: torch.device, budget: int | None) -> None:
    from stratakv.hf.arguments import is_gpu

    if not is_gpu(device):
        raise UsageError(
            f"--hot keeps pages in a GPU's memory, and the model runs on {device}",
            "leave --hot out: without a GPU the pages in RAM (--ram) are attended to where they are",
        )
    if budget is None:
        raise UsageError(
            "--hot keeps the pages that steps select, and --budget all selects none",
            "give --budget TOKENS, or leave --hot out",
        )
