"""Files of a run: for its owner alone, and there after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


def make_directory(path: Path) -> None:
    """A directory that only its owner enters; one that is there keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


@contextmanager
def private_files() -> Iterator[None]:
    """What this process creates inside the block is readable by its owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def create_private(path: Path) -> None:
    """An empty file for its owner alone; what was there is emptied."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, FILE_MODE)
    os.close(descriptor)
    path.chmod(FILE_MODE)


def replace_durably(beside: Path, path: Path) -> None:
    """Renames a finished file over another; when this returns, a crash takes neither."""
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
