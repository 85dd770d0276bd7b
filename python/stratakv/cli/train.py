"""`stratakv train`: a language model with hyper-connections, from text files.

In the directory of a run: `checkpoint.safetensors` (what going on needs), `log.jsonl` (a line per
update), `loss.svg`, and at the end the model and its tokenizer as transformers saves them, for
`stratakv chat --model DIRECTORY` and `AutoModelForCausalLM`. All of it is its owner's alone.

With several processes, `torchrun --nproc-per-node 2 -m stratakv train ...`, the model is split among
them; the first one writes and says what happens.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import json
import math
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli import options
from stratakv.cli.errors import CommandError, UsageError
from stratakv.cli.files import read_texts
from stratakv.cli.models import quiet
from stratakv.cli.output import Output, format_count, format_seconds
from stratakv.cli.paths import check_directory
from stratakv.cli.train_compare import DEFAULTS as COMPARED
from stratakv.cli.train_compare import compare
from stratakv.train.config import CHOICES, TrainConfig
from stratakv.train.files import make_directory, private_files

if TYPE_CHECKING:
    from torch import Tensor

    from stratakv.cli.engine import Interrupt
    from stratakv.nn import StrataLM
    from stratakv.train import Group, Step, Trainer

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
# Of `TransformerConfig`, then of `TrainConfig`: flag, type, default, what it is. The models that are trained
# here are smaller than those that `TransformerConfig` has defaults for.
MODEL_NUMBERS: tuple[tuple[str, type, Any, str], ...] = (
    ("vocab_size", int, 4096, "tokens of the tokenizer that is learned from the text"),
    ("hidden_size", int, 256, "width of the model"),
    ("num_layers", int, 6, "blocks"),
    ("num_heads", int, 4, "query heads"),
    ("num_kv_heads", int, 2, "key/value heads"),
    ("num_streams", int, 4, "residual streams"),
)
MEMORY_NUMBERS: tuple[tuple[str, type, Any, str], ...] = (
    ("memory_rows", int, 65536, "least rows of each of a memory's tables"),
)
_RUN = {
    "steps": "updates",
    "batch": "rows of an update",
    "length": "tokens of a row",
    "lr": "greatest learning rate",
    "warmup": "updates in which it rises",
    "weight_decay": "of the blocks' matrices",
    "clip": "greatest norm of the gradient; 0 never clips",
    "seed": "of everything that is drawn",
    "eval_every": "updates between losses on held-out text",
    "save_every": "updates between checkpoints",
}
_CONFIG = TrainConfig()
TRAIN_NUMBERS: tuple[tuple[str, type, Any, str], ...] = tuple(
    (name, type(getattr(_CONFIG, name)), getattr(_CONFIG, name), text) for name, text in _RUN.items()
)
TRAIN_CHOICES = {
    "optimizer": "what updates the blocks' matrices; the rest is AdamW's",
    "precision": "of matrix products; fp8 where the hardware has it",
    "fp8_scales": "of --precision fp8: a scale for each row, or for each tile of 128",
    "recompute": "what the backward pass computes again to save memory; results stay the same",
}
DEFAULTS = {name: default for name, _, default, _ in (*MODEL_NUMBERS, *MEMORY_NUMBERS, *TRAIN_NUMBERS)}
DEFAULTS |= {name: getattr(_CONFIG, name) for name in TRAIN_CHOICES}
DEFAULTS |= {"residual": "mhc", "tensorboard": False, "text": None, "out": None}
DEFAULTS |= {"memory_layers": [], "sparse_tables": False, "memory_tables": None}
# Of `train compare` only.
COMPARE_NUMBERS: tuple[tuple[str, type, Any, str], ...] = (
    ("seeds", int, 3, "compare: seeds of each residual path"),
    ("stress", float, 30.0, "compare: factor of the learning rate for runs that it is too high for"),
)
DEFAULTS |= {name: default for name, _, default, _ in COMPARE_NUMBERS}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("compare",),
        help="plain, unconstrained and mHC residual paths, with memory and without, several seeds each",
    )
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
    for name, text in TRAIN_CHOICES.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, choices=CHOICES[name], help=f"{text} (default: {DEFAULTS[name]})")
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        default=None,
        help="write event files too, into the run's directory (needs the extra `tensorboard`)",
    )
    parser.add_argument(
        "--memory-layers",
        nargs="*",
        type=int,
        metavar="N",
        help="blocks that begin with a conditional memory, counted from 0 (default: none)",
    )
    parser.add_argument(
        "--sparse-tables",
        action="store_true",
        default=None,
        help="update only the rows of the memories' tables that a batch looked up",
    )
    parser.add_argument(
        "--memory-tables",
        metavar="DIR",
        help="keep the memories' tables in files there, for tables larger than RAM; updates are sparse",
    )
    for name, kind, default, text in (*MODEL_NUMBERS, *MEMORY_NUMBERS, *TRAIN_NUMBERS, *COMPARE_NUMBERS):
        flag = "--" + name.replace("_", "-")
        other = "" if name not in COMPARED else f"; compare: {COMPARED[name]:g}"
        type_ = options.whole if kind is int else options.number
        parser.add_argument(flag, type=type_, metavar="N", help=f"{text} (default: {default:g}{other})")
    options.add_progress_option(parser)
    options.add_json_option(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Trains until done or stopped, and reports."""
    chosen = _chosen(args)

    from stratakv.train import Group

    group = Group.from_environment()
    try:
        with private_files():
            return _run(args, chosen, group, out)
    finally:
        group.leave()


def _run(args: argparse.Namespace, chosen: dict[str, Any], group: Group, out: Output) -> int:
    from stratakv.cli.engine import Interrupt

    directory = Path(chosen["out"])
    check_directory(chosen["out"], "--out")
    if args.action == "compare":
        if group.size > 1:
            raise UsageError("`train compare` runs in one process", "start it without torchrun")
        with _nothing_left(directory, group):
            with out.busy("reading the text"):
                read = _tokens_or_usage_error(chosen, directory, group)
            return compare(args, chosen, *read, out)
    with _nothing_left(directory, group):
        trainer, tokenizer, num_tokens = _prepare(chosen, directory, group, out)
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    said = out if group.is_first else _silent()
    went_on = f", going on after update {format_count(trainer.step)}" if trainer.step else ""
    said.note(f"{format_count(count)} parameters, {format_count(num_tokens)} tokens of text{went_on}")
    with Interrupt() as interrupt, _full_disk_explained(chosen):
        _train(trainer, directory, args, interrupt, said, board=chosen["tensorboard"])
    if not trainer.is_done:
        trainer.save()
        said.stopped(
            f"stopped after update {format_count(trainer.step)}", "the same command goes on from there"
        )
        return 130
    whole, last = trainer.whole_model(), _last(trainer)
    if group.is_first:
        _export(whole, tokenizer, directory)
        _report(trainer, last, directory, out)
    return 0


def _prepare(chosen: dict[str, Any], directory: Path, group: Group, out: Output) -> tuple[Trainer, Any, int]:
    """The run as it is begun or gone on with, its tokenizer, and how many tokens its text has."""
    import torch

    from stratakv.train import Trainer

    try:
        names = (*_RUN, *TRAIN_CHOICES)
        sparse_tables = chosen["sparse_tables"] or chosen["memory_tables"] is not None
        config = TrainConfig(**{name: chosen[name] for name in names}, sparse_tables=sparse_tables)
        with out.busy("reading the text"):
            tokens, tokenizer = _tokens(chosen, directory, group)
        torch.manual_seed(config.seed)
        with _full_disk_explained(chosen):
            path = directory / "checkpoint.safetensors"
            trainer = Trainer(_model(chosen, tokenizer), tokens, config, path, group)
            trainer.resume()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return trainer, tokenizer, len(tokens)


@contextlib.contextmanager
def _nothing_left(directory: Path, group: Group) -> Iterator[None]:
    """A run that cannot begin leaves no tokenizer: one over other text would take it for its own."""
    before = set(directory.iterdir()) if directory.is_dir() else None
    try:
        yield
    except UsageError:
        if group.is_first and directory.is_dir():
            for path in set(directory.iterdir()) - (before or set()):
                if path.is_file():
                    path.unlink()
            if before is None:
                with contextlib.suppress(OSError):  # runs of a comparison may be there
                    directory.rmdir()
        raise


@contextlib.contextmanager
def _full_disk_explained(chosen: dict[str, Any]) -> Iterator[None]:
    """A full disk's hint: what is too large is the tables, or the checkpoint of the run."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        hint = "free space there: a checkpoint is written beside the one before, which it replaces"
        tables = chosen["memory_tables"]
        if tables is not None and error.filename is not None and Path(error.filename) == Path(tables):
            hint = (
                "free space there, name another disk with --memory-tables, or give fewer --memory-rows; in "
                "training each row's two moments lie beside it, three times the table"
            )
        raise CommandError(f"{error.filename or chosen['out']}: {error.strerror}", hint) from None


def _silent() -> Output:
    """Of the processes that are not the first."""
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Flags, then the file, then defaults."""
    written: dict[str, Any] = {}
    if args.config is not None:
        try:
            written = tomllib.loads(Path(args.config).read_text())
        except ValueError as error:  # not TOML, or no text
            raise UsageError(f"{args.config}: {error}") from None
        unknown = sorted(set(written) - set(DEFAULTS))
        if unknown:
            raise UsageError(
                f"{args.config}: {', '.join(unknown)} is no option",
                f"there are {', '.join(sorted(DEFAULTS))}",
            )
        for name, kind, *_ in (*MODEL_NUMBERS, *MEMORY_NUMBERS, *TRAIN_NUMBERS, *COMPARE_NUMBERS):
            _check_number(args.config, name, kind, written.get(name, DEFAULTS[name]))
    flags = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    chosen = DEFAULTS | (COMPARED if args.action == "compare" else {}) | written | flags
    for name, choices in {"residual": tuple(RESIDUALS), **CHOICES}.items():
        if chosen[name] not in choices:
            raise UsageError(f"{name}={chosen[name]!r}: there are {', '.join(choices)}")
    for name in ("tensorboard", "sparse_tables"):
        if not isinstance(chosen[name], bool):
            raise UsageError(f"{name}={chosen[name]!r}: accepted are true and false")
    _check_memories(chosen["memory_layers"], chosen["memory_tables"])
    missing = [f"--{name}" for name in ("text", "out") if not chosen[name]]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{' and '.join(missing)} {verb} missing", "as a flag or in the file of --config")
    if isinstance(chosen["text"], str):
        chosen["text"] = [chosen["text"]]
    return chosen


def _check_memories(layers: Any, tables: Any) -> None:
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise UsageError(f"memory_layers={layers!r}: accepted are numbers of blocks, as in [1, 4]")
    if tables is not None and not (isinstance(tables, str) and Path(tables).is_dir()):
        raise UsageError(f"memory_tables={tables!r} is no directory", "name one that is there")


def _check_number(file: str, name: str, kind: type, value: Any) -> None:
    accepted = (int,) if kind is int else (int, float)
    if not isinstance(value, accepted) or isinstance(value, bool):
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{file}: {name}={value!r} is not {what}")


def _tokens(chosen: dict[str, Any], directory: Path, group: Group) -> tuple[Tensor, Any]:
    """All text as ids, documents ended by the tokenizer's end, and the run's tokenizer."""
    import torch

    from stratakv.hf.tokenizer import learn_tokenizer, open_tokenizer

    texts = [file.text for file in read_texts(chosen["text"])]
    make_directory(directory)
    if group.is_first and not (directory / "tokenizer.json").exists():
        learn_tokenizer(texts, chosen["vocab_size"]).save_pretrained(directory)
    group.wait()
    tokenizer = open_tokenizer(directory)
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, split_special_tokens=True)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids, dtype=torch.int32), tokenizer


def _tokens_or_usage_error(chosen: dict[str, Any], directory: Path, group: Group) -> tuple[Tensor, Any]:
    try:
        return _tokens(chosen, directory, group)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _model(chosen: dict[str, Any], tokenizer: Any) -> StrataLM:
    from stratakv.hf.tokenizer import compressed_vocabulary
    from stratakv.nn import MemoryConfig, StrataLM, TransformerConfig

    sizes = {name: chosen[name] for name, *_ in MODEL_NUMBERS} | {"vocab_size": len(tokenizer)}
    sizes |= RESIDUALS[chosen["residual"]]
    vocabulary = None
    if chosen["memory_layers"]:
        vocabulary = compressed_vocabulary(tokenizer)
        sizes["memory"] = MemoryConfig(
            layers=tuple(chosen["memory_layers"]),
            compressed_size=int(vocabulary.max()) + 1,
            table_sizes=(chosen["memory_rows"],) * 2,
            pad_id=tokenizer.pad_token_id,
        )
    tables = None if chosen["memory_tables"] is None else Path(chosen["memory_tables"])
    return StrataLM(TransformerConfig(**sizes, max_positions=chosen["length"]), vocabulary, tables)


def _train(
    trainer: Trainer,
    directory: Path,
    args: argparse.Namespace,
    interrupt: Interrupt,
    out: Output,
    *,
    board: bool,
) -> None:
    """Updates until all are done, or Ctrl-C was pressed: never half of one."""
    from stratakv.cli.progress import Progress

    per_step = trainer.config.batch * trainer.config.length
    total, done = trainer.config.steps * per_step, trainer.step * per_step
    show = args.progress if trainer.group.is_first else False
    with (
        _logs(trainer, directory, board=board) as write,
        Progress(out.stderr, label="train", total=total, done=done, show=show) as progress,
    ):
        # All processes stop together, whichever of them was told to.
        while not (trainer.is_done or trainer.group.any(interrupt.requested)):
            step = trainer.advance()
            write(step)
            _check_finite(step)
            if step.held_out is not None:
                progress.clear()
                out.note(f"update {step.step}: loss {step.loss:.4f}, held out {step.held_out:.4f}")
            progress.update(trainer.step * per_step)


@contextlib.contextmanager
def _logs(trainer: Trainer, directory: Path, *, board: bool) -> Iterator[Callable[[Step], None]]:
    """What writes an update to the run's logs; the first process's does."""
    if not trainer.group.is_first:
        yield lambda step: None
        return
    log = directory / "log.jsonl"
    log.write_text("".join(json.dumps(step.as_dict()) + "\n" for step in trainer.history))
    writer = None
    if board:
        from stratakv.train.board import open_board, write_step

        writer = open_board(directory / "tensorboard", trainer.history)

    def write(step: Step) -> None:
        file.write(json.dumps(step.as_dict()) + "\n")
        file.flush()
        if writer is not None:
            write_step(writer, step)

    try:
        with log.open("a") as file:
            yield write
    finally:
        if writer is not None:
            writer.close()


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
    with quiet():
        StrataForCausalLM.from_strata_lm(model, **ids).save_pretrained(directory)


def _last(trainer: Trainer) -> Step:
    """The last update, with its loss on held-out text."""
    last = trainer.history[-1]
    if last.held_out is None:  # Asked for fewer updates than were done already.
        last = dataclasses.replace(last, held_out=trainer.evaluate())
    return last


def _report(trainer: Trainer, last: Step, directory: Path, out: Output) -> None:
    from stratakv.train.plot import loss_plot

    history = trainer.history
    curves = {
        "batches": [(step.step, step.loss) for step in history],
        "held out": [(step.step, step.held_out) for step in history if step.held_out is not None],
    }
    (directory / "loss.svg").write_text(loss_plot(curves, "Loss"))
    seconds = sum(step.seconds for step in history)
    if out.json_mode:
        out.json({**last.as_dict(), "seconds_total": seconds, "directory": str(directory)})
        return
    out.result(f"held-out loss {last.held_out:.4f} nats per token after {format_count(last.step)} updates")
    out.result(f"{format_seconds(seconds)}; the model, log.jsonl and loss.svg are in {directory}")
