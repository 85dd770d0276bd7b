"""One open directory (or RAM alone), shared by every cache of this process that uses it.

The engine locks a directory for one writer. Two caches of one process on the same directory
therefore share one engine store, which closes with the last of them.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stratakv import _native
from stratakv.sizes import parse_bytes

IO_KINDS = ("auto", "direct", "mmap", "buffered")
POLICIES = ("auto", "lru", "lfu", "s3-fifo", "w-tinylfu", "lirs", "tiny-lirs")  # docs/policies.md


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How a store is opened; sizes in bytes.

    Raises:
        ValueError: an unknown `io` or `policy`.
    """

    directory: str | None
    ram_bytes: int
    disk_limit_bytes: int | None = None
    free_floor_bytes: int | None = None
    io: str = "auto"
    policy: str = "auto"
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.io not in IO_KINDS:
            raise ValueError(f"io={self.io!r}: accepted are {', '.join(IO_KINDS)}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: accepted are {', '.join(POLICIES)}")

    def differences(self, other: StoreSettings) -> list[str]:
        """Fields in which two settings differ, as `name: mine, not theirs`."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return [f"{name}: {mine!r}, not {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


class Store:
    """A handle on tiers of pages. Closing the last handle of a directory closes the store.

    Args:
        directory: where the cold tier lives; created if missing. None keeps everything in RAM.
        ram: limit of the warm tier, bytes or text ("4GiB").
        disk_limit: limit of everything in the directory; None is bounded by `free_floor` only.
        free_floor: bytes that stay free on the file system; None is the engine's default.
        io: "auto", "direct", "mmap" or "buffered".
        policy: which pages stay in RAM, one of `POLICIES`.
        read_only: open without the lock and write nothing.

    Raises:
        ValueError: a size, `io` or `policy` that is not accepted, or a directory that this
            process has open with other settings.
        LockedError: another process writes the directory.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        ram: int | str = "4GiB",
        disk_limit: int | str | None = None,
        free_floor: int | str | None = None,
        io: str = "auto",
        policy: str = "auto",
        read_only: bool = False,
    ) -> None:
        if directory is None and disk_limit is not None:
            raise ValueError("disk_limit is given without a directory: pass the directory, or drop the limit")
        settings = StoreSettings(
            directory=None if directory is None else str(Path(directory).expanduser().resolve()),
            ram_bytes=parse_bytes(ram, name="ram"),
            disk_limit_bytes=None if disk_limit is None else parse_bytes(disk_limit, name="disk_limit"),
            free_floor_bytes=None
            if free_floor is None
            else parse_bytes(free_floor, name="free_floor", minimum=0),
            io=io,
            policy=policy,
            read_only=read_only,
        )
        self._shared = _acquire(settings)
        self._closed = False

    @property
    def settings(self) -> StoreSettings:
        """The settings that it is open with."""
        return self._shared.settings

    @property
    def native(self) -> _native.Store:
        """The engine's store.

        Raises:
            ValueError: this handle was closed.
        """
        if self._closed:
            raise ValueError("this store is closed")
        return self._shared.native

    def share(self) -> Store:
        """Another handle on the same store, closed on its own."""
        assert not self._closed
        handle = object.__new__(Store)
        handle._shared = self._shared
        handle._closed = False
        with _REGISTRY_LOCK:
            self._shared.num_handles += 1
        return handle

    def stats(self) -> dict[str, Any]:
        """Counters and sizes per tier, as the engine reports them."""
        return self.native.stats()

    def close(self) -> None:
        """Lets go; the last handle closes the engine's store. Closing twice is no error."""
        if not self._closed:
            self._closed = True
            _release(self._shared)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


class _Shared:
    """One engine store and how many handles use it."""

    def __init__(self, settings: StoreSettings) -> None:
        floor = {} if settings.free_floor_bytes is None else {"free_floor_bytes": settings.free_floor_bytes}
        self.settings = settings
        self.num_handles = 1
        self.native = _native.Store(
            settings.directory,
            ram_bytes=settings.ram_bytes,
            disk_limit_bytes=settings.disk_limit_bytes,
            io=settings.io,
            policy=settings.policy,
            read_only=settings.read_only,
            **floor,
        )


# Re-entrant: a collected handle may be released while the lock is held by the same thread.
_REGISTRY_LOCK = threading.RLock()
_OPEN: dict[tuple[int, str], _Shared] = {}


def _acquire(settings: StoreSettings) -> _Shared:
    if settings.directory is None:
        return _Shared(settings)
    # The process id is part of the key: a forked child must not use its parent's files.
    key = (os.getpid(), settings.directory)
    with _REGISTRY_LOCK:
        shared = _OPEN.get(key)
        if shared is None:
            shared = _OPEN[key] = _Shared(settings)
            return shared
        differences = settings.differences(shared.settings)
        if differences:
            raise ValueError(
                f"{settings.directory} is open in this process with other settings "
                f"({'; '.join(differences)}): close it first, or pass the same ones"
            )
        shared.num_handles += 1
        return shared


def _release(shared: _Shared) -> None:
    with _REGISTRY_LOCK:
        shared.num_handles -= 1
        if shared.num_handles:
            return
        for key in [key for key, value in _OPEN.items() if value is shared]:
            del _OPEN[key]
    shared.native.close()
