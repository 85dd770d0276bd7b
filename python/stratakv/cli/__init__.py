"""The `stratakv` command.

`main` knows the commands' names and one line about each; a command's own module is imported
only when that command is asked for, and torch only when it runs, so that `--help` is instant.
Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly,
130 stopped with Ctrl-C, 141 the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Protocol, cast

from stratakv.cli.errors import CommandError, explain
from stratakv.cli.output import Output

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


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the chosen one only."""
    parser = argparse.ArgumentParser(
        prog="stratakv",
        description="A KV cache in tiers: device, RAM, disk. Long contexts that outlive the process.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"stratakv {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            _load(name).configure(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if word in COMMANDS), None)
    args = build_parser(chosen).parse_args(arguments)
    out = Output(json_mode=getattr(args, "json", False))
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: out.warn(str(message))
        return _run(args, out)


def _run(args: argparse.Namespace, out: Output) -> int:
    """Runs the command and turns what goes wrong into a line and an exit code."""
    try:
        code = _load(args.command).run(args, out)
        out.flush()
    except KeyboardInterrupt:
        out.note("stopped")
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        message, hint = explain(error)
        out.error(message, hint)
        return error.exit_code if isinstance(error, CommandError) else 1
    return code


def _load(name: str) -> Command:
    return cast("Command", importlib.import_module(f"stratakv.cli.{name}"))


def _version() -> str:
    try:
        return metadata.version("stratakv")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _drop_stdout() -> None:
    """Keeps the interpreter from writing to the closed pipe, and complaining, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
