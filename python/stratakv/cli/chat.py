"""`stratakv chat --session NAME`: a conversation that outlives the process.

The session is saved after every turn, and the next day's first token needs no prefill. On a
terminal lines are edited with readline; from a pipe each line is a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stratakv.cli import options
from stratakv.cli.devices import Placement
from stratakv.cli.embedders import add_embedder_option, embedder_of
from stratakv.cli.errors import UsageError
from stratakv.cli.models import LoadedModel, find_model, give_large_blocks_back, load
from stratakv.cli.output import Output, format_count
from stratakv.cli.paths import check_directory
from stratakv.cli.prompts import notes_start, user_turn
from stratakv.cli.storage import check_name, has_session, open_selecting, saved_ids

if TYPE_CHECKING:
    import torch

    from stratakv import KeptPages, TieredCache
    from stratakv.cli.engine import Driver
    from stratakv.cli.recollection import Recollection
    from stratakv.engram import Memory

__all__ = ["configure", "run"]

HELP = """\
/stats       tokens of the conversation, and where its bytes lie
/fork NAME   keep a copy of the conversation as session NAME; this one goes on
/help        this
/exit        leave (Ctrl-D too); the session is kept"""
PROMPT = "> "
WHOLE_TOKENS = 1000
PAGES_SHARE = 8  # of the limits, which part is for the pages of memories


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `chat`."""
    parser.add_argument("--session", metavar="NAME", default="chat", help="its name (default: %(default)s)")
    options.add_budget_option(parser)
    options.add_look_option(parser)
    options.add_tier_options(parser, ram="256MiB")
    options.add_directory_option(parser)
    options.add_model_options(parser)
    options.add_device_options(parser)
    options.add_decoding_options(parser, max_new_tokens=256)
    parser.add_argument(
        "--memory",
        metavar="DIR",
        default=None,
        help="long-term memory: the model is shown what is known of --user; what is said is remembered",
    )
    parser.add_argument("--user", type=options.name, default=None, help="whose memories")
    parser.add_argument(
        "--whole",
        type=options.natural,
        metavar="TOKENS",
        default=WHOLE_TOKENS,
        help="how long recalled memories may be in a turn that are put whole, because they are longer than a "
        "line; 0 shortens them (default: %(default)s)",
    )
    add_embedder_option(parser)
    options.add_progress_option(parser)
    options.add_json_option(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Resumes or begins the session and talks until the input ends."""
    name = check_name(args.session)
    if (args.memory is None) != (args.user is None):
        raise UsageError("--memory and --user belong together", "memories are kept for each user apart")
    check_directory(args.directory, "--directory")
    if args.memory is not None:
        check_directory(args.memory, "--memory")
    source = find_model(args.model)
    placement = Placement.of(args)
    give_large_blocks_back()
    loaded = load(source, args.dtype, out=out, device=placement.device)
    limits = {"ram": args.ram, "disk_limit": args.disk_limit}
    with contextlib.ExitStack() as stack:
        recollection = None
        for_pages: dict[str, Any] = {}
        if args.memory is not None:
            from stratakv.cli.recollection import Recollection

            recollection = stack.enter_context(
                Recollection(
                    args.memory,
                    user=args.user,
                    session=name,
                    embedder=embedder_of(args.embedder),
                    whole_tokens=args.whole,
                    out=out,
                )
            )
            for_pages = {what: limit and limit // PAGES_SHARE for what, limit in limits.items()}
            limits = {what: limit and limit - for_pages[what] for what, limit in limits.items()}
        cache = stack.enter_context(
            open_selecting(
                loaded.model,
                args.directory,
                name=name,
                budget=args.budget,
                out=out,
                hot=placement.hot,
                **limits,
            )
        )
        pages = None
        if recollection is not None:
            behind = notes_start(loaded.tokenizer)
            pages = stack.enter_context(recollection.keep_pages(loaded.model, behind=behind, **for_pages))
        chat = Chat(loaded, cache, args, out, limits=limits, recollection=recollection, pages=pages)
        chat.ids = saved_ids(args.directory, name, **limits)
        chat.greet()
        return chat.talk()


class Chat:
    """One conversation: a loaded model, its cache, and the loop over the user's lines."""

    def __init__(
        self,
        loaded: LoadedModel,
        cache: TieredCache,
        args: argparse.Namespace,
        out: Output,
        *,
        limits: dict[str, Any],
        recollection: Recollection | None = None,
        pages: KeptPages | None = None,
    ) -> None:
        self.loaded = loaded
        self.cache = cache
        self.name: str = args.session
        self.args = args
        self.out = out
        self.limits = limits  # of the cache
        self.recollection = recollection
        self.pages = pages
        self.ids: list[int] = []  # the conversation's, the answers included
        self.interactive = sys.stdin.isatty()

    def greet(self) -> None:
        """Says which session this is."""
        if not self.interactive:
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() edits lines once it is imported
        what = f"resumed, {format_count(len(self.ids))} tokens, no prefill" if self.ids else "new"
        self.out.note(
            f"session {self.name} ({what}), {self.loaded.name}, {self.loaded.dtype}. /help for commands."
        )

    def talk(self) -> int:
        """Turn after turn, until the input ends, /exit, or Ctrl-C at the prompt."""
        while True:
            try:
                line = self._read_line()
            except KeyboardInterrupt:
                self.out.note("")
                return 130
            if line is None or line.strip() == "/exit":
                return 0
            if line.startswith("/"):
                self._command(line.strip())
            elif line.strip():
                self._turn(line.strip())

    def _read_line(self) -> str | None:
        if not self.interactive:
            return sys.stdin.readline() or None
        try:
            return input(PROMPT)
        except EOFError:
            self.out.note("")
            return None

    def _command(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command == "/help":
            self.out.note(HELP)
        elif command == "/stats":
            self._stats()
        elif command == "/fork" and argument.strip():
            self._fork(argument.strip())
        elif command == "/fork":
            self.out.note("/fork needs the copy's name: /fork NAME")
        else:
            self.out.note(f"{command} is no command; /help lists them")

    def _stats(self) -> None:
        from stratakv.cli.engine import tiers_of

        window = f" of {format_count(self.loaded.window)}" if self.loaded.window else ""
        self.out.note(f"{format_count(len(self.ids))}{window} tokens; {tiers_of(self.cache).describe()}")

    def _fork(self, name: str) -> None:
        from stratakv.cli.errors import explain

        try:
            self.cache.save(self._new_name(name))
        except Exception as error:  # a bad name must not end the conversation
            self.out.error(*explain(error))
        else:
            self.out.note(f"kept a copy as session {name}")

    def _new_name(self, name: str) -> str:
        if has_session(self.args.directory, check_name(name), **self.limits):
            raise UsageError(f"there is a session {name} already", "give the copy another name")
        return name

    def _turn(self, text: str) -> None:
        from stratakv.cli.engine import Driver, Interrupt, StoppedError

        held = int(self.cache.get_seq_length())
        prompt, notes = (text, []) if self.recollection is None else self.recollection.put_before(text)
        start = time.perf_counter()
        with Interrupt() as interrupt:
            driver = Driver(
                self.loaded,
                self.cache,
                interrupt=interrupt,
                out=self.out,
                chunk=self.args.chunk,
                show=self.args.progress,
            )
            try:
                ids, spliced = self._put_notes(driver, notes, prompt)
                read = driver.prefill_question(ids, look=self.args.look)
            except StoppedError:
                self._take_back()
                return
            seconds = time.perf_counter() - start
            tokens, answer = self._stream(driver, read.logits_V)
        self.ids = ids + tokens
        self.cache.save(self.name)
        recalled: dict[str, object] = {}
        if self.recollection is not None:
            recalled["recalled"] = self.recollection.shown
            self.recollection.observe(text, answer)
        if self.out.json_mode:
            self.out.json(
                {
                    "question": text,
                    "answer": answer,
                    "session": self.name,
                    "tokens": {
                        "total": len(self.ids),
                        "prefilled": len(ids) - held - spliced,
                        "spliced": spliced,
                        "answer": len(tokens),
                    },
                    "seconds": {"prefill": seconds},
                    **recalled,
                }
            )
        if interrupt.requested:
            self.out.note("(answer stopped; what there is of it is kept)")

    def _put_notes(self, driver: Driver, notes: Sequence[Memory], prompt: str) -> tuple[list[int], int]:
        """The conversation's ids with the user's turn, and how many of them were spliced in already.

        Memories that are put whole come first in the turn, each from its pages where these are kept.

        Raises:
            StoppedError: Ctrl-C.
        """
        from stratakv.engram.context import note_of

        texts = [*map(note_of, notes), prompt]
        opening, *whole, rest, closing = user_turn(self.loaded.tokenizer, texts, is_first=not self.ids)
        ids, spliced = self.ids + opening, 0
        for memory, note in zip(notes, whole, strict=True):
            if self.pages is not None:
                if self.cache.get_seq_length() < len(ids):
                    driver.prefill(ids, quiet=True)
                spliced += self.pages.put(self.cache, note, id=memory.id).spliced
            ids = ids + note
        return ids + rest + closing, spliced

    def _stream(self, driver: Driver, logits_V: torch.Tensor) -> tuple[list[int], str]:
        """Shows the answer while it is made; its tokens and its text."""
        from stratakv.cli.engine import TextStream

        stream, tokens, pieces = TextStream(self.loaded.tokenizer), [], []
        for token in driver.decode(logits_V, self.args.max_new_tokens):
            tokens.append(token)
            pieces.append(stream.push(token))
            self.out.result(pieces[-1], end="")
        pieces.append(stream.finish())
        self.out.result(pieces[-1])
        return tokens, "".join(pieces).strip()

    def _take_back(self) -> None:
        """Removes a turn whose prefill was stopped: the conversation is as it was before."""
        self.cache.crop(min(len(self.ids) - self.cache.get_seq_length(), 0))
        self.out.note("(turn taken back)")
