"""`stratakv train compare`: residual paths side by side, one command that can be stopped and goes on.

In the directory: `compare.json`, `compare.md`, `compare.svg`, the tokenizer, and a directory for each run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli.errors import UsageError
from stratakv.cli.output import Output, format_count, table

if TYPE_CHECKING:
    from stratakv.train.compare import Comparison, Run
    from stratakv.train.loop import Step

__all__ = ["DEFAULTS", "compare"]

# What is not said is this: about 20 minutes on two cores.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_layers": 6,
    "num_heads": 4,
    "num_kv_heads": 2,
    "steps": 400,
    "batch": 4,
    "length": 128,
    "lr": 2e-3,
    "warmup": 40,
    "eval_every": 20,
    "save_every": 100,
}
EVAL_BATCHES = 4
MEMORY: dict[str, Any] = {"table_sizes": (4096, 4096), "num_heads": 4, "ngram_dim": 64}


def compare(
    args: argparse.Namespace, chosen: dict[str, Any], tokens: Any, tokenizer: Any, out: Output
) -> int:
    """Trains what is not trained yet, and reports.

    Args:
        args: the command line.
        chosen: flags, file and defaults together.
        tokens: (N,) ids of the text.
        tokenizer: the runs'.
        out: where results and notes go.

    Returns:
        0, or 130 where it was stopped.
    """
    from stratakv.cli.engine import Interrupt
    from stratakv.cli.progress import Progress
    from stratakv.hf.tokenizer import compressed_vocabulary
    from stratakv.train.compare import as_table, run_all, write_results

    directory = Path(chosen["out"])
    vocabulary = compressed_vocabulary(tokenizer)
    try:
        comparison = _comparison(chosen, len(tokenizer), int(vocabulary.max()) + 1)
    except ValueError as error:
        raise UsageError(str(error)) from None
    runs = comparison.runs()
    out.note(f"{len(runs)} runs of {format_count(comparison.train.steps)} updates")
    per_step = comparison.train.batch * comparison.train.length
    total = len(runs) * comparison.train.steps * per_step
    with (
        Interrupt() as interrupt,
        Progress(out.stderr, label="compare", total=total, show=args.progress) as progress,
    ):

        def told(run: Run, step: Step) -> None:
            if step.step == comparison.train.steps:
                progress.clear()
                out.note(f"{run.name}: held out {step.held_out:.4f}")
            progress.update((runs.index(run) * comparison.train.steps + step.step) * per_step)

        try:
            histories = run_all(
                comparison,
                tokens,
                directory,
                vocabulary=vocabulary,
                stopped=lambda: interrupt.requested,
                told=told,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
    summary = write_results(comparison, histories, directory)
    if interrupt.requested:
        out.stopped(f"stopped in run {len(histories)} of {len(runs)}", "the same command goes on from there")
        return 130
    if out.json_mode:
        out.json(summary | {"directory": str(directory)})
        return 0
    header, rows = as_table(summary)
    for line in table(header, rows, right=(1, 2)):
        out.result(line)
    for kind, entry in summary["stress"].items():
        said = f"diverged at update {entry['updates']}" if entry["diverged"] else "stayed upright"
        out.result(f"{kind} at a learning rate of {entry['lr']:g}: {said}")
    out.result(f"compare.json, compare.md and compare.svg are in {directory}")
    return 0


def _comparison(chosen: dict[str, Any], vocab_size: int, compressed_size: int) -> Comparison:
    from stratakv.nn import MemoryConfig, TransformerConfig
    from stratakv.train import TrainConfig
    from stratakv.train.compare import Comparison

    model = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=chosen["hidden_size"],
        num_layers=chosen["num_layers"],
        num_heads=chosen["num_heads"],
        num_kv_heads=chosen["num_kv_heads"],
        num_streams=chosen["num_streams"],
        max_positions=chosen["length"],
    )
    names = [name for name in TrainConfig.__dataclass_fields__ if name in chosen and name != "seed"]
    train = TrainConfig(**{name: chosen[name] for name in names}, eval_batches=EVAL_BATCHES)
    layers = tuple(sorted({min(1, model.num_layers - 1), model.num_layers // 2}))
    memory = MemoryConfig(layers=layers, compressed_size=compressed_size, **MEMORY)
    return Comparison(model, train, memory, seeds=chosen["seeds"], stress=chosen["stress"])
