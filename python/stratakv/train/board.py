"""A run's numbers for TensorBoard; needs the extra `stratakv[tensorboard]`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stratakv.errors import NotInstalledError
from stratakv.train.loop import Step


def open_board(directory: Path, history: Iterable[Step]) -> Any:
    """A writer of event files, with what the run has done already.

    Args:
        directory: where the event files go; those of an earlier part of the run are replaced.
        history: the updates so far.

    Raises:
        NotInstalledError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an extra
    except ImportError as error:
        raise NotInstalledError(
            "event files need tensorboard", "pip install 'stratakv[tensorboard]'"
        ) from error
    for old in directory.glob("events.out.tfevents.*"):
        old.unlink()
    writer: Any = SummaryWriter(str(directory))
    for step in history:
        write_step(writer, step)
    return writer


def write_step(writer: Any, step: Step) -> None:
    """One update's numbers."""
    writer.add_scalar("loss/batch", step.loss, step.step)
    writer.add_scalar("lr", step.lr, step.step)
    writer.add_scalar("grad_norm", step.grad_norm, step.step)
    writer.add_scalar("seconds", step.seconds, step.step)
    if step.held_out is not None:
        writer.add_scalar("loss/held_out", step.held_out, step.step)
