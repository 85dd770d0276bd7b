"""Paths that the command line names, checked before anything long begins."""

from __future__ import annotations

from pathlib import Path

from stratakv.cli.errors import UsageError

__all__ = ["check_directory", "check_output"]


def check_directory(path: str, option: str) -> None:
    """Refuses something else than a directory where one is, or is to be made.

    Raises:
        UsageError: a file is there, or where a directory above it would be.
    """
    there = next(place for place in (Path(path), *Path(path).absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file, not a directory", f"give another directory with {option}")


def check_output(path: str, option: str) -> None:
    """Refuses a file that could not be written in the end.

    Raises:
        UsageError: it would be in no directory, or is one.
    """
    if Path(path).is_dir():
        raise UsageError(f"{path} is a directory", f"give the name of a file with {option}")
    if not Path(path).absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no directory {Path(path).parent}", "make it first")
