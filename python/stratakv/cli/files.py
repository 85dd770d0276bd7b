"""The text files that arguments name: files, and what lies below folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stratakv.cli.errors import UsageError

__all__ = ["TextFile", "read_texts"]

SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "target"})


@dataclass(frozen=True)
class TextFile:
    """A text and what it is called in a prompt: the file's name, below a folder with the folders."""

    name: str
    text: str


def read_texts(paths: Sequence[str]) -> Iterator[TextFile]:
    """All files, in the order given; those of a folder by name, as far as they are text.

    Of a Git repository, the files that it tracks or would; of other folders, all but hidden ones and
    what tools leave there. `-` is standard input.

    Raises:
        OSError: a path cannot be read.
        UsageError: a folder without a text file, or a file that is no text.
    """
    for path in paths:
        if path == "-":
            yield TextFile("stdin", sys.stdin.read())
        elif Path(path).is_dir():
            yield from _below(Path(path))
        else:
            yield TextFile(Path(path).name, _text_of(path))


def _text_of(path: str) -> str:
    data = Path(path).read_bytes()
    if b"\0" in data:
        raise UsageError(f"{path} is no text: there are bytes of 0 in it", "give text, best in UTF-8")
    return data.decode(errors="replace")


def _below(folder: Path) -> Iterator[TextFile]:
    found = False
    top = folder.resolve().name
    for relative in _tracked(folder) or _walked(folder):
        file = folder / relative
        # What Git lists may be gone, or be a submodule.
        data = file.read_bytes() if file.is_file() else b"\0"
        if b"\0" not in data:
            found = True
            yield TextFile(f"{top}/{relative.as_posix()}", data.decode(errors="replace"))
    if not found:
        raise UsageError(f"no text file in {folder}", "give a folder or files that hold text")


def _tracked(folder: Path) -> list[Path]:
    """What Git would commit below a folder; nothing where Git has no say."""
    git = shutil.which("git")
    if git is None:
        return []
    command = [git, "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  a fixed command
    if done.returncode != 0:
        return []
    names = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    return sorted(map(Path, names), key=lambda path: path.parts)


def _walked(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent, name).relative_to(folder)


def _raise(error: OSError) -> None:
    raise error
