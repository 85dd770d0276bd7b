"""The commands' way to caches and stores: one place that knows how they are opened."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli.errors import UsageError
from stratakv.cli.paths import check_directory

if TYPE_CHECKING:
    from stratakv import TieredCache
    from stratakv._native import Store
    from stratakv.cli.output import Output

__all__ = [
    "check_name",
    "document_name",
    "has_session",
    "open_cache",
    "open_selecting",
    "open_store",
    "saved_ids",
]

STORE_RAM_BYTES = 64 << 20  # what listing, verifying and collecting may use
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """A session name that is also a safe file name.

    Raises:
        UsageError: it is not.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a session name",
            "use up to 100 letters, digits, '.', '_', '-'; start with no sign",
        )
    return name


def document_name(paths: Iterable[str], ids: list[int], model: str) -> str:
    """The session name of a document: readable, and the same whenever its tokens and the model are."""
    first = next(iter(paths))
    stem = "stdin" if first == "-" else Path(first).resolve().stem
    stem = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40]
    digest = hashlib.sha256(f"{model}\0{ids}".encode()).hexdigest()[:8]
    return f"{stem or 'text'}-{digest}"


def open_cache(
    model: Any, directory: str, *, ram: int, disk_limit: int | None = None, name: str | None = None
) -> TieredCache:
    """A cache over the directory, made if need be: the session `name` if there is one, else empty."""
    from stratakv import TieredCache

    Path(directory).mkdir(parents=True, exist_ok=True, mode=0o700)
    return TieredCache.open(model, directory, name=name, ram=ram, disk_limit=disk_limit)


@contextlib.contextmanager
def open_selecting(
    model: Any,
    directory: str,
    *,
    budget: int | None,
    out: Output,
    ram: int,
    disk_limit: int | None = None,
    name: str | None = None,
    hot: int | None = None,
) -> Iterator[TieredCache]:
    """A cache of which each step reads `budget` tokens, the model attached for as long as it is open.

    Reads everything where that is asked for, where the session was made so, and where the model cannot be
    attached, which is said; then nothing is kept in a GPU's memory.
    """
    from stratakv import TieredCache, attach
    from stratakv.hf.attention import UnsupportedModelError

    Path(directory).mkdir(parents=True, exist_ok=True, mode=0o700)
    limits: dict[str, Any] = {"ram": ram, "disk_limit": disk_limit}
    with contextlib.ExitStack() as stack:
        if budget is not None and _is_exact(directory, name, **limits):
            out.note(f"session {name} was begun with --budget all, and goes on so")
            budget = None
        if budget is not None:
            try:
                stack.enter_context(attach(model))
            except UnsupportedModelError as reason:
                out.note(f"each step reads the whole text: {reason}")
                budget = None
        if hot is not None and budget is None:
            out.note("--hot keeps nothing: it is for steps that read a part of the text")
            hot = None
        cache = TieredCache.open(model, directory, name=name, budget=budget, hot=hot, **limits)
        yield stack.enter_context(cache)


def _is_exact(directory: str, name: str | None, *, ram: int, disk_limit: int | None) -> bool:
    """Whether there is a session of that name whose keys have their positions."""
    from stratakv.cache import Store
    from stratakv.hf.arguments import session_or_none

    with Store(directory, ram=ram, disk_limit=disk_limit) as store:
        saved = None if name is None else session_or_none(store, name)
        return saved is not None and saved["settings"].get("key_rotation") != "page"


def open_store(directory: str, *, read_only: bool) -> Store:
    """The directory's store.

    Raises:
        UsageError: there is no such directory.
    """
    from stratakv._native import Store

    check_directory(directory, "--directory")
    if not Path(directory).is_dir():
        raise UsageError(
            f"no such directory: {directory}",
            "`stratakv ask` and `stratakv chat` make it; --directory names the one that the sessions are in",
        )
    return Store(directory, ram_bytes=STORE_RAM_BYTES, read_only=read_only)


def has_session(directory: str, name: str, *, ram: int, disk_limit: int | None = None) -> bool:
    """Whether there is a session of that name; the limits are those of the caches that are open there."""
    from stratakv.cache import Store

    with Store(directory, ram=ram, disk_limit=disk_limit) as store:
        return any(session["name"] == name for session in store.native.sessions())


def saved_ids(directory: str, name: str, *, ram: int, disk_limit: int | None = None) -> list[int]:
    """The ids of a whole saved session; none where there is none of that name.

    A resumed cache holds back the session's last token, and with it the last id: this has it.
    The limits must be those of the caches that are open on the directory.
    """
    from stratakv.cache import Store

    with Store(directory, ram=ram, disk_limit=disk_limit) as store:
        if all(session["name"] != name for session in store.native.sessions()):
            return []
        ids: list[int] = store.native.session(name)["token_ids"][0]
        return ids
