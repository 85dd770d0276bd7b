"""`stratakv memory`: what is remembered between sessions, and the care of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv import sizes
from stratakv.cli import options
from stratakv.cli.embedders import add_embedder_option, embedder_of
from stratakv.cli.errors import CommandError, UsageError
from stratakv.cli.output import Output, format_age, format_count, table
from stratakv.cli.paths import check_directory, check_output

if TYPE_CHECKING:
    from stratakv.engram import AssistantMemory, Memory

__all__ = ["check_memories", "configure", "open_memory", "place_of", "run"]

DEFAULT_DIRECTORY = "memory"
KINDS = ("instruction", "identity", "preference", "decision", "person", "project", "event", "note")
# Actions that make vectors, and so open the memory with its embedder; and those that make a directory.
EMBEDDING = frozenset({"remember", "recall", "import", "export", "serve", "reembed"})
CREATING = frozenset({"remember", "import", "serve"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `memory` and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _configure_writing(actions)
    _configure_reading(actions)
    _configure_removing(actions)
    for name, action in actions.choices.items():
        action.add_argument(
            "--directory",
            metavar="DIR",
            default=DEFAULT_DIRECTORY,
            help="where memories are kept (default: %(default)s)",
        )
        action.add_argument(
            "--database",
            metavar="URL",
            help="keep them in PostgreSQL instead, as postgresql://user@host/name; --directory then has the "
            "audit log, and turns that wait",
        )
        if name not in ("erase", "import", "serve", "audit", "reembed"):
            _add_scope_options(action, whole=name in ("history", "export", "profile"))
        if name in EMBEDDING:
            add_embedder_option(action)
        options.add_json_option(action)
        # Also after the action; SUPPRESS keeps the outer parser's value.
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace, out: Output) -> int:
    """Runs one action."""
    from stratakv.errors import SettingsMismatchError, StrataError

    try:
        if args.action == "serve":
            from stratakv.cli.memory_serve import serve

            return serve(args, out)
        if args.action == "reembed":
            from stratakv.cli.memory_reembed import reembed

            return reembed(args, out)
        with open_memory(args, out) as memory:
            return _ACTIONS[args.action](memory, args, out)
    except SettingsMismatchError as error:
        raise CommandError(
            str(error),
            "--embedder names the first; --embedder none opens it, to be found by words; `stratakv memory "
            "reembed` makes the vectors anew",
        ) from error
    except StrataError:
        raise
    except ValueError as error:  # what an argument, or a line of a file, has to be
        raise UsageError(str(error), f"see `stratakv memory {args.action} --help`") from error


@contextlib.contextmanager
def open_memory(
    args: argparse.Namespace, out: Output, *, background: bool = False
) -> Iterator[AssistantMemory]:
    """The memory that the arguments name.

    Raises:
        UsageError: there is none, and the action makes none.
    """
    from stratakv.engram import AssistantMemory, Policy

    check_memories(args)
    in_files = args.database is None
    embeds = args.action in EMBEDDING
    policy = Policy(**dict(getattr(args, "policy", None) or ()))
    with warnings.catch_warnings():
        if args.action not in EMBEDDING:
            warnings.filterwarnings("ignore", message=".*opened without an embedder.*")
        with out.busy("opening the memory"):
            memory = AssistantMemory.open(
                args.directory if in_files else args.database,
                directory=None if in_files else args.directory,
                embedder=embedder_of(args.embedder) if embeds else None,
                policy=policy,
                background=background,
            )
    with memory:
        yield memory


def check_memories(args: argparse.Namespace) -> None:
    """Refuses a directory that can't be one, or is not there for an action that makes none.

    Raises:
        UsageError: it is refused.
    """
    check_directory(args.directory, "--directory")
    if args.database is None and args.action not in CREATING and not Path(args.directory).is_dir():
        raise UsageError(
            f"no such directory: {args.directory}",
            "`stratakv memory remember` makes it; --directory names the one that the memories are in",
        )


def place_of(args: argparse.Namespace) -> str:
    """Where memories are, for a message: a database's address may have a password."""
    return args.directory if args.database is None else "the database"


def _configure_writing(actions: Any) -> None:
    remember = actions.add_parser("remember", help="store a memory; prints its number")
    remember.add_argument("text", help="- reads it from standard input")
    remember.add_argument(
        "--kind", choices=KINDS, help="instructions, identity and preferences are in the profile"
    )
    remember.add_argument("--source", type=options.name, help="where it came from")
    remember.add_argument("--author", type=options.name, help="who said it")
    remember.add_argument("--replaces", type=options.positive, metavar="ID", help="the memory it supersedes")
    remember.add_argument("--valid-from", type=_moment, metavar="TIME", help="from when it is true")
    _add_policy_option(remember)
    import_ = actions.add_parser("import", help="add what `export` wrote")
    import_.add_argument("file")
    _add_policy_option(import_)
    reembed = actions.add_parser(
        "reembed",
        help="make all vectors anew, by another embedder or where they are missing; goes on where it was",
    )
    options.add_progress_option(reembed)
    serve = actions.add_parser("serve", help="a Model Context Protocol server on stdin and stdout")
    serve.add_argument("--user", type=options.name, required=True, help="whose memories it serves")
    serve.add_argument("--agent", type=options.name, help="whose in particular")
    serve.add_argument("--project", type=options.name, help="what they belong to")
    _add_policy_option(serve)


def _configure_reading(actions: Any) -> None:
    recall = actions.add_parser("recall", help="the memories that answer a query best")
    recall.add_argument("query")
    amount = recall.add_mutually_exclusive_group()
    amount.add_argument("-k", type=options.positive, metavar="N", help="how many (default: 5)")
    amount.add_argument(
        "--tokens", type=options.positive, metavar="N", help="as many as fit into so many tokens"
    )
    recall.add_argument("--as-of", type=_moment, metavar="TIME", help="what was true then")
    listing = actions.add_parser("list", help="all memories, the oldest first")
    listing.add_argument("--kind", choices=(*KINDS, "turn"))
    listing.add_argument("--past", action="store_true", help="what was superseded or has ended, too")
    listing.add_argument("--as-of", type=_moment, metavar="TIME", help="what was true then")
    history = actions.add_parser("history", help="all versions of a memory")
    history.add_argument("id", type=options.positive, metavar="ID")
    export = actions.add_parser("export", help="write all of a user's memories as JSON Lines")
    export.add_argument("file")
    actions.add_parser("stats", help="how many there are, and what they take")
    profile = actions.add_parser("profile", help="what goes into every prompt")
    profile.add_argument(
        "--tokens", type=options.natural, default=300, metavar="N", help="(default: %(default)s)"
    )
    audit = actions.add_parser("audit", help="who read and wrote what, without texts")
    audit.add_argument("--user", type=options.name, help="of this user only")
    audit.add_argument("--last", type=options.positive, metavar="N", help="the newest only")


def _configure_removing(actions: Any) -> None:
    forget = actions.add_parser("forget", help="erase memories from every file")
    forget.add_argument("ids", nargs="*", type=options.positive, metavar="ID")
    forget.add_argument("--everything", action="store_true", help="all that the scope covers")
    forget.add_argument("--yes", "-y", action="store_true", help="do not ask")
    erase = actions.add_parser("erase", help="erase everything of a user from every file")
    erase.add_argument("user", type=options.name, metavar="USER")
    erase.add_argument("--yes", "-y", action="store_true", help="do not ask")


def _add_scope_options(parser: argparse.ArgumentParser, *, whole: bool) -> None:
    parser.add_argument("--user", type=options.name, required=True, help="whose memories")
    if not whole:
        parser.add_argument("--session", type=options.name, help="the conversation that they are from")
    parser.add_argument("--agent", type=options.name, help="whose in particular")
    parser.add_argument("--project", type=options.name, help="what they belong to")


def _add_policy_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        action="append",
        type=_policy,
        metavar="KIND=ACTION",
        help="refuse, mask or store a kind: private_key, api_key, password, card, iban, email, phone",
    )


def _policy(text: str) -> tuple[str, str]:
    """`card=store`, for argparse."""
    from stratakv.engram.policy import ACTIONS, Policy

    kind, _, action = text.partition("=")
    kinds = Policy().actions()
    if kind not in kinds or action not in ACTIONS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: accepted are KIND=ACTION with {', '.join(kinds)} and {', '.join(ACTIONS)}"
        )
    return kind, action


def _moment(text: str) -> datetime:
    """A time in ISO 8601, local unless it has a zone, for argparse."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as 2024-05-06 or 2024-05-06T12:30"
        ) from None
    return time if time.tzinfo else time.astimezone()


def _scope(args: argparse.Namespace) -> dict[str, Any]:
    names = ("user", "agent", "project", "session")
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def _remember(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    text = sys.stdin.read().strip() if args.text == "-" else args.text
    told: dict[str, Any] = {
        "metadata": {"kind": args.kind} if args.kind else None,
        "source": args.source,
        "author": args.author,
        "valid_from": args.valid_from,
    }
    if args.replaces is None:
        number = memory.remember(text, **_scope(args), **told)
    else:
        number = memory.update(args.replaces, text, **_scope(args), **told)
    if out.json_mode:
        out.json({"id": number})
    else:
        out.result(f"{number}")
    return 0


def _recall(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    found = memory.recall(args.query, **_scope(args), k=args.k, tokens=args.tokens, as_of=args.as_of)
    if out.json_mode:
        out.json(
            [
                _as_json(one.memory)
                | {"score": one.score, "parts": dict(one.parts), "age_seconds": one.age_seconds}
                for one in found
            ]
        )
        return 0
    if not found:
        out.note(f"nothing of {args.user} answers that")
    rows = [
        [str(one.memory.id), f"{one.score:.2f}", format_age(one.age_seconds), _flat(one.text)]
        for one in found
    ]
    _table(["ID", "SCORE", "AGE", "TEXT"], rows, out, right=(0, 1))
    return 0


def _list(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    listed = memory.list(**_scope(args), as_of=args.as_of, past=args.past)
    memories = [one for one in listed if args.kind in (None, one.metadata.get("kind"))]
    return _show(memories, args, out)


def _history(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    return _show(memory.history(args.id, **_scope(args)), args, out)


def _show(memories: list[Memory], args: argparse.Namespace, out: Output) -> int:
    if out.json_mode:
        out.json([_as_json(memory) for memory in memories])
        return 0
    if not memories:
        out.note(f"no memories of {args.user} in {place_of(args)}; `stratakv memory remember` makes some")
    rows = [
        [
            str(memory.id),
            str(memory.metadata.get("kind", "")),
            _day(memory.valid_from),
            _day(memory.valid_to),
            _flat(memory.text),
        ]
        for memory in memories
    ]
    _table(["ID", "KIND", "FROM", "TO", "TEXT"], rows, out, right=(0,))
    return 0


def _forget(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    if bool(args.ids) == args.everything:
        raise UsageError(
            "it is not said what is to be erased", "give the numbers of memories, or --everything"
        )
    if args.everything and not args.yes and not _confirmed(f"all memories of {args.user} in this scope", out):
        out.stopped("nothing erased")
        return 1
    records = memory.forget(args.ids or None, **_scope(args), everything=args.everything)
    return _erased(records, out)


def _erase(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    if not args.yes and not _confirmed(f"everything of {args.user}", out):
        out.stopped("nothing erased")
        return 1
    return _erased(memory.erase(args.user), out)


def _erased(records: int, out: Output) -> int:
    if out.json_mode:
        out.json({"records": records})
    else:
        out.result(f"erased {format_count(records)} {'record' if records == 1 else 'records'}")
    return 0


def _confirmed(what: str, out: Output) -> bool:
    """Asks on a terminal; where nobody can answer, not saying --yes is a mistake."""
    if not sys.stdin.isatty():
        raise UsageError("erasing is not confirmed", "give --yes where there is no terminal to ask on")
    out.stderr.write(f"erase {what}? [y/N] ")
    out.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _export(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    check_output(args.file, "FILE")
    number = memory.export(args.file, user=args.user)
    return _moved("wrote", number, args.file, out)


def _import(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    return _moved("added", memory.import_(args.file), args.file, out)


def _moved(verb: str, number: int, file: str, out: Output) -> int:
    if out.json_mode:
        out.json({"memories": number, "file": file})
    else:
        out.result(f"{verb} {format_count(number)} {'memory' if number == 1 else 'memories'}: {file}")
    return 0


def _stats(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    stats = memory.stats(**_scope(args))
    del stats["observed"]  # of this process, which has observed nothing
    if out.json_mode:
        out.json(stats)
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in stats["kinds"].items())
    facts = {
        "memories": f"{format_count(stats['memories'])}, {format_count(stats['present'])} of them present",
        "facts by kind": kinds or "none",
        "with a vector": format_count(stats["vectors"]),
        "embedder": stats["embedder"] or "none",
        "size of the log": sizes.format_bytes(stats["log_bytes"]),
        "damaged": format_count(stats["damaged"] + stats["damaged_turns"]),
        "turns that wait": format_count(stats["waiting"]),
    }
    width = max(map(len, facts))
    for label, value in facts.items():
        out.result(f"{out.style.dim(label.ljust(width))}  {value}")
    return 0


def _profile(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    profile = memory.profile(**_scope(args), tokens=args.tokens)
    if out.json_mode:
        ids = [one.id for one in profile.memories]
        out.json({"text": profile.text, "ids": ids, "left_out": profile.left_out})
        return 0
    if profile.text:
        out.result(profile.text)
    else:
        out.note(f"nothing stands for {args.user}; `stratakv memory remember --kind instruction` makes it so")
    if profile.left_out:
        out.note(f"{profile.left_out} more did not fit into {args.tokens} tokens")
    return 0


def _audit(memory: AssistantMemory, args: argparse.Namespace, out: Output) -> int:
    entries = [entry for entry in memory.audit() if args.user in (None, entry.get("user"))]
    entries = entries[-args.last :] if args.last else entries
    if out.json_mode:
        out.json(entries)
        return 0
    rows = []
    for entry in entries:
        rest = {key: value for key, value in entry.items() if key not in ("time", "action", "user")}
        facts = " ".join(f"{key}={value}" for key, value in rest.items())
        rows.append([entry.get("time", "?"), entry.get("action", "damaged"), entry.get("user", ""), facts])
    _table(["TIME", "ACTION", "USER", "WHAT"], rows, out)
    return 0


_ACTIONS: dict[str, Callable[[AssistantMemory, argparse.Namespace, Output], int]] = {
    "remember": _remember,
    "recall": _recall,
    "list": _list,
    "history": _history,
    "forget": _forget,
    "erase": _erase,
    "export": _export,
    "import": _import,
    "stats": _stats,
    "profile": _profile,
    "audit": _audit,
}


def _table(headers: list[str], rows: list[list[str]], out: Output, *, right: tuple[int, ...] = ()) -> None:
    if not rows:
        return
    lines = table(headers, rows, right=right)
    out.result(out.style.bold(lines[0]))
    for line in lines[1:]:
        out.result(line)


def _as_json(memory: Memory) -> dict[str, Any]:
    """As `export` writes it, and what it was superseded by."""
    from stratakv.engram.transfer import to_line

    entry: dict[str, Any] = json.loads(to_line(memory))
    if memory.superseded_by is not None:
        entry["superseded_by"] = memory.superseded_by
    return entry


def _day(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone():%Y-%m-%d}"


def _flat(text: str) -> str:
    return " ".join(text.split())
