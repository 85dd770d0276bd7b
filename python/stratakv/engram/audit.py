"""An append-only log of who read and wrote what: scopes, numbers, counts; no memory's text and no query.

One line of JSON per call, in `audit/audit.jsonl` (0600) of the memories' directory. At a limit of bytes the
file becomes `audit-<number>.jsonl`, the numbers ascending, and the oldest of too many is removed. A killed
process loses no line; what the system had not yet written when the power failed is lost with it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stratakv.sizes import parse_bytes

NAME = "audit.jsonl"
_OLDER = re.compile(r"audit-(\d{1,12})\.jsonl")
LEAST_BYTES = 4096

_Scope = tuple[str, str | None, str | None, str | None]


class AuditLog:
    """The log of one directory. Calls may come from any thread.

    Args:
        directory: where the files are; created where it is missing (0700).
        bytes_max: of one file, from 4 KiB on; bytes or text ("4MiB").
        files_max: how many there are at most, the current one included, at least 1.

    Raises:
        ValueError: a limit that is not accepted.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, bytes_max: int | str = "4MiB", files_max: int = 8
    ) -> None:
        if files_max < 1:
            raise ValueError(f"files_max={files_max}: expected at least 1")
        self._bytes_max = parse_bytes(bytes_max, name="bytes_max", minimum=LEAST_BYTES)
        self._files_max = files_max
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file: int | None = self._open()

    def write(
        self,
        action: str,
        scope: _Scope,
        *,
        ids: Iterable[int] = (),
        error: BaseException | None = None,
        **facts: Any,
    ) -> None:
        """Adds a line about a call.

        Args:
            action: the call's name.
            scope: user, agent, project and session that it was about.
            ids: the memories that it told or changed.
            error: what it raised; its class is noted, not its message.
            facts: counts and names; no text of a memory.

        Raises:
            OSError: the line could not be written.
            ValueError: the log is closed.
        """
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "action": action,
        }
        entry |= {
            name: value
            for name, value in zip(("user", "agent", "project", "session"), scope, strict=True)
            if value is not None
        }
        if told := ranges(ids):
            entry["ids"] = told
        if error is not None:
            entry["error"] = type(error).__name__
        line = json.dumps(entry | facts, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        with self._lock:
            if self._file is None:
                raise ValueError("the audit log is closed")
            if os.fstat(self._file).st_size + len(line) > self._bytes_max:
                self._rotate()
            _write_all(self._file, line)

    def read(self) -> Iterator[dict[str, Any]]:
        """All entries, the oldest first. A line that a crash tore is `{"damaged": True}`."""
        for path in [*(path for _, path in self._older()), self._directory / NAME]:
            try:
                with path.open("rb") as file:
                    yield from map(_entry, file)
            except FileNotFoundError:
                continue  # rotated away meanwhile, or nothing yet

    def close(self) -> None:
        """Makes all lines durable. Closing twice is no error."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        file = os.open(self._directory / NAME, flags, 0o600)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            _write_all(file, b"\n")  # a line that a crash tore must not swallow the next
        return file

    def _rotate(self) -> None:
        assert self._file is not None
        os.fsync(self._file)
        older = self._older()
        number = older[-1][0] + 1 if older else 1
        (self._directory / NAME).rename(self._directory / f"audit-{number}.jsonl")
        os.close(self._file)
        self._file = self._open()
        for _, path in self._older()[: -self._files_max + 1 or None]:
            path.unlink()

    def _older(self) -> list[tuple[int, Path]]:
        """The files of before with their numbers, the oldest first."""
        matches = ((_OLDER.fullmatch(path.name), path) for path in self._directory.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)


def ranges(ids: Iterable[int]) -> str:
    """Numbers in short: "1-3,7"."""
    parts: list[list[int]] = []
    for number in sorted(set(ids)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


class AuditedEngine:
    """The engine, each of whose calls that reads or writes memories is in the log: when it failed, too.

    What a call read is noted before it is handed out. Other calls pass through.
    """

    def __init__(self, engine: Any, log: AuditLog) -> None:
        self._engine = engine
        self._log = log

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        told = _TOLD.get(name)
        if told is None:
            return value

        def call(scope: _Scope, *args: Any, **options: Any) -> Any:
            try:
                result = value(scope, *args, **options)
            except Exception as error:
                self._log.write(name, scope, error=error)
                raise
            ids, facts = told(result, args)
            if name not in _SILENT_IF_EMPTY or ids:
                self._log.write(name, scope, ids=ids, **facts)
            return result

        return call


def _of_forget(result: Any, args: Sequence[Any]) -> tuple[Sequence[int], dict[str, Any]]:
    ids = args[0] if args else None
    return ids or (), {"records": result} | ({} if ids is not None else {"everything": True})


# The numbers, and what else, that are noted of a call's result and arguments.
_TOLD: dict[str, Callable[[Any, Sequence[Any]], tuple[Iterable[int], dict[str, Any]]]] = {
    "remember": lambda result, _: (result, {}),
    "recall": lambda result, _: ([memory["id"] for memory, *_ in result], {}),
    "get": lambda result, _: ([result["id"]], {}),
    "list": lambda result, _: ([memory["id"] for memory in result], {}),
    "history": lambda result, _: ([memory["id"] for memory in result], {}),
    "end": lambda _, args: ([args[0]], {}),
    "forget": _of_forget,
    "retain": lambda result, _: ((), {"records": result}),
}
# A listing ends with a call that finds nothing more.
_SILENT_IF_EMPTY = frozenset({"list"})


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {"damaged": True}
    return entry if isinstance(entry, dict) else {"damaged": True}


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
