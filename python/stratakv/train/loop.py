"""The loop of training: one batch, one update, a checkpoint now and then.

B rows, T tokens.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratakv.fp8 import convert_for_training
from stratakv.nn.transformer import StrataLM
from stratakv.train import checkpoint
from stratakv.train.config import TrainConfig
from stratakv.train.group import Group, whole
from stratakv.train.optimizers import clip_gradients, make_optimizers

# Kept apart, at the end of the tokens, for losses that no update has seen.
HELD_OUT_SHARE = 0.05
EVAL_SEED = 1 << 20


@dataclass(frozen=True)
class Step:
    """One update, for a log.

    loss: nats per token of the batch before the update. grad_norm: before clipping. seconds: it took.
    held_out: nats per token of held-out text after the update, where it was measured.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    held_out: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a log of JSON lines."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def draw_batch(tokens: Tensor, *, batch: int, length: int, seed: int, step: int) -> Tensor:
    """(B, T + 1) rows at random places of a text; the same for the same seed and step.

    Args:
        tokens: (N,) ids.
        batch: B.
        length: T.
        seed: of the run.
        step: of the run.

    Raises:
        ValueError: a text of no more than T tokens.
    """
    places = len(tokens) - length
    if places < 1:
        raise ValueError(f"a text of {len(tokens)} tokens is too short for rows of {length + 1}")
    starts = np.random.default_rng([seed, step]).integers(0, places, size=batch)
    return torch.stack([tokens[start : start + length + 1] for start in starts.tolist()]).long()


class Trainer:
    """A model, its data and its optimizers, from one update to the next.

    Args:
        model: trained in place.
        tokens: (N,) ids of all text; the last 5 % are held out.
        config: the run.
        path: the checkpoint's file; None keeps nothing.
        group: the run's processes; None is this one. With several the model is split among them.

    Attributes:
        step: updates done.
        history: one `Step` per update, those before a resumption included.

    Raises:
        ValueError: a text too short for one row, a batch that is no multiple of the processes, or sparse
            tables with several processes.
    """

    def __init__(
        self,
        model: StrataLM,
        tokens: Tensor,
        config: TrainConfig,
        path: Path | None = None,
        group: Group | None = None,
    ) -> None:
        self.model, self.config, self.path = model, config, path
        self.group = Group() if group is None else group
        if config.batch % self.group.size:
            raise ValueError(f"batch={config.batch} must be a multiple of the {self.group.size} processes")
        if config.sparse_tables and self.group.size > 1:
            raise ValueError("sparse_tables: such tables cannot be split; train in one process, or without")
        split = len(tokens) - max(int(len(tokens) * HELD_OUT_SHARE), config.length + 1)
        if split <= config.length:
            raise ValueError(
                f"{len(tokens)} tokens are too few for rows of {config.length + 1}: give more text"
            )
        self.tokens, self.held_out = tokens[:split], tokens[split:]
        if config.recompute == "streams" and model.config.num_streams == 1:
            warnings.warn(
                "recompute='streams': one stream is kept as it is; 'blocks' saves memory", stacklevel=2
            )
        if config.precision == "fp8":
            convert_for_training(model, scales=config.fp8_scales)
        self.group.share_out(model)
        self.optimizers = make_optimizers(model, config)
        self.step = 0
        self.history: list[Step] = []

    @property
    def is_done(self) -> bool:
        """Whether all updates are done."""
        return self.step >= self.config.steps

    def advance(self) -> Step:
        """One update."""
        config, start = self.config, time.perf_counter()
        lr = config.lr_at(self.step)
        ids_BT = self._batch(self.step)
        self.model.prefetch(self._batch(self.step + 1))
        self.model.train()
        loss = self._loss(self.group.rows(ids_BT))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(self.model, config.clip or float("inf"))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        self.step += 1
        is_due = self.is_done or (config.eval_every and self.step % config.eval_every == 0)
        held_out = self.evaluate() if is_due else None
        done = Step(self.step, self.group.mean(loss), lr, float(whole(norm)), seconds, held_out)
        self.history.append(done)
        if self.path is not None and (
            self.is_done or (config.save_every and self.step % config.save_every == 0)
        ):
            self.save()
        return done

    def _batch(self, step: int) -> Tensor:
        config = self.config
        return draw_batch(self.tokens, batch=config.batch, length=config.length, seed=config.seed, step=step)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Nats per token of held-out text, of the same rows every time."""
        config = self.config
        self.model.eval()
        losses = [
            self._loss(
                self.group.rows(
                    draw_batch(
                        self.held_out, batch=config.batch, length=config.length, seed=EVAL_SEED, step=number
                    )
                )
            )
            for number in range(config.eval_batches)
        ]
        return self.group.mean(torch.stack(losses).mean())

    def _loss(self, ids_BT: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision != "full"):
            return self.model.loss(ids_BT.to(device), recompute=self.config.recompute)

    def save(self) -> None:
        """Writes the checkpoint; every process must call this, the first one writes.

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        assert self.path is not None
        progress = {
            "step": self.step,
            "train": asdict(self.config),
            "model": asdict(self.model.config),
            "history": [step.as_dict() for step in self.history],
        }
        checkpoint.save(self.path, self.model, self.optimizers, progress, self.group)

    def whole_model(self) -> StrataLM:
        """The model in one piece, a copy where it is split; every process must call this."""
        if self.group.size == 1:
            return self.model
        state = {name: whole(value) for name, value in self.model.state_dict().items()}
        made = StrataLM(self.model.config)
        made.load_state_dict(state)
        return made

    def resume(self) -> bool:
        """Goes on from the checkpoint, if there is one; whether there was.

        Raises:
            ValueError: it is of another model or run: only the number of steps, the intervals and what is
                computed again may differ.
        """
        if self.path is None or not self.path.exists():
            return False
        progress = checkpoint.read_progress(self.path)
        # As JSON has it: tuples are lists there.
        if progress["model"] != json.loads(json.dumps(asdict(self.model.config))):
            raise ValueError(
                f"{self.path} is of another model, with other sizes: give those, or another directory"
            )
        saved = asdict(TrainConfig()) | progress["train"]  # written before a field was added
        free = {"steps", "eval_every", "eval_batches", "save_every", "recompute"}
        different = [
            f"{name}={saved[name]} there, {value} here"
            for name, value in asdict(self.config).items()
            if name not in free and saved[name] != value
        ]
        if different:
            raise ValueError(
                f"{self.path} is of another run: {'; '.join(different)}; give what is there, or another "
                "directory"
            )
        checkpoint.load(self.path, self.model, self.optimizers)
        self.step = progress["step"]
        self.history = [Step(**step) for step in progress["history"]]
        return True
