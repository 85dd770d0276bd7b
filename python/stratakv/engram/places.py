"""Where memories are kept: in a directory, or in a database, by their addresses."""

from __future__ import annotations

import os
from pathlib import Path

from stratakv import _native
from stratakv.engram.engine import Engine


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is the address of a database rather than a directory."""
    return isinstance(place, str) and "://" in place


def open_engine(place: str | os.PathLike[str], *, embedder: tuple[str, int] | None, durable: bool) -> Engine:
    """The engine of a directory or of a database.

    Raises:
        LockedError: another process has the directory open.
        SettingsMismatchError: the vectors there are another embedder's.
        DatabaseError: the database can't be used; the message says what to do.
        ImportError: what speaks with the database is not installed.
        ValueError: an address that is none.
    """
    if not is_url(place):
        return _native.Engram(Path(place).expanduser(), embedder=embedder, durable=durable)
    from stratakv.engram.postgres import PostgresEngine  # noqa: PLC0415  # of an extra

    return PostgresEngine.open(str(place), embedder=embedder, durable=durable)
