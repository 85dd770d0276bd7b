"""What can go wrong, by name. All errors of the engine derive from `StrataError`.

`ValueError` is raised for arguments that cannot be used; its message names what was given
and what is accepted.
"""

from stratakv._native import (
    CorruptError,
    DiskFullError,
    LockedError,
    MemoryNotFoundError,
    PagesLostError,
    RamFullError,
    SessionNotFoundError,
    SettingsMismatchError,
    StrataError,
)


class AlreadyCoveredError(StrataError, ValueError):
    """A forward pass was given tokens that the cache already holds, as if they were new.

    `generate` does this when the cache covers every input id: nothing is left to compute, and
    it passes the whole prompt again. Crop the cache by one token first, or use `match`.
    """


class DatabaseError(StrataError, OSError):
    """A database of memories can't be reached, or can't be used as it is.

    The message says what to do, and has no password.
    """


class NotInstalledError(StrataError, ModuleNotFoundError):
    """Something that a part of the package needs is not installed.

    Args:
        message: what is missing, and what for.
        hint: the command that installs it.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}"


class RefusedError(StrataError, ValueError):
    """A text has a secret or personal data that the memory's policy refuses; nothing was stored.

    The message names the kind and the place, never the text.
    """


class PagesLostWarning(UserWarning):
    """A session was opened without some of its pages; what was lost is computed again."""


__all__ = [
    "AlreadyCoveredError",
    "CorruptError",
    "DatabaseError",
    "DiskFullError",
    "LockedError",
    "MemoryNotFoundError",
    "NotInstalledError",
    "PagesLostError",
    "PagesLostWarning",
    "RamFullError",
    "RefusedError",
    "SessionNotFoundError",
    "SettingsMismatchError",
    "StrataError",
]
