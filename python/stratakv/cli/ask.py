"""`stratakv ask FILE... "question"`: an answer out of files.

The files' pages are kept under the identity of their tokens. Asking again about the same files,
or about more files that begin with the same ones, computes only what is new.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli import options
from stratakv.cli.devices import Placement
from stratakv.cli.documents import Document, Lines
from stratakv.cli.errors import UsageError
from stratakv.cli.files import read_texts
from stratakv.cli.models import LoadedModel, find_model, give_large_blocks_back, load
from stratakv.cli.output import Output, format_count, format_seconds
from stratakv.cli.paths import check_directory, check_output
from stratakv.cli.storage import document_name, open_selecting

if TYPE_CHECKING:
    from stratakv import TieredCache
    from stratakv.cli.engine import Driver
    from stratakv.cli.sources import Trace

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ask`."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="texts to read, or folders of them; - is standard input"
    )
    parser.add_argument("question", help="what to ask about it")
    parser.add_argument(
        "--sources",
        type=options.natural,
        default=3,
        metavar="N",
        help="name up to so many places that the answer was read from (default: %(default)s)",
    )
    parser.add_argument(
        "--explain",
        default=None,
        metavar="FILE",
        help="an HTML page of where each word of the answer came from",
    )
    options.add_budget_option(parser)
    options.add_look_option(parser)
    options.add_tier_options(parser, ram="256MiB")
    options.add_directory_option(parser)
    options.add_model_options(parser)
    options.add_device_options(parser)
    options.add_decoding_options(parser, max_new_tokens=256)
    options.add_progress_option(parser)
    options.add_json_option(parser)


@dataclass(frozen=True)
class Prompt:
    """The token ids of the document and of the question, and the session that keeps the first."""

    document: Document
    context: list[int]
    question: list[int]
    session: str

    def trace(self, tokenizer: Any) -> Trace | None:
        """What follows the answer back to the document; None where the tokenizer does not help."""
        from stratakv.cli.sources import Trace

        offsets = self.document.offsets(tokenizer)
        if offsets is None:
            return None
        # The document's ids are the last of the context's.
        return Trace(self.document, offsets, len(self.context) - len(offsets))


def run(args: argparse.Namespace, out: Output) -> int:
    """Reads what is new of the files, answers, keeps the pages."""
    document = _document(args)
    source = find_model(args.model)

    from stratakv.cli.engine import Driver, Interrupt, StoppedError

    placement = Placement.of(args)
    give_large_blocks_back()
    loaded = load(source, args.dtype, out=out, device=placement.device)
    prompt = _prompt(loaded, document, args)
    with (
        Interrupt() as interrupt,
        open_selecting(
            loaded.model,
            args.directory,
            budget=args.budget,
            out=out,
            ram=args.ram,
            disk_limit=args.disk_limit,
            name=prompt.session,
            hot=placement.hot,
        ) as cache,
    ):
        if cache.attachment is None:
            _warn_if_long(loaded, prompt, args.max_new_tokens, out)
        settings = {"chunk": args.chunk, "show": args.progress, "keep": cache.save}
        driver = Driver(loaded, cache, interrupt=interrupt, out=out, **settings)
        try:
            report = _answer(driver, cache, prompt, args)
        except StoppedError as stopped:
            out.stopped(
                f"stopped: {format_count(stopped.done)} of {format_count(stopped.total)} tokens are kept as "
                f"session {prompt.session}",
                "the same command goes on from there",
            )
            return 130
        _tell(report | placement.described(cache), cache, out)
        return 130 if interrupt.requested else 0


def _document(args: argparse.Namespace) -> Document:
    """The files' text; what is wrong with the arguments is said before a model is loaded."""
    missing = [file for file in args.files if file != "-" and not Path(file).exists()]
    if missing:
        raise UsageError(f"no such file: {missing[0]}", "files come first, the question last and in quotes")
    if not args.question.strip():
        raise UsageError("the question is empty", "give it last, in quotes")
    check_directory(args.directory, "--directory")
    if args.explain is not None:
        check_output(args.explain, "--explain")
    document = Document(read_texts(args.files))
    if not any(file.text.strip() for file in document.files):
        raise UsageError("the files hold no text", "give files or folders that hold some")
    return document


def _prompt(loaded: LoadedModel, document: Document, args: argparse.Namespace) -> Prompt:
    from stratakv.cli.prompts import document_pieces

    context, question = document_pieces(loaded.tokenizer, document.text, args.question)
    # Pages that are read whole are other pages: a document may be kept in both ways.
    kept = f"{loaded.name} {loaded.dtype}" + (" selecting" if args.budget else "")
    return Prompt(document, context, question, document_name(args.files, context, kept))


def _warn_if_long(loaded: LoadedModel, prompt: Prompt, max_new_tokens: int, out: Output) -> None:
    length = len(prompt.context) + len(prompt.question) + max_new_tokens
    if loaded.window is not None and length > loaded.window:
        out.warn(
            f"text and answer take up to {format_count(length)} tokens, and {loaded.name} was trained "
            f"on {format_count(loaded.window)}: all of them are read, but the answer may be poor"
        )


def _answer(driver: Driver, cache: TieredCache, prompt: Prompt, args: argparse.Namespace) -> dict[str, Any]:
    """Makes the cache cover the prompt, saves the document, streams the answer."""
    from stratakv.cli.engine import TextStream

    loaded, out = driver.loaded, driver.out
    traced = args.sources > 0 or args.explain is not None
    trace = prompt.trace(loaded.tokenizer) if traced and cache.attachment is not None else None
    start = time.perf_counter()
    whole_prompt = prompt.context + prompt.question
    reused = min(cache.match(whole_prompt), len(prompt.context))
    context_seconds = 0.0
    # A resumed session holds back its last token: one to compute is a document that is known.
    if reused < len(prompt.context) - 1:
        context_seconds = driver.prefill(prompt.context).seconds
        cache.save()
    if trace is not None:
        _ask_where_it_looks(cache, len(whole_prompt) + args.max_new_tokens)
    rest = driver.prefill_question(whole_prompt, look=args.look, quiet=True)
    stream, pieces, num_tokens, first_token_seconds = TextStream(loaded.tokenizer), [], 0, None
    for token in driver.decode(rest.logits_V, args.max_new_tokens):
        if trace is not None:
            trace.note(cache)
        first_token_seconds = first_token_seconds or time.perf_counter() - start
        num_tokens += 1
        pieces.append(stream.push(token))
        out.result(pieces[-1], end="")
    pieces.append(stream.finish())
    out.result(pieces[-1])
    if args.explain is not None:
        _explain(args, trace, pieces, out)
    return {
        "answer": "".join(pieces).strip(),
        "model": loaded.name,
        "dtype": loaded.dtype,
        "session": prompt.session,
        "sources": [] if trace is None else [source.as_dict() for source in trace.sources(args.sources)],
        "tokens": {
            "context": len(prompt.context),
            "question": len(prompt.question),
            "reused": reused,
            "prefilled": len(whole_prompt) - reused,
            "answer": num_tokens,
        },
        "reading": {**reading(cache, args.budget), "focus_blocks": len(cache.focused)},
        "seconds": {
            "load": loaded.load_seconds,
            "prefill": context_seconds + rest.seconds,
            "first_token": first_token_seconds,
            "total": time.perf_counter() - start,
        },
    }


def _ask_where_it_looks(cache: TieredCache, tokens: int) -> None:
    """Short texts are read whole, and looked at block by block all the same: their answers have sources."""
    selection = cache.selection
    if selection is not None and cache.reads_all_of(tokens):
        cache.select(
            replace(
                selection,
                budget=max(selection.budget, 2 * tokens),
                dense_below=0,
                unread=1.0,
                critical_fraction=1.0,
            )
        )


def _explain(args: argparse.Namespace, trace: Trace | None, pieces: list[str], out: Output) -> None:
    from stratakv.cli.heat_map import write_page

    if trace is None or not trace.rows:
        out.warn(f"{args.explain} was not written: steps that read everything do not tell where they look")
        return
    write_page(args.explain, trace, pieces, args.question, max(args.sources, 1))


def reading(cache: TieredCache, budget: int | None) -> dict[str, Any]:
    """What the last step read: its budget, tokens per head, and the estimated share of the mass it left.

    Of a step that read everything, only how much that was.
    """
    stats = cache.stats()["cache"]
    if stats.get("read_tokens") is None:
        return {"budget": budget, "tokens": stats["tokens"], "unread_share": 0.0}
    return {
        "budget": budget,
        "tokens": round(stats["read_tokens"]),
        "unread_share": round(stats["unread_share"], 4),
    }


def _tell(report: dict[str, Any], cache: TieredCache, out: Output) -> None:
    from stratakv.cli.engine import peak_rss_bytes, tiers_of

    tiers = tiers_of(cache)
    tokens, seconds = report["tokens"], report["seconds"]
    if out.json_mode:
        out.json({**report, "tiers": tiers.as_dict(), "peak_rss_bytes": peak_rss_bytes()})
        return
    if out.stderr.isatty():
        for source in report["sources"]:
            lines = Lines(source["file"], source["first_line"], source["last_line"])
            out.note(out.note_style.dim(f"read from {lines} ({100 * source['weight']:.0f} %)"))
        parts = [
            f"{format_count(tokens['reused'])} tokens reused",
            f"{format_count(tokens['prefilled'])} read in {format_seconds(seconds['prefill'])}",
            f"steps of {format_count(report['reading']['tokens'])} tokens",
            tiers.describe(),
        ]
        out.note(out.note_style.dim(", ".join(parts)))
