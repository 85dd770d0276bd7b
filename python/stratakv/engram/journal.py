"""Turns that were observed and are not worked through: durable before a call comes back.

One file per user in `turns/` of the memories' directory (0600), so that erasing a user removes it. A line is
a checksum, a space, and JSON. A line that a crash tore, or that damage hit, is left out and counted. A file
whose turns are all done is emptied; one of which some are left is written anew and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from stratakv.engram.turns import Turn

_FILE = re.compile(r"[0-9a-f]{32}\.jsonl")


class Journal:
    """The turns of one directory that wait. Calls may come from any thread.

    Args:
        directory: where the files are; created where it is missing (0700).
        durable: whether `append` comes back only when a power cut can't undo it.
    """

    def __init__(self, directory: str | os.PathLike[str], *, durable: bool = True) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._durable = durable
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Turn]] = {}
        self.damaged = 0
        for path in sorted(self._directory.iterdir()):
            if _FILE.fullmatch(path.name):
                self._load(path)
            elif path.suffix == ".tmp":
                path.unlink()

    def append(self, turns: Sequence[Turn]) -> None:
        """Adds turns of one user.

        Raises:
            OSError: they could not be written; none of them waits then.
        """
        if not turns:
            return
        user = turns[0].user
        assert all(turn.user == user for turn in turns)
        data = b"".join(map(_to_line, turns))
        with self._lock:
            path = self._path(user)
            new = not path.exists()
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
            size = os.fstat(file).st_size
            try:
                _write_all(file, data)
                if self._durable:
                    os.fsync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)
                raise
            finally:
                os.close(file)
            if new and self._durable:
                _sync_directory(self._directory)
            self._waiting.setdefault(user, []).extend(turns)

    def new(self, turns: Sequence[Turn]) -> list[Turn]:
        """Those of some turns of one user whose ids neither wait nor come twice."""
        with self._lock:
            seen = {turn.id for turn in self._waiting.get(turns[0].user, ())} if turns else set()
        chosen = []
        for turn in turns:
            if turn.id not in seen:
                seen.add(turn.id)
                chosen.append(turn)
        return chosen

    def waiting(self, user: str | None = None) -> list[Turn]:
        """The turns that wait: of a user in their order, or of all, user by user."""
        with self._lock:
            users = [user] if user is not None else list(self._waiting)
            return [turn for name in users for turn in self._waiting.get(name, ())]

    def done(self, user: str, ids: Collection[str]) -> None:
        """Takes turns of a user out."""
        chosen = frozenset(ids)
        self.remove(user, lambda turn: turn.id in chosen)

    def remove(self, user: str, covers: Callable[[Turn], bool]) -> int:
        """Takes out the turns of a user that `covers` tells; how many. Nothing of them is left in a file."""
        with self._lock:
            before = self._waiting.get(user, [])
            kept = [turn for turn in before if not covers(turn)]
            if len(kept) < len(before):
                self._rewrite(user, kept)
                self._waiting[user] = kept
                if not kept:
                    del self._waiting[user]
            return len(before) - len(kept)

    def erase(self, user: str) -> int:
        """Removes a user's file; how many turns were in it."""
        with self._lock:
            count = len(self._waiting.pop(user, ()))
            path = self._path(user)
            if path.exists():
                path.unlink()
                _sync_directory(self._directory)
            return count

    def _rewrite(self, user: str, turns: Sequence[Turn]) -> None:
        path = self._path(user)
        if not turns:
            os.truncate(path, 0)
            return
        beside = path.with_suffix(".tmp")
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(file, b"".join(map(_to_line, turns)))
            os.fsync(file)
        finally:
            os.close(file)
        beside.replace(path)
        _sync_directory(self._directory)

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        for line in data.splitlines(keepends=True):
            turn = _from_line(line)
            if turn is None or self._path(turn.user) != path:
                self.damaged += 1
            else:
                self._waiting.setdefault(turn.user, []).append(turn)
        if data and not data.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")  # what comes next begins a line of its own

    def _path(self, user: str) -> Path:
        name = hashlib.sha256(b"stratakv turns\0" + user.encode(errors="surrogatepass")).hexdigest()[:32]
        return self._directory / f"{name}.jsonl"


def _to_line(turn: Turn) -> bytes:
    body = json.dumps({key: value for key, value in turn.as_dict().items() if value is not None}).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _from_line(line: bytes) -> Turn | None:
    """The turn of a line; None if the line is not whole."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        return Turn(**json.loads(body))
    except (ValueError, TypeError):
        return None


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync_directory(directory: Path) -> None:
    """Makes a directory's names durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
