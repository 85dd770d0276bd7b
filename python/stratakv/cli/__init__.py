"""The `stratakv` command.

`main` knows the commands' names and one line about each; a command's own module is imported
only when that command is asked for, and torch only when it runs, so that `--help` is instant.
Results go to stdout, everything else to stderr; with `--json` an error is a line of JSON on stdout too.
Exit codes: 0 done, 1 failed, 2 used wrongly, 130 stopped with Ctrl-C, 141 the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from stratakv.cli.errors import UsageError, exit_code_of, explain
from stratakv.cli.output import Output
from stratakv.cli.parsing import Parser

__all__ = ["main"]

COMMANDS = {
    "demo": "see a real model read a long text within a RAM limit, stop, and resume without prefill",
    "ask": "answer a question about files; asking again about the same files needs no prefill",
    "chat": "talk to a model; the session is kept after every turn",
    "sessions": "list, show, fork, remove, verify and collect stored sessions",
    "memory": "remember, recall, forget, export and serve what lasts between sessions",
    "train": "train a language model with hyper-connections on text files",
    "eval": "how well a model finds and follows what stands in texts of any length (RULER's tasks)",
    "bench": "decode speed beside transformers' own cache, on this machine",
    "doctor": "what this machine has, and how fast its memory and disk are",
}

EPILOG = "Start with `stratakv demo`. `stratakv COMMAND --help` describes one command."


class Command(Protocol):
    """What each command's module offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments."""

    def run(self, args: argparse.Namespace, out: Output) -> int:
        """Does it; returns the exit code."""


def build_parser(chosen: str | None) -> Parser:
    """The parser of all commands, with the arguments of the chosen one only."""
    parser = Parser(
        prog="stratakv",
        description="A KV cache in tiers: device, RAM, disk. Long contexts that outlive the process.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            _load(name).configure(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code."""
    _open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        build_parser(None).print_help(sys.stderr)
        return 2
    # Mistakes in the command line are told as it asks for, so these two are looked for before it is parsed.
    out = Output(json_mode="--json" in arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: out.warn(str(message))
        return _run(arguments, out, debug="--debug" in arguments)


def _run(arguments: list[str], out: Output, *, debug: bool) -> int:
    """Runs the command and turns what goes wrong into a line and an exit code."""
    try:
        args = _parse(arguments)
        code = _load(args.command).run(args, out)
        out.flush()
    except KeyboardInterrupt:
        _tell(lambda: out.stopped("stopped"))
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, hint = explain(error)
        _tell(lambda: out.fail(message, hint))
        return exit_code_of(error)
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    chosen = next((word for word in arguments if word in COMMANDS), None)
    args, unknown = build_parser(chosen).parse_known_args(arguments)
    if unknown:
        raise UsageError(f"there is no {' '.join(unknown)} here", f"see `stratakv {args.command} --help`")
    return args


def _tell(how: Callable[[], None]) -> None:
    """Says how it ended, if anybody reads that."""
    try:
        how()
    except OSError:
        _drop_stdout()


def _load(name: str) -> Command:
    return cast("Command", importlib.import_module(f"stratakv.cli.{name}"))


class _Version(argparse.Action):
    """Tells the version; looking it up takes longer than all of `--help`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"stratakv {_version()}\n")
        parser.exit()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("stratakv")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _open_closed_streams() -> None:
    """Gives a process that was started with closed streams ones that hold nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _drop_stdout() -> None:
    """Keeps the interpreter from writing to the closed pipe, and complaining, at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
