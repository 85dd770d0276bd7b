"""Residual paths side by side: the same data, steps and number of parameters, several seeds.

Plain residual, unconstrained hyper-connections and mHC, with a conditional memory and without; and the
same three at a learning rate that is too high on purpose, to see which of them stays upright. Every run is a
`Trainer` with a checkpoint, so that a comparison that was stopped goes on where it was.

Parameters: connections (and memories of more streams) cost some, so that the MLPs of the others are widened
until these have at least as many.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratakv.nn.conditional_memory import MemoryConfig
from stratakv.nn.transformer import StrataLM, TransformerConfig
from stratakv.train.config import TrainConfig
from stratakv.train.loop import Step, Trainer

# Values of `TransformerConfig`.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_streams": 1, "learnable_scale": False},
    "unconstrained": {"mixing": "unconstrained"},
    "mhc": {"mixing": "sinkhorn"},
}
# A loss so far above the first one's that the run is lost, even where it is a number.
DIVERGED_ABOVE = 1.5


@dataclass(frozen=True)
class Run:
    """One training of a comparison.

    Attributes:
        kind: of `KINDS`.
        memory: whether there is one.
        seed: of initial values and batches; batches of equal seeds are equal.
        is_stressed: at the learning rate that is too high.
    """

    kind: str
    memory: bool
    seed: int
    is_stressed: bool = False

    @property
    def variant(self) -> str:
        """What is compared."""
        return self.kind + (" + memory" if self.memory else "")

    @property
    def name(self) -> str:
        """Of its directory."""
        parts = [self.kind, *(["memory"] if self.memory else []), *(["stress"] if self.is_stressed else [])]
        return "-".join([*parts, str(self.seed)])


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        model: sizes; streams, mixing and memory are the runs'.
        train: each run; its seed is the runs'.
        memory: of the runs that have one; None leaves these out.
        seeds: how many.
        stress: factor of the learning rate of the stressed runs, one seed each; 0 leaves them out.

    Raises:
        ValueError: a number out of range.
    """

    model: TransformerConfig
    train: TrainConfig
    memory: MemoryConfig | None = None
    seeds: int = 3
    stress: float = 30.0

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1")
        if self.stress < 0:
            raise ValueError(f"stress={self.stress} must not be negative")
        if not self.train.eval_every:
            raise ValueError("eval_every=0: steps to a loss are told by losses on held-out text on the way")

    def runs(self) -> list[Run]:
        """All of them; those of a seed stand together, so that what is there first is comparable."""
        memories = [False] if self.memory is None else [False, True]
        runs = [
            Run(kind, memory, seed) for seed in range(self.seeds) for memory in memories for kind in KINDS
        ]
        return runs + ([Run(kind, False, 0, True) for kind in KINDS] if self.stress else [])

    def config_of(self, run: Run) -> TransformerConfig:
        """The run's model, with no fewer parameters than the one of its like that has most."""
        bare = {kind: self._bare(kind, run.memory) for kind in KINDS}
        most = max(count_parameters(config) for config in bare.values())
        return widened(bare[run.kind], most)

    def train_of(self, run: Run) -> TrainConfig:
        """How the run trains."""
        lr = self.train.lr * (self.stress if run.is_stressed else 1.0)
        return dataclasses.replace(self.train, seed=run.seed, lr=lr)

    def _bare(self, kind: str, memory: bool) -> TransformerConfig:
        return dataclasses.replace(self.model, **KINDS[kind], memory=self.memory if memory else None)


def count_parameters(config: TransformerConfig) -> int:
    """Parameters of a model, which is not made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in StrataLM(config).parameters())


def widened(config: TransformerConfig, least: int) -> TransformerConfig:
    """The model with MLPs just wide enough for so many parameters; as it is where it has them."""
    missing = least - count_parameters(config)
    if missing <= 0:
        return config
    per_column = 3 * config.hidden_size * config.num_layers
    return dataclasses.replace(config, intermediate_size=config.mlp_size + -(-missing // per_column))


def run_all(
    comparison: Comparison,
    tokens: Tensor,
    directory: Path,
    *,
    vocabulary: Tensor | None = None,
    stopped: Callable[[], bool] = lambda: False,
    told: Callable[[Run, Step], None] = lambda run, step: None,
) -> dict[Run, list[Step]]:
    """Trains what is not trained yet.

    Args:
        comparison: what.
        tokens: (N,) ids of all text.
        directory: where each run has a directory.
        vocabulary: for the memories, see `StrataLM`.
        stopped: asked between updates; the run under way is then saved.
        told: of each update.

    Returns:
        Each run's updates; runs that were not begun are missing.

    Raises:
        ValueError: a directory of another comparison.
    """
    histories: dict[Run, list[Step]] = {}
    for run in comparison.runs():
        if stopped():
            break
        path = directory / run.name / "checkpoint.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = comparison.train_of(run)
        torch.manual_seed(run.seed)
        trainer = Trainer(StrataLM(comparison.config_of(run), vocabulary), tokens, config, path)
        trainer.resume()
        while not (trainer.is_done or is_lost(trainer.history) or stopped()):
            told(run, trainer.advance())
        if not trainer.is_done:  # otherwise it was saved with the last update
            trainer.save()
        histories[run] = trainer.history
    return histories


def is_lost(history: Sequence[Step]) -> bool:
    """Whether the last loss is no number, or far above the first."""
    return bool(history) and not history[-1].loss <= DIVERGED_ABOVE * history[0].loss


def held_out(history: Iterable[Step]) -> list[tuple[int, float]]:
    """(step, nats per token) where it was measured."""
    return [(step.step, step.held_out) for step in history if step.held_out is not None]


def steps_to_loss(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """The step at which a curve comes down to a loss, between two points on the line that joins them.

    Args:
        curve: (step, loss) in the order of steps.
        loss: to be reached.

    Returns:
        Steps; infinity where it is not reached.
    """
    before: tuple[float, float] | None = None
    for step, value in curve:
        if value <= loss:
            if before is None or before[1] == value:
                return float(step)
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = (step, value)
    return math.inf


def mean_curve(histories: Sequence[Sequence[Step]]) -> list[tuple[int, float]]:
    """The mean over seeds of losses on held-out text, at the steps that all have."""
    curves = [dict(held_out(history)) for history in histories]
    common = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return [(step, statistics.fmean(curve[step] for curve in curves)) for step in common]


def summarise(comparison: Comparison, histories: Mapping[Run, Sequence[Step]]) -> dict[str, Any]:
    """What came out, of JSON's types; only of runs that are done.

    `variants`: by name parameters, final losses on held-out text by seed, their mean, and
    `steps_to_plain_loss`: for each seed the share of the steps after which the plain model's final loss (of
    the same seed and memory) was reached, None where it was not. `stress`: by kind whether the run
    diverged, and its last loss.
    """
    steps = comparison.train.steps
    done = {run: history for run, history in histories.items() if len(history) == steps or is_lost(history)}
    variants: dict[str, Any] = {}
    for run, history in _upright(done):
        entry = variants.setdefault(
            run.variant,
            {
                "parameters": count_parameters(comparison.config_of(run)),
                "seeds": [],
                "final_loss": [],
                "steps_to_plain_loss": [],
            },
        )
        final = held_out(history)[-1][1] if not is_lost(history) else math.nan
        entry["seeds"].append(run.seed)
        entry["final_loss"].append(final if math.isfinite(final) else None)
        plain = done.get(dataclasses.replace(run, kind="plain"))
        share = math.inf
        if plain is not None and not is_lost(plain):
            share = steps_to_loss(held_out(history), held_out(plain)[-1][1]) / steps
        entry["steps_to_plain_loss"].append(share if math.isfinite(share) else None)
    for entry in variants.values():
        finals = [loss for loss in entry["final_loss"] if loss is not None]
        entry["mean_final_loss"] = statistics.fmean(finals) if finals else None
    stress = {
        run.kind: {
            "lr": comparison.train_of(run).lr,
            "diverged": is_lost(history),
            "updates": len(history),
            "last_loss": history[-1].loss if math.isfinite(history[-1].loss) else None,
        }
        for run, history in done.items()
        if run.is_stressed
    }
    return {"steps": steps, "variants": variants, "stress": stress}


def _upright(histories: Mapping[Run, Sequence[Step]]) -> Iterator[tuple[Run, Sequence[Step]]]:
    return ((run, history) for run, history in histories.items() if not run.is_stressed)


def curves(comparison: Comparison, histories: Mapping[Run, Sequence[Step]]) -> dict[str, Any]:
    """By variant the mean curve of losses on held-out text, for a plot."""
    groups: dict[str, list[Sequence[Step]]] = {}
    for run, history in _upright(histories):
        if len(history) == comparison.train.steps:
            groups.setdefault(run.variant, []).append(history)
    return {name: mean_curve(group) for name, group in groups.items()}


def as_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A header and rows, for people."""
    rows = []
    for name, entry in summary["variants"].items():
        finals = [loss for loss in entry["final_loss"] if loss is not None]
        spread = f"{min(finals):.4f} to {max(finals):.4f}" if finals else "diverged"
        mean = "-" if entry["mean_final_loss"] is None else f"{entry['mean_final_loss']:.4f}"
        shares = [
            "not reached" if share is None else f"{100 * share:.0f} %"
            for share in entry["steps_to_plain_loss"]
        ]
        rows.append([name, f"{entry['parameters']:,}", mean, spread, ", ".join(shares)])
    return ["residual path", "parameters", "held-out loss", "seeds", "steps to the plain loss"], rows


def write_results(
    comparison: Comparison, histories: Mapping[Run, Sequence[Step]], directory: Path
) -> dict[str, Any]:
    """`compare.json`, `compare.md` and `compare.svg`; gives what the first one holds."""
    from stratakv.train.plot import loss_plot  # noqa: PLC0415  only here

    summary = summarise(comparison, histories)
    (directory / "compare.json").write_text(json.dumps(summary, indent=1) + "\n")
    header, rows = as_table(summary)
    lines = [header, ["---"] * len(header), *rows]
    (directory / "compare.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    drawn = curves(comparison, histories)
    if any(drawn.values()):
        (directory / "compare.svg").write_text(loss_plot(drawn, "Loss on held-out text, mean of seeds"))
    return summary
