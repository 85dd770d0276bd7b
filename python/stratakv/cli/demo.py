"""`stratakv demo`: a real model reads a long text within a RAM limit, ends, and comes back.

Two processes. The first reads the text in chunks, saves the session and answers a question. The
second, started by the first, opens the session and answers another question. The text hides two
random facts, one per question, so that a right answer proves that the pages were read. The demo
fails if an answer is wrong or if the second process computed the text again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stratakv import sizes
from stratakv.cli import options
from stratakv.cli.errors import CommandError, UsageError
from stratakv.cli.models import ModelSource, find_model, give_large_blocks_back, load
from stratakv.cli.output import Output, format_count, format_seconds
from stratakv.cli.storage import open_cache, saved_ids

if TYPE_CHECKING:
    from stratakv import TieredCache
    from stratakv.cli.engine import Driver
    from stratakv.cli.texts import Fact

__all__ = ["configure", "run"]

SESSION = "demo"
ANSWER_TOKENS_MAX = 32


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `demo`."""
    options.add_tier_options(parser, ram="64MiB")
    parser.add_argument(
        "--tokens",
        type=options.positive,
        default=4000,
        metavar="N",
        help="length of the text (default: 4000)",
    )
    parser.add_argument("--seed", type=options.whole, metavar="N", help="the same hidden facts in every run")
    options.add_directory_option(parser, default=None)
    options.add_model_options(parser)
    options.add_progress_option(parser)
    options.add_json_option(parser)
    # The second process's order, from the first: the question and the directory are in it.
    parser.add_argument("--resume", metavar="QUESTION", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, out: Output) -> int:
    """Runs both processes, or, with `--resume`, is the second."""
    if args.resume is not None:
        return _resume(args, out)
    source = find_model(args.model)
    with _directory(args.directory) as directory:
        args.directory = directory
        report = _first(source, args, out)
        report["resume"] = second = _second(args, report, out)
        _tell_second(report, out)
    right = report["right"] and second["right"]
    if out.json_mode:
        out.json(report)
    if not right:
        out.error("an answer is wrong", "the model is small: try another run, or fewer --tokens")
    if second["reprefilled_tokens"]:
        out.error(f"the second process computed {second['reprefilled_tokens']} stored tokens again")
    return 0 if right and not second["reprefilled_tokens"] else 1


@contextlib.contextmanager
def _directory(chosen: str | None) -> Iterator[str]:
    """The chosen directory, which stays, or a temporary one."""
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="stratakv-demo-") as made:
        yield made


def _first(source: ModelSource, args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Reads the text, saves the session, answers the first question."""
    from stratakv.cli.engine import Driver, Interrupt, StoppedError
    from stratakv.cli.texts import random_facts

    heading(out, "1. Read a long text under a RAM limit")
    give_large_blocks_back()
    loaded = load(source, args.dtype, out=out)
    facts = random_facts(args.seed)
    line(out, "model", f"{loaded.name}, {loaded.dtype}, loaded in {format_seconds(loaded.load_seconds)}")
    with (
        Interrupt() as interrupt,
        open_cache(
            loaded.model, args.directory, ram=args.ram, disk_limit=args.disk_limit, name=SESSION
        ) as cache,
    ):
        driver = Driver(loaded, cache, interrupt=interrupt, out=out, chunk=args.chunk, show=args.progress)
        try:
            return _read_and_answer(driver, cache, facts, args)
        except StoppedError:
            raise KeyboardInterrupt from None  # a demo's half-read text is of no use to anyone


def _read_and_answer(
    driver: Driver, cache: TieredCache, facts: list[Fact], args: argparse.Namespace
) -> dict[str, Any]:
    from stratakv.cli.engine import peak_rss_bytes, tiers_of
    from stratakv.cli.prompts import document_pieces, encode
    from stratakv.cli.texts import hide, standard_library_text

    loaded, out = driver.loaded, driver.out
    paragraphs, modules = standard_library_text(args.tokens, lambda text: len(encode(loaded.tokenizer, text)))
    text = hide(paragraphs, facts)
    context, question = document_pieces(loaded.tokenizer, text, facts[0].question)
    if loaded.window is not None and len(context) + 200 > loaded.window:
        raise UsageError(
            f"the text has {len(context)} tokens, more than {loaded.name} was trained on ({loaded.window})",
            "give fewer --tokens",
        )
    line(
        out,
        "text",
        f"{format_count(len(context))} tokens: docstrings of {modules} modules of Python, with two "
        "random facts hidden in it",
    )
    cache.reset()  # a kept directory may hold the session of an earlier run
    read = driver.prefill(context)
    tiers = tiers_of(cache)
    line(
        out,
        "prefill",
        f"{format_seconds(read.seconds)}, {format_count(round(read.tokens / read.seconds))} tokens/s",
    )
    line(out, "KV cache", tiers.describe())
    start = time.perf_counter()
    cache.save(SESSION)
    saved_seconds = time.perf_counter() - start
    answer = _ask(driver, context + question)
    tell_answer(out, facts[0].question, answer["text"], right=facts[0].answered_by(answer["text"]))
    line(out, "saved", f"session {SESSION}, the text, in {format_seconds(saved_seconds)}, {args.directory}")
    return {
        "model": loaded.name,
        "dtype": loaded.dtype,
        "directory": args.directory,
        "pid": os.getpid(),
        "tokens": len(context),
        "prefill_seconds": read.seconds,
        "prefill_tokens_per_second": read.tokens / read.seconds,
        "tiers": tiers.as_dict(),
        "question": facts[0].question,
        "answer": answer["text"],
        "right": facts[0].answered_by(answer["text"]),
        "session_tokens": len(context),
        "peak_rss_bytes": peak_rss_bytes(),
        "next_fact": asdict(facts[1]),
    }


def _second(args: argparse.Namespace, first: dict[str, Any], out: Output) -> dict[str, Any]:
    """Starts the second process and judges what it did."""
    from stratakv.cli.texts import Fact

    heading(out, "2. Resume it in a new process")
    fact = Fact(**first["next_fact"])
    command = [sys.executable, "-m", "stratakv", "demo", "--json", "--no-progress", "--resume", fact.question]
    command += ["--directory", args.directory, "--ram", str(args.ram), "--dtype", first["dtype"]]
    command += ["--disk-limit", str(args.disk_limit)] if args.disk_limit is not None else []
    command += ["--model", args.model] if args.model else []
    with out.busy("waiting for the new process"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own
    if done.returncode != 0:
        raise CommandError(
            f"the second process failed with exit code {done.returncode}", "its message is above"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    report["right"] = fact.answered_by(report["answer"])
    # Resuming leaves the last token to compute: a forward pass needs at least one.
    report["reprefilled_tokens"] = max(first["session_tokens"] - report["covered_tokens"] - 1, 0)
    report["speedup"] = first["prefill_seconds"] / report["first_token_seconds"]
    return report


def _resume(args: argparse.Namespace, out: Output) -> int:
    """The second process: opens the session, answers, reports."""
    from stratakv.cli.engine import Driver, Interrupt, peak_rss_bytes, tiers_of
    from stratakv.cli.prompts import document_pieces

    give_large_blocks_back()
    loaded = load(find_model(args.model), args.dtype, out=out)
    _, question = document_pieces(loaded.tokenizer, "", args.resume)
    start = time.perf_counter()
    with (
        Interrupt() as interrupt,
        open_cache(
            loaded.model, args.directory, ram=args.ram, disk_limit=args.disk_limit, name=SESSION
        ) as cache,
    ):
        open_seconds = time.perf_counter() - start
        covered = cache.get_seq_length()
        known = saved_ids(args.directory, SESSION, ram=args.ram, disk_limit=args.disk_limit)
        driver = Driver(loaded, cache, interrupt=interrupt, out=out, chunk=args.chunk)
        answer = _ask(driver, [*known, *question])
        out.json(
            {
                "pid": os.getpid(),
                "load_seconds": loaded.load_seconds,
                "open_seconds": open_seconds,
                "first_token_seconds": answer["first_token_at"] - start,
                "covered_tokens": covered,
                "prefilled_tokens": answer["prefilled"],
                "question": args.resume,
                "answer": answer["text"],
                "tiers": tiers_of(cache).as_dict(),
                "disk_read_bytes": cache.stats()["disk"]["read_bytes"],
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
    return 0


def _ask(driver: Driver, ids: list[int]) -> dict[str, Any]:
    """One answer: its text, when its first token was there, and how many tokens came in."""
    read = driver.prefill(ids, quiet=True)
    tokens: list[int] = []
    first_token_at = time.perf_counter()
    for token in driver.decode(read.logits_V, ANSWER_TOKENS_MAX):
        if not tokens:
            first_token_at = time.perf_counter()
        tokens.append(token)
    text = driver.loaded.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return {"text": text, "first_token_at": first_token_at, "prefilled": read.tokens}


def _tell_second(first: dict[str, Any], out: Output) -> None:
    second = first["resume"]
    line(
        out,
        "process",
        f"{second['pid']} (the first was {first['pid']}), model loaded in "
        f"{format_seconds(second['load_seconds'])}",
    )
    line(
        out,
        "resumed",
        f"{format_count(second['covered_tokens'])} of {format_count(first['session_tokens'])} tokens from "
        f"the store; computed: {second['prefilled_tokens']}, the last one and the new question",
    )
    tell_answer(out, second["question"], second["answer"], right=second["right"])
    ratio = f"{second['speedup']:.0f} times" if second["speedup"] >= 10 else f"{second['speedup']:.1f} times"
    out.result()
    line(
        out,
        "first token",
        out.style.bold(
            f"{format_seconds(second['first_token_seconds'])} after opening the session, "
            f"{ratio} faster than the prefill ({format_seconds(first['prefill_seconds'])})"
        ),
    )
    rss = [process["peak_rss_bytes"] for process in (first, second)]
    if None not in rss:
        line(
            out,
            "peak RSS",
            f"{sizes.format_bytes(rss[0])} and {sizes.format_bytes(rss[1])}, model and torch included",
        )


def heading(out: Output, text: str) -> None:
    """A step's title."""
    out.result(("" if text.startswith("1") else "\n") + out.style.bold(text))


def line(out: Output, label: str, text: str) -> None:
    """A labelled line of the report."""
    out.result(f"   {out.style.dim(label.ljust(11))} {text}")


def tell_answer(out: Output, question: str, answer: str, *, right: bool) -> None:
    """A question, its answer, and whether it is right, in words."""
    verdict = out.style.good("right") if right else out.style.bad("WRONG")
    line(out, "question", question)
    line(out, "answer", f"{' '.join(answer.split())}  [{verdict}]")
