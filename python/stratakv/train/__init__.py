"""Training a `stratakv.nn.StrataLM` on token ids: batches, optimizers, schedule, checkpoints.

Torch only; `stratakv train` brings files, a tokenizer and a progress bar. The invariant: a run that
was stopped and goes on from its checkpoint computes what it would have computed, to the bit on the
same machine with the same number of threads and processes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratakv.train.config import TrainConfig as TrainConfig
    from stratakv.train.group import Group as Group
    from stratakv.train.loop import Step as Step
    from stratakv.train.loop import Trainer as Trainer
    from stratakv.train.loop import draw_batch as draw_batch
    from stratakv.train.optimizers import Muon as Muon
    from stratakv.train.optimizers import make_optimizers as make_optimizers

# The command line reads the config's defaults before torch is imported.
_HOMES = {
    "Group": "group",
    "Muon": "optimizers",
    "Step": "loop",
    "TrainConfig": "config",
    "Trainer": "loop",
    "draw_batch": "loop",
    "make_optimizers": "optimizers",
}

__all__ = ["Group", "Muon", "Step", "TrainConfig", "Trainer", "draw_batch", "make_optimizers"]


def __getattr__(name: str) -> Any:
    """Imports a public name's module on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'stratakv.train' has no attribute {name!r}")
    return getattr(import_module(f"stratakv.train.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
