"""`stratakv sessions`: what is stored, and the care of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stratakv import sizes
from stratakv.cli import options
from stratakv.cli.errors import CommandError, UsageError
from stratakv.cli.output import Output, format_age, format_count, table
from stratakv.cli.storage import check_name, open_store

if TYPE_CHECKING:
    from stratakv._native import Store

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `sessions` and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="every session: size, tokens, age, model")
    show = actions.add_parser("show", help="one session in detail")
    show.add_argument("name")
    fork = actions.add_parser("fork", help="give a session a second name; copies no page")
    fork.add_argument("source", metavar="SRC")
    fork.add_argument("target", metavar="DST")
    remove = actions.add_parser("rm", help="remove sessions")
    remove.add_argument("names", nargs="+", metavar="NAME")
    remove.add_argument("--yes", "-y", action="store_true", help="do not ask")
    verify = actions.add_parser("verify", help="read and check every page of one session, or of all")
    verify.add_argument("name", nargs="?")
    actions.add_parser("gc", help="delete pages that no session uses")
    for action in actions.choices.values():
        options.add_directory_option(action)
        options.add_json_option(action)
        # Also after the action; SUPPRESS keeps the outer parser's value.
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace, out: Output) -> int:
    """Runs one action."""
    action = {"list": _list, "show": _show, "fork": _fork, "rm": _remove, "verify": _verify, "gc": _gc}
    return action[args.action](args, out)


@contextlib.contextmanager
def _store(args: argparse.Namespace, out: Output, *, read_only: bool) -> Iterator[Store]:
    store = open_store(args.directory, read_only=read_only)
    try:
        for sentence in store.recovery_report():
            out.warn(sentence)
        yield store
    finally:
        store.close()


def _list(args: argparse.Namespace, out: Output) -> int:
    with _store(args, out, read_only=True) as store:
        sessions = store.sessions()
    if out.json_mode:
        out.json(sessions)
        return 0
    if not sessions:
        out.note(f"no sessions in {args.directory}; `stratakv chat` and `stratakv ask` make some")
        return 0
    now = time.time()
    rows = [
        [
            session["name"],
            format_count(session["tokens"]),
            sizes.format_bytes(session["bytes"]),
            sizes.format_bytes(session["shared_bytes"]),
            format_age(now - session["last_used"]),
            session["model"],
        ]
        for session in sessions
    ]
    lines = table(["NAME", "TOKENS", "SIZE", "SHARED", "USED", "MODEL"], rows, right=(1, 2, 3))
    out.result(out.style.bold(lines[0]))
    for line in lines[1:]:
        out.result(line)
    return 0


def _show(args: argparse.Namespace, out: Output) -> int:
    with _store(args, out, read_only=True) as store:
        session = store.session(args.name)
    if out.json_mode:
        out.json(session)
        return 0
    now = time.time()
    facts = {
        "name": session["name"],
        "model": session["model"],
        "tokens": format_count(session["tokens"])
        + (f" in {session['rows']} rows" if session["rows"] > 1 else ""),
        "size": sizes.format_bytes(session["bytes"]),
        "shared": sizes.format_bytes(session["shared_bytes"]),
        "missing pages": format_count(session["missing_pages"]),
        "created": _moment(session["created"], now),
        "last used": _moment(session["last_used"], now),
        **{f"setting {key}": value for key, value in sorted(session["settings"].items())},
    }
    width = max(map(len, facts))
    for label, value in facts.items():
        out.result(f"{out.style.dim(label.ljust(width))}  {value}")
    return 0


def _fork(args: argparse.Namespace, out: Output) -> int:
    target = check_name(args.target)
    with _store(args, out, read_only=False) as store:
        _refuse_existing(store, target)
        store.fork_session(args.source, target)
        store.flush()
    if out.json_mode:
        out.json({"source": args.source, "target": target})
    else:
        out.result(f"{target} is now a second name of {args.source}'s pages")
    return 0


def _remove(args: argparse.Namespace, out: Output) -> int:
    with _store(args, out, read_only=False) as store:
        known = {session["name"]: session for session in store.sessions()}
        unknown = [name for name in args.names if name not in known]
        if unknown:
            raise CommandError(
                f"no session {', '.join(unknown)}", "`stratakv sessions list` shows the names that exist"
            )
        if not args.yes and not _confirmed(args.names, known, out):
            out.stopped("nothing removed")
            return 1
        for name in args.names:
            store.remove_session(name)
        store.flush()
    if out.json_mode:
        out.json({"removed": args.names})
    else:
        out.result(f"removed {', '.join(args.names)}; `stratakv sessions gc` gives the space back")
    return 0


def _confirmed(names: list[str], known: dict[str, dict[str, Any]], out: Output) -> bool:
    """Asks on a terminal; where nobody can answer, not saying --yes is a mistake."""
    if not sys.stdin.isatty():
        raise UsageError("removing is not confirmed", "give --yes where there is no terminal to ask on")
    tokens = sum(known[name]["tokens"] for name in names)
    out.stderr.write(f"remove {', '.join(names)} ({format_count(tokens)} tokens)? [y/N] ")
    out.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _verify(args: argparse.Namespace, out: Output) -> int:
    with _store(args, out, read_only=True) as store:
        report = store.verify(args.name)
    if out.json_mode:
        out.json(report)
    else:
        for problem in report["problems"]:
            out.result(problem)
        out.result(
            f"{format_count(report['pages'])} pages, {sizes.format_bytes(report['bytes'])} read: "
            f"{report['corrupt']} corrupt, {report['missing']} missing"
        )
    return 1 if report["corrupt"] or report["missing"] else 0


def _gc(args: argparse.Namespace, out: Output) -> int:
    with _store(args, out, read_only=False) as store:
        report = store.gc()
        store.flush()
    if out.json_mode:
        out.json(report)
    else:
        out.result(
            f"freed {sizes.format_bytes(report['freed_bytes'])}, {format_count(report['freed_pages'])} pages"
        )
    return 0


def _refuse_existing(store: Store, name: str) -> None:
    if any(session["name"] == name for session in store.sessions()):
        raise CommandError(
            f"there is a session {name} already", f"remove it first: stratakv sessions rm {name}"
        )


def _moment(seconds: float, now: float) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    age = format_age(now - seconds)
    return f"{stamp} ({age})" if age == "just now" else f"{stamp} ({age} ago)"
