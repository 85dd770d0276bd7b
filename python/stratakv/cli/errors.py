"""What went wrong, in one line, and what to do next.

Errors of the engine are recognised by class name, and others by what they know of themselves, so that
explaining an error never imports the engine or torch.
"""

from __future__ import annotations

import errno
from typing import Protocol, runtime_checkable

__all__ = ["CommandError", "UsageError", "exit_code_of", "explain"]


@runtime_checkable
class Hinted(Protocol):
    """An error that says itself what to do next, as `stratakv.errors.NotInstalledError`."""

    message: str
    hint: str | None


class CommandError(Exception):
    """A failure whose cause is known: one line, and a hint on what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CommandError):
    """The command line asks for something that cannot be."""

    exit_code = 2


# The hint of each engine error, most specific first along the class's ancestors.
HINTS = {
    "LockedError": "wait for the other process or stop it, or give another --directory",
    "SessionNotFoundError": "`stratakv sessions list` shows the names that exist",
    "MemoryNotFoundError": "`stratakv memory list` shows the numbers that exist",
    "RefusedError": "--policy KIND=mask or KIND=store lets it in",
    "SettingsMismatchError": "give the --model and --dtype of the session, or another --session name",
    "RamFullError": "give a larger --ram, or a --directory so that pages can go to disk",
    "DiskFullError": "give a larger --disk-limit, free disk space, or remove sessions: stratakv sessions rm",
    "PagesLostError": "`stratakv sessions verify` tells what is left; the text can be read in again",
    "CorruptError": "`stratakv sessions verify` tells what is damaged; what is intact stays usable",
    "OutOfMemoryError": "close other programs, give a smaller --chunk, or use a smaller model",
    "MemoryError": "close other programs, give a smaller --chunk, or use a smaller model",
    "PermissionError": "check who may read and write there, or give another path",
    "FileNotFoundError": "give a path that exists",
    "FileExistsError": "give another path",
    "NotADirectoryError": "a part of the path is a file: give another path",
    "IsADirectoryError": "give a file",
    "ModuleNotFoundError": "install what is missing: pip install 'stratakv[demo]'",
}
# Paths that the command line named wrongly.
WRONG_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
BUG_HINT = "add --debug for the traceback"


def explain(error: BaseException) -> tuple[str, str | None]:
    """One line that says what is wrong, and a hint, where there is one."""
    if isinstance(error, Hinted):
        return error.message, error.hint
    message = _first_line(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return message, HINTS["DiskFullError"]
    names = [cls.__name__ for cls in type(error).__mro__]
    hint = next((HINTS[name] for name in names if name in HINTS), None)
    if hint is not None:
        return message, hint
    if isinstance(error, OSError):
        return message, None
    return f"{type(error).__name__}: {message}", BUG_HINT


def exit_code_of(error: BaseException) -> int:
    """1 for what failed, 2 for what was asked for wrongly."""
    if isinstance(error, CommandError):
        return error.exit_code
    return UsageError.exit_code if isinstance(error, WRONG_PATHS) else CommandError.exit_code


def _first_line(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:  # str() of a KeyError is a repr
        text = str(error.args[0])
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__
