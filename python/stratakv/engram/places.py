"""Where memories are kept: in a directory, or in a database, by their addresses."""

from __future__ import annotations

import os
from pathlib import Path

from stratakv import _native
from stratakv.engram.engine import Engine, Reembedding


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is the address of a database rather than a directory."""
    return isinstance(place, str) and "://" in place


def open_engine(place: str | os.PathLike[str], *, embedder: tuple[str, int] | None, durable: bool) -> Engine:
    """The engine of a directory or of a database.

    Raises:
        LockedError: another process has the directory open.
        SettingsMismatchError: the vectors there are another embedder's.
        DatabaseError: the database can't be used; the message says what to do.
        NotInstalledError: what speaks with the database is not installed.
        ValueError: an address that is none.
    """
    if not is_url(place):
        return _native.Engram(Path(place).expanduser(), embedder=embedder, durable=durable)
    from stratakv.engram.postgres import PostgresEngine  # noqa: PLC0415  # of an extra

    return PostgresEngine.open(str(place), embedder=embedder, durable=durable)


def open_reembedding(place: str | os.PathLike[str], *, embedder: tuple[str, int]) -> Reembedding:
    """What makes the vectors of a directory or a database anew.

    Raises:
        LockedError: another process has the directory open.
        DatabaseError: the database can't be used, or another process is at it.
        FileNotFoundError: there is no such directory.
        NotInstalledError: what speaks with the database is not installed.
        ValueError: an address or an embedder that is not accepted.
    """
    if not is_url(place):
        directory = Path(place).expanduser()
        if not directory.is_dir():
            raise FileNotFoundError(f"no such directory: {place}")
        return _native.Reembedding(directory, embedder=embedder)
    from stratakv.engram.postgres import PostgresReembedding  # noqa: PLC0415  # of an extra

    return PostgresReembedding.open(str(place), embedder=embedder)


def home_of(
    place: str | os.PathLike[str], directory: str | os.PathLike[str] | None
) -> tuple[Path, _native.DirectoryLock | None]:
    """Where files are that are no memories, and the lock on it; an engine of files has a lock of its own.

    Raises:
        LockedError: another process has the directory.
        ValueError: a directory beside a directory, or none beside a database.
    """
    if not is_url(place):
        if directory is not None:
            raise ValueError(
                f"directory={str(directory)!r} is for memories in a database; {place} is a directory"
            )
        return Path(place).expanduser(), None
    if directory is None:
        raise ValueError(
            "memories in a database need directory=, where this process has turns that wait and its audit log"
        )
    home = Path(directory).expanduser()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home, _native.DirectoryLock(home)
