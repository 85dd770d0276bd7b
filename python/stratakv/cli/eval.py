"""`stratakv eval`: how well a model, a budget and a length go together, measured on real text.

Each text is read once and kept as a session until all its questions are answered; every question
is then asked of a fork, so none sees another. An interrupted run goes on where it stopped: answers
are in the report, and what was read of the text is in the directory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stratakv.cli import eval_memory, options
from stratakv.cli.devices import Placement
from stratakv.cli.errors import UsageError
from stratakv.cli.eval_report import PERPLEXITY, Report
from stratakv.cli.files import read_texts
from stratakv.cli.models import LoadedModel, find_model, give_large_blocks_back, load
from stratakv.cli.output import Output, format_count
from stratakv.cli.paths import check_directory, check_output
from stratakv.cli.storage import open_selecting
from stratakv.eval import (
    FAMILIES,
    LISTS,
    Haystack,
    Question,
    TooShortError,
    Trial,
    paragraphs_of,
    standard_library_paragraphs,
    trials,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratakv import TieredCache
    from stratakv.cli.engine import Driver, Interrupt

__all__ = ["configure", "losses_of", "run"]

TASKS = (*FAMILIES, *LISTS, PERPLEXITY)
LEAST_LENGTH = 1024
PREDICTED = 512
"""Tokens that a perplexity is the mean over."""
PIECE = 16
"""Tokens of one forward pass there; each selects as if it came alone."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `eval`, and what else can be measured."""
    subjects = parser.add_subparsers(
        dest="subject", metavar="memory", help="measure what is recalled of conversations instead"
    )
    summary = "how much of what answers a question is recalled from long conversations"
    eval_memory.configure(
        subjects.add_parser("memory", help=summary, description=summary[0].upper() + summary[1:] + ".")
    )
    parser.add_argument(
        "--tasks",
        type=_tasks,
        default=("needle",),
        metavar="NAMES",
        help=f"what to measure, divided by commas: {', '.join(TASKS)}; or all (default: needle)",
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        default=(4096,),
        metavar="TOKENS",
        help="lengths of the prompt, divided by commas, such as 4K,64K,1M (default: 4K)",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        default=None,
        metavar="PATH",
        help="files, or directories of them, that the text is taken from "
        "(default: the sources of Python's standard library)",
    )
    parser.add_argument(
        "--count",
        type=_count,
        default=20,
        metavar="N",
        help="facts of each family, 4 to 40 (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=options.whole, default=0, metavar="N", help="of everything that is drawn (default: 0)"
    )
    parser.add_argument(
        "--report",
        default=None,
        metavar="FILE",
        help="JSON file of the results, written after every answer; a run that was stopped goes on from it",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the sessions of the texts (default: remove them at the end)"
    )
    options.add_budget_option(parser)
    options.add_look_option(parser)
    options.add_tier_options(parser, ram="1GiB")
    options.add_directory_option(parser)
    options.add_model_options(parser)
    options.add_device_options(parser)
    options.add_progress_option(parser)
    options.add_json_option(parser)


def _tasks(text: str) -> tuple[str, ...]:
    names = TASKS if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in TASKS:
            raise argparse.ArgumentTypeError(f"{name!r} is no task: there are {', '.join(TASKS)}")
    return names


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({_length(part) for part in text.split(",")}))


def _length(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    factor = {"": 1, "K": 1 << 10, "M": 1 << 20}.get(unit)
    if factor is None or not number.isdigit() or int(number) * factor < LEAST_LENGTH:
        raise argparse.ArgumentTypeError(
            f"{text!r}: accepted are whole numbers of tokens from {LEAST_LENGTH} on, such as 4096, 16K or 1M"
        )
    return int(number) * factor


def _count(text: str) -> int:
    if not text.isdigit() or not 4 <= int(text) <= 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 4 to 40")
    return int(text)


def run(args: argparse.Namespace, out: Output) -> int:
    """Asks what the report does not yet have, and reports."""
    if args.subject == "memory":
        return eval_memory.run(args, out)
    check_directory(args.directory, "--directory")
    if args.report is not None:
        check_output(args.report, "--report")
    source = find_model(args.model)

    from stratakv.cli.engine import Interrupt, StoppedError

    placement = Placement.of(args)
    give_large_blocks_back()
    loaded = load(source, args.dtype, out=out, device=placement.device)
    report = Report(
        args.report,
        {
            "model": loaded.name,
            "dtype": loaded.dtype,
            "budget": args.budget or "all",
            "look": args.look,
            "text": args.text or "the standard library of Python",
            "count": args.count,
            "seed": args.seed,
            # A device estimates every block, without sketches: other blocks may be read.
            "hot": placement.hot,
        },
    )
    with Interrupt() as interrupt:
        examiner = Examiner(loaded, report, args, interrupt, out)
        try:
            for length in args.lengths:
                examiner.examine(length)
            if not args.keep:
                examiner.remove_sessions()
        except TooShortError as error:
            raise UsageError(str(error), "give more --text, or shorter --lengths") from None
        except StoppedError as stopped:
            out.stopped(
                f"stopped at {format_count(stopped.done)} of {format_count(stopped.total)} tokens",
                "the same command goes on from there" if args.report else "with --report FILE it could go on",
            )
            return 130
    if out.json_mode:
        out.json(report.as_dict())
    else:
        for number, line in enumerate(report.lines()):
            out.result(out.style.bold(line) if number == 0 else line)
    return 0


class Examiner:
    """Puts a model through the trials of one length after another."""

    def __init__(
        self, loaded: LoadedModel, report: Report, args: argparse.Namespace, interrupt: Interrupt, out: Output
    ) -> None:
        self.loaded = loaded
        self.report = report
        self.args = args
        self.interrupt = interrupt
        self.out = out
        self.haystack = Haystack(self._paragraphs(args.text), self._count_tokens)
        self.sessions: list[str] = []

    @staticmethod
    def _paragraphs(paths: Sequence[str] | None) -> Iterator[str]:
        if paths is None:
            return standard_library_paragraphs()
        return paragraphs_of((file.name, file.text) for file in read_texts(paths))

    def _count_tokens(self, text: str) -> int:
        return len(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def examine(self, length: int) -> None:
        """Everything of one length that the report does not have."""
        args = self.args
        for trial in trials(args.tasks, length, self.haystack, seed=args.seed, count=args.count):
            asked = [
                question
                for question in trial.questions
                if not self.report.has(length, question.family, question.text)
            ]
            if asked:
                self._ask(trial, asked)
        if PERPLEXITY in args.tasks and not self.report.has(length, PERPLEXITY, PERPLEXITY):
            self._predict(length)

    def _ask(self, trial: Trial, asked: Sequence[Question]) -> None:
        """Reads a trial's text and asks about it."""
        from stratakv.cli.engine import StoppedError
        from stratakv.cli.prompts import document_pieces

        # The document's ids do not depend on what is asked.
        context, _ = document_pieces(self.loaded.tokenizer, trial.text, "")
        with self._read(trial.name, trial.length, context) as cache:
            for number, question in enumerate(asked, 1):
                if self.interrupt.requested:
                    raise StoppedError(len(context), len(context))
                with self.out.busy(f"{format_count(trial.length)} tokens: question {number} of {len(asked)}"):
                    result = self._answer(cache, question, context)
                self.report.add({"length": trial.length, "family": question.family, **result})

    def _answer(self, cache: TieredCache, question: Question, context: list[int]) -> dict[str, Any]:
        """Asks a fork of the cache."""
        from stratakv.cli.prompts import document_pieces, encode_text

        tokenizer = self.loaded.tokenizer
        _, asked = document_pieces(tokenizer, "", question.text)
        prompt = context + asked + encode_text(tokenizer, question.opening)
        start = time.perf_counter()
        with cache.fork() as fork:
            driver = self._driver(fork)
            prefilled = driver.prefill_question(prompt, look=self.args.look, quiet=True)
            asked_seconds = time.perf_counter() - start
            tokens = list(driver.decode(prefilled.logits_V, question.max_new_tokens))
            read = fork.stats()["cache"].get("read_tokens")
        reply = tokenizer.decode(tokens, skip_special_tokens=True)
        return {
            "score": round(question.score(reply), 4),
            "depth": question.depth,
            "question": question.text,
            "answers": list(question.answers),
            "reply": reply,
            "prompt_tokens": len(prompt),
            "read_tokens": len(prompt) + len(tokens) if read is None else round(read),
            "seconds": {"question": asked_seconds, "total": time.perf_counter() - start},
        }

    def _predict(self, length: int) -> None:
        """The mean negative log likelihood of the last tokens of a text of that length."""
        import torch

        text = self.haystack.with_sentences([], length + PREDICTED)
        ids = self.loaded.tokenizer(text, split_special_tokens=True)["input_ids"][:length]
        context, predicted = ids[:-PREDICTED], ids[-PREDICTED:]
        with (
            self._read(PERPLEXITY, length, context) as cache,
            torch.inference_mode(),
            cache.fork() as fork,
            self.out.busy(f"{format_count(length)} tokens: perplexity of the last {PREDICTED}"),
        ):
            fork.crop(len(context) - 1 - fork.get_seq_length())
            losses_T = losses_of(self.loaded.model, fork, [context[-1], *predicted])
        score = float(losses_T.mean())
        self.report.add({"length": length, "family": PERPLEXITY, "question": PERPLEXITY, "score": score})

    @contextlib.contextmanager
    def _read(self, kind: str, length: int, context: list[int]) -> Iterator[TieredCache]:
        """A cache that covers a text; what is read of it is kept, when stopped too."""
        args = self.args
        settings = f"{self.loaded.name} {self.loaded.dtype} {args.budget} {context}"
        name = f"eval-{kind}-{length}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
        limits = {"ram": args.ram, "disk_limit": args.disk_limit}
        self.sessions.append(name)
        with open_selecting(
            self.loaded.model,
            args.directory,
            budget=args.budget,
            out=self.out,
            name=name,
            hot=args.hot,
            **limits,
        ) as cache:
            # A resumed session holds back its last token: one to compute is a text that is known.
            if cache.match(context) < len(context) - 1:
                label = f"{kind} {format_count(length)}"
                known, start = cache.get_seq_length(), time.perf_counter()
                try:
                    self._driver(cache, keep=cache.save).prefill(context, label=label)
                    cache.save()
                finally:
                    read = cache.get_seq_length() - known
                    self.report.add_reading(f"{kind} {length}", read, time.perf_counter() - start)
            yield cache

    def _driver(self, cache: TieredCache, *, keep: Callable[[], None] | None = None) -> Driver:
        from stratakv.cli.engine import Driver

        return Driver(
            self.loaded,
            cache,
            interrupt=self.interrupt,
            out=self.out,
            chunk=self.args.chunk,
            show=self.args.progress,
            keep=keep,
        )

    def remove_sessions(self) -> None:
        """Gives the space of the texts back: all that was asked about them is answered."""
        from stratakv.cache import Store

        if not self.sessions:
            return
        with Store(self.args.directory, ram=self.args.ram, disk_limit=self.args.disk_limit) as store:
            kept = {session["name"] for session in store.native.sessions()}
            for name in kept.intersection(self.sessions):
                store.native.remove_session(name)
            store.native.gc()


def losses_of(model: nn.Module, cache: TieredCache, ids: Sequence[int]) -> Tensor:
    """The negative log likelihood of each token but the first (T,), in a cache that ends before them all."""
    import torch

    from stratakv.hf.library import cache_kwargs

    device = next(model.parameters()).device
    losses = []
    for start in range(0, len(ids) - 1, PIECE):
        end = min(start + PIECE, len(ids) - 1)
        piece_BT = torch.tensor([ids[start:end]], device=device)
        logits_TV = model(input_ids=piece_BT, use_cache=True, **cache_kwargs(cache)).logits[0].float()
        said_T = torch.tensor(ids[start + 1 : end + 1], device=device)
        losses.append(torch.nn.functional.cross_entropy(logits_TV, said_T, reduction="none"))
    return torch.cat(losses)
