"""How a run trains, beside its model and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

OptimizerName = Literal["adamw", "muon"]
Precision = Literal["full", "bf16", "fp8"]
# `fp8.Scales` and `nn.Recompute`, which are not imported: the command line reads these before torch is there.
Fp8Scales = Literal["rows", "tiles"]
Recompute = Literal["nothing", "streams", "blocks"]
# Fields with few values, each a string.
CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(OptimizerName),
    "precision": get_args(Precision),
    "fp8_scales": get_args(Fp8Scales),
    "recompute": get_args(Recompute),
}


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        steps: updates.
        batch: rows of one update.
        length: tokens that a row predicts.
        lr: greatest learning rate.
        warmup: steps in which it rises from 0.
        final_share: of the learning rate, at the end of its cosine.
        weight_decay: of matrices; norms, embeddings and connections have none.
        clip: greatest norm of the gradient; 0 never clips.
        optimizer: "adamw" for all, or "muon" for the blocks' matrices and AdamW for the rest.
        precision: "full", or "bf16" for autocast: matrix products in bfloat16, parameters, optimizers and
            what hyper-connections compute in float32. "fp8": besides, the linear layers' products in FP8,
            where the hardware has it; elsewhere it is "bf16", and a warning says so.
        fp8_scales: of precision "fp8": "rows", or "tiles" of 128 features where the hardware has these
            (`fp8.convert_for_training`); elsewhere rows, and a warning says so.
        recompute: what the backward pass computes again instead of keeping it, which changes no value:
            "nothing", most "streams", or whole "blocks" (`StrataLM.loss`).
        sparse_tables: of a conditional memory's tables only the rows that a batch looked up are updated
            (RowAdam); otherwise all are, each time. Tables in files need it.
        seed: of the initial values and of the batches.
        eval_every: steps between losses on held-out text; 0 for none but the last.
        eval_batches: batches of such a loss.
        save_every: steps between checkpoints; 0 for the last only.

    Raises:
        ValueError: a number out of range, another name, or `fp8_scales` of a run without FP8.
    """

    steps: int = 1000
    batch: int = 8
    length: int = 256
    lr: float = 1e-3
    warmup: int = 50
    final_share: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    optimizer: OptimizerName = "adamw"
    precision: Precision = "full"
    fp8_scales: Fp8Scales = "rows"
    recompute: Recompute = "nothing"
    sparse_tables: bool = False
    seed: int = 0
    eval_every: int = 100
    eval_batches: int = 8
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "eval_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup", "final_share", "weight_decay", "clip", "seed", "eval_every", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: accepted are {', '.join(map(repr, accepted))}"
                )
        if self.fp8_scales != "rows" and self.precision != "fp8":
            raise ValueError(
                f"fp8_scales={self.fp8_scales!r} is of precision='fp8', and precision is {self.precision!r}"
            )

    def lr_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0: a rise, then half a cosine."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return self.lr * (self.final_share + (1 - self.final_share) * cosine)
