"""`stratakv train`: a language model with hyper-connections, from text files.

In the directory of a run: `checkpoint.safetensors` (what going on needs), `log.jsonl` (a line per
update), `loss.svg`, and at the end the model and its tokenizer as transformers saves them, for
`stratakv chat --model DIRECTORY` and `AutoModelForCausalLM`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli import options
from stratakv.cli.errors import CommandError, UsageError
from stratakv.cli.files import read_texts
from stratakv.cli.output import Output, format_count, format_seconds

if TYPE_CHECKING:
    from torch import Tensor

    from stratakv.cli.engine import Interrupt
    from stratakv.nn import StrataLM
    from stratakv.train import Step, Trainer

__all__ = ["configure", "run"]

# What the residual path is: values of `TransformerConfig`.
RESIDUALS: dict[str, dict[str, Any]] = {
    "mhc": {"mixing": "sinkhorn"},
    "permutations": {"mixing": "permutations"},
    "kronecker": {"mixing": "kronecker"},
    "unconstrained": {"mixing": "unconstrained"},
    "scaled": {"num_streams": 1, "learnable_scale": True},
    "plain": {"num_streams": 1, "learnable_scale": False},
}
# Of `TransformerConfig`, then of `TrainConfig`: flag, type, default, what it is.
MODEL_NUMBERS: tuple[tuple[str, type, Any, str], ...] = (
    ("vocab_size", int, 4096, "tokens of the tokenizer that is learned from the text"),
    ("hidden_size", int, 256, "width of the model"),
    ("num_layers", int, 6, "blocks"),
    ("num_heads", int, 4, "query heads"),
    ("num_kv_heads", int, 2, "key/value heads"),
    ("num_streams", int, 4, "residual streams"),
)
TRAIN_NUMBERS: tuple[tuple[str, type, Any, str], ...] = (
    ("steps", int, 1000, "updates"),
    ("batch", int, 8, "rows of an update"),
    ("length", int, 256, "tokens of a row"),
    ("lr", float, 1e-3, "greatest learning rate"),
    ("warmup", int, 50, "updates in which it rises"),
    ("weight_decay", float, 0.1, "of the blocks' matrices"),
    ("clip", float, 1.0, "greatest norm of the gradient; 0 never clips"),
    ("seed", int, 0, "of everything that is drawn"),
    ("eval_every", int, 100, "updates between losses on held-out text"),
    ("save_every", int, 200, "updates between checkpoints"),
)
DEFAULTS = {name: default for name, _, default, _ in (*MODEL_NUMBERS, *TRAIN_NUMBERS)}
DEFAULTS |= {"residual": "mhc", "optimizer": "adamw", "text": None, "out": None}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`."""
    parser.add_argument(
        "--text", nargs="+", metavar="PATH", help="files, or directories of them, to train on"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="directory of the run; one that is there is gone on with"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with any of these options; flags come before it"
    )
    parser.add_argument(
        "--residual", choices=tuple(RESIDUALS), help="the residual path (default: mhc, hyper-connections)"
    )
    parser.add_argument("--optimizer", choices=("adamw", "muon"), help="(default: adamw)")
    for name, kind, default, text in (*MODEL_NUMBERS, *TRAIN_NUMBERS):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, metavar="N", help=f"{text} (default: {default:g})")
    options.add_progress_option(parser)
    options.add_json_option(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Trains until done or stopped, and reports."""
    chosen = _chosen(args)
    directory = Path(chosen["out"])
    directory.mkdir(parents=True, exist_ok=True)

    import torch

    from stratakv.cli.engine import Interrupt
    from stratakv.train import TrainConfig, Trainer

    try:
        config = TrainConfig(
            **{name: chosen[name] for name, *_ in TRAIN_NUMBERS}, optimizer=chosen["optimizer"]
        )
        with out.busy("reading the text"):
            tokens, tokenizer = _tokens(chosen, directory)
        torch.manual_seed(config.seed)
        model = _model(chosen, len(tokenizer))
        trainer = Trainer(model, tokens, config, directory / "checkpoint.safetensors")
        trainer.resume()
    except ValueError as error:
        raise UsageError(str(error)) from None
    count = sum(parameter.numel() for parameter in model.parameters())
    went_on = f", going on after update {format_count(trainer.step)}" if trainer.step else ""
    out.note(f"{format_count(count)} parameters, {format_count(len(tokens))} tokens of text{went_on}")
    with Interrupt() as interrupt:
        _train(trainer, directory, args, interrupt, out)
    if not trainer.is_done:
        trainer.save()
        out.note(f"stopped after update {format_count(trainer.step)}: the same command goes on from there")
        return 130
    _export(model, tokenizer, directory)
    _report(trainer, directory, out)
    return 0


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Flags, then the file, then defaults."""
    written: dict[str, Any] = {}
    if args.config is not None:
        try:
            written = tomllib.loads(Path(args.config).read_text())
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{args.config}: {error}") from None
        unknown = sorted(set(written) - set(DEFAULTS))
        if unknown:
            raise UsageError(
                f"{args.config}: {', '.join(unknown)} is no option",
                f"there are {', '.join(sorted(DEFAULTS))}",
            )
        for name, kind, *_ in (*MODEL_NUMBERS, *TRAIN_NUMBERS):
            _check_number(args.config, name, kind, written.get(name, DEFAULTS[name]))
    flags = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    chosen = DEFAULTS | written | flags
    if chosen["residual"] not in RESIDUALS:
        raise UsageError(f"residual={chosen['residual']!r}: there are {', '.join(RESIDUALS)}")
    for name in ("text", "out"):
        if not chosen[name]:
            raise UsageError(f"--{name} is missing", "give it as a flag or in the file of --config")
    if isinstance(chosen["text"], str):
        chosen["text"] = [chosen["text"]]
    return chosen


def _check_number(file: str, name: str, kind: type, value: Any) -> None:
    accepted = (int,) if kind is int else (int, float)
    if not isinstance(value, accepted) or isinstance(value, bool):
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{file}: {name}={value!r} is not {what}")


def _tokens(chosen: dict[str, Any], directory: Path) -> tuple[Tensor, Any]:
    """All text as ids, documents ended by the tokenizer's end, and the run's tokenizer."""
    import torch

    from stratakv.hf.tokenizer import learn_tokenizer, open_tokenizer

    texts = [file.text for file in read_texts(chosen["text"])]
    if (directory / "tokenizer.json").exists():
        tokenizer = open_tokenizer(directory)
    else:
        tokenizer = learn_tokenizer(texts, chosen["vocab_size"])
        tokenizer.save_pretrained(directory)
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, split_special_tokens=True)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids, dtype=torch.int32), tokenizer


def _model(chosen: dict[str, Any], vocab_size: int) -> StrataLM:
    from stratakv.nn import StrataLM, TransformerConfig

    sizes = {name: chosen[name] for name, *_ in MODEL_NUMBERS} | {"vocab_size": vocab_size}
    return StrataLM(
        TransformerConfig(**(sizes | RESIDUALS[chosen["residual"]]), max_positions=chosen["length"])
    )


def _train(
    trainer: Trainer, directory: Path, args: argparse.Namespace, interrupt: Interrupt, out: Output
) -> None:
    """Updates until all are done, or Ctrl-C was pressed: never half of one."""
    from stratakv.cli.progress import Progress

    per_step = trainer.config.batch * trainer.config.length
    log = directory / "log.jsonl"
    log.write_text("".join(json.dumps(step.as_dict()) + "\n" for step in trainer.history))
    total, done = trainer.config.steps * per_step, trainer.step * per_step
    with (
        log.open("a") as file,
        Progress(out.stderr, label="train", total=total, done=done, show=args.progress) as progress,
    ):
        while not (trainer.is_done or interrupt.requested):
            step = trainer.advance()
            file.write(json.dumps(step.as_dict()) + "\n")
            file.flush()
            _check_finite(step)
            if step.held_out is not None:
                progress.clear()
                out.note(f"update {step.step}: loss {step.loss:.4f}, held out {step.held_out:.4f}")
            progress.update(trainer.step * per_step)


def _check_finite(step: Step) -> None:
    if not math.isfinite(step.loss):
        raise CommandError(
            f"the loss of update {step.step} is not finite: the run diverged",
            "give a smaller --lr or a longer --warmup, and another --out",
        )


def _export(model: StrataLM, tokenizer: Any, directory: Path) -> None:
    """The model as transformers has it, beside the tokenizer."""
    from stratakv.hf import StrataForCausalLM

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    StrataForCausalLM.from_strata_lm(model, **ids).save_pretrained(directory)


def _report(trainer: Trainer, directory: Path, out: Output) -> None:
    from stratakv.train.plot import loss_plot

    history = trainer.history
    curves = {
        "batches": [(step.step, step.loss) for step in history],
        "held out": [(step.step, step.held_out) for step in history if step.held_out is not None],
    }
    (directory / "loss.svg").write_text(loss_plot(curves, "Loss"))
    last = history[-1]
    if last.held_out is None:  # Asked for fewer updates than were done already.
        last = dataclasses.replace(last, held_out=trainer.evaluate())
    seconds = sum(step.seconds for step in history)
    if out.json_mode:
        out.json({**last.as_dict(), "seconds_total": seconds, "directory": str(directory)})
        return
    out.result(f"held-out loss {last.held_out:.4f} nats per token after {format_count(last.step)} updates")
    out.result(f"{format_seconds(seconds)}; the model, log.jsonl and loss.svg are in {directory}")
