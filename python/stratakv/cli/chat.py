"""`stratakv chat --session NAME`: a conversation that outlives the process.

The session is saved after every turn, and the next day's first token needs no prefill. On a
terminal lines are edited with readline; from a pipe each line is a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from stratakv.cli import options
from stratakv.cli.devices import Placement
from stratakv.cli.errors import UsageError
from stratakv.cli.models import LoadedModel, find_model, give_large_blocks_back, load
from stratakv.cli.output import Output, format_count
from stratakv.cli.storage import check_name, open_selecting, saved_ids

if TYPE_CHECKING:
    import torch

    from stratakv import TieredCache
    from stratakv.cli.engine import Driver
    from stratakv.cli.recollection import Recollection

__all__ = ["configure", "run"]

HELP = """\
/stats       tokens of the conversation, and where its bytes lie
/fork NAME   keep a copy of the conversation as session NAME; this one goes on
/help        this
/exit        leave (Ctrl-D too); the session is kept"""
PROMPT = "> "


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
    parser.add_argument("--user", default=None, help="whose memories")
    options.add_progress_option(parser)
    options.add_json_option(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Resumes or begins the session and talks until the input ends."""
    name = check_name(args.session)
    if (args.memory is None) != (args.user is None):
        raise UsageError("--memory and --user belong together", "memories are kept for each user apart")
    source = find_model(args.model)
    placement = Placement.of(args)
    give_large_blocks_back()
    loaded = load(source, args.dtype, out=out, device=placement.device)
    limits = {"ram": args.ram, "disk_limit": args.disk_limit}
    with contextlib.ExitStack() as stack:
        recollection = None
        if args.memory is not None:
            from stratakv.cli.recollection import Recollection

            recollection = stack.enter_context(
                Recollection(args.memory, user=args.user, session=name, out=out)
            )
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
        chat = Chat(loaded, cache, args, out, recollection)
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
        recollection: Recollection | None = None,
    ) -> None:
        self.loaded = loaded
        self.cache = cache
        self.name: str = args.session
        self.args = args
        self.out = out
        self.recollection = recollection
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
            self.cache.save(check_name(name))
        except Exception as error:  # a bad name must not end the conversation
            self.out.error(*explain(error))
        else:
            self.out.note(f"kept a copy as session {name}")

    def _turn(self, text: str) -> None:
        from stratakv.cli.engine import Driver, Interrupt, StoppedError
        from stratakv.cli.prompts import first_turn, next_turn

        turn = next_turn if self.ids else first_turn
        prompt = text if self.recollection is None else self.recollection.put_before(text)
        ids = self.ids + turn(self.loaded.tokenizer, prompt)
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
                read = driver.prefill_question(ids, look=self.args.look)
            except StoppedError:
                self._take_back()
                return
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
                    "tokens": {"total": len(self.ids), "prefilled": read.tokens, "answer": len(tokens)},
                    "seconds": {"prefill": read.seconds},
                    **recalled,
                }
            )
        if interrupt.requested:
            self.out.note("(answer stopped; what there is of it is kept)")

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
