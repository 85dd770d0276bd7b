"""A directory of notes for an assistant: the commands of file-style memory tools, over an Engram.

No file of the system is touched. A file is a memory whose metadata has its path; an edit is a newer version
that supersedes the older one, so every edit keeps history, and deleting ends a file without erasing what it
was (`Engram.forget` does that). Paths are names in the memory and begin with `/memories`; none leads out.

The commands and their answers are those that assistants were trained on: view, create, str_replace, insert,
delete and rename.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from stratakv.engram.engram import Engram
from stratakv.engram.memory import Memory, Scope
from stratakv.errors import RefusedError

ROOT = "/memories"
KIND = "file"
LINES_MAX = 999_999
FILE_BYTES_MAX = 1 << 20
PATH_BYTES_MAX = 1024
# Levels of a directory that `view` lists.
DEPTH = 2
# What a memory's text is where a file is empty: a text has one byte at least.
_EMPTY = "\n"


class FileCommandError(ValueError):
    """A command that cannot be done; the message says why, and is for the assistant."""


class MemoryFiles:
    """The files of one user, and where they are given of an agent and a project.

    Args:
        memory: where they are; stays the caller's to close.
        user: whose.
        agent: of which agent.
        project: of which project.

    Raises:
        ValueError: a name that is not accepted.
    """

    def __init__(
        self, memory: Engram, *, user: str, agent: str | None = None, project: str | None = None
    ) -> None:
        self._memory = memory
        self._scope = Scope(user=user, agent=agent, project=project)
        self._of: dict[str, Any] = {"user": user, "agent": agent, "project": project}
        self._lock = threading.Lock()

    def call(self, command: Mapping[str, Any]) -> str:
        """Does what a tool call asks: `{"command": "view", "path": "/memories"}`, and so on.

        Raises:
            FileCommandError: it cannot be done, or is no such command.
        """
        arguments = dict(command)
        name = arguments.pop("command", None)
        entry = _COMMANDS.get(name) if isinstance(name, str) else None
        if entry is None:
            raise FileCommandError(f"Error: no command {name!r}; accepted are {', '.join(_COMMANDS)}")
        method, needed, optional = entry
        missing = [key for key in needed if arguments.get(key) is None]
        unknown = sorted(set(arguments) - {*needed, *optional})
        if missing or unknown:
            raise FileCommandError(
                f"Error: {name} takes {', '.join((*needed, *optional))}; missing {missing}, unknown {unknown}"
            )
        answer: str = getattr(self, method)(**arguments)
        return answer

    def handle(self, command: Mapping[str, Any]) -> tuple[str, bool]:
        """As `call`, for a tool's result: the text, and whether it is an error."""
        try:
            return self.call(command), False
        except FileCommandError as error:
            return str(error), True

    async def acall(self, command: Mapping[str, Any]) -> str:
        """As `call`, in a thread."""
        return await asyncio.to_thread(self.call, command)

    async def ahandle(self, command: Mapping[str, Any]) -> tuple[str, bool]:
        """As `handle`, in a thread."""
        return await asyncio.to_thread(self.handle, command)

    def view(self, path: str = ROOT, *, view_range: Sequence[int] | None = None) -> str:
        """A directory's files, two levels deep with their sizes; or a file's lines with their numbers.

        Args:
            path: the file or directory.
            view_range: the first and last line, from 1 on; a last one of -1 is the file's.

        Raises:
            FileCommandError: there is none, or no such lines.
        """
        path = check_path(path)
        files = self._files()
        if path in files:
            return _numbered(path, _text(files[path]), view_range)
        if view_range is not None:
            raise FileCommandError(f"Error: {path} is not a file; view_range is for files")
        return _listing(path, files)

    def create(self, path: str, file_text: str) -> str:
        """Makes a file, or writes over one; the older content stays in its history.

        Raises:
            FileCommandError: the path is a directory's, or leads through a file.
        """
        path = _check_file_path(path)
        with self._lock:
            files = self._files()
            self._refuse_clash(path, files)
            old = files.get(path)
            self._write(path, _check_text("file_text", file_text), old)
        return f"File created successfully at: {path}" if old is None else f"File overwritten at: {path}"

    def str_replace(self, path: str, old_str: str, new_str: str = "") -> str:
        """Replaces a text that stands in a file exactly once.

        Raises:
            FileCommandError: no such file, or the text stands in it never or more than once.
        """
        _check_text("old_str", old_str)
        _check_text("new_str", new_str)

        def replace(text: str) -> tuple[str, int]:
            count = text.count(old_str) if old_str else 0
            if count == 0:
                raise FileCommandError(f"Error: no replacement, old_str does not stand in {path}")
            if count > 1:
                raise FileCommandError(
                    f"Error: no replacement, old_str stands {count} times in {path}, in lines "
                    f"{_lines_of(text, old_str)}; make it longer"
                )
            place = text.index(old_str)
            return text.replace(old_str, new_str), text.count("\n", 0, place)

        return self._edit(path, replace)

    def insert(self, path: str, insert_line: int, insert_text: str) -> str:
        """Inserts lines behind line `insert_line`; 0 puts them first.

        Raises:
            FileCommandError: no such file or line.
        """
        _check_text("insert_text", insert_text)

        def put(text: str) -> tuple[str, int]:
            lines = text.splitlines(keepends=True)
            if isinstance(insert_line, bool) or not isinstance(insert_line, int):
                raise FileCommandError(f"Error: insert_line={insert_line!r}: expected a whole number")
            if not 0 <= insert_line <= len(lines):
                raise FileCommandError(f"Error: insert_line={insert_line}: accepted are 0 to {len(lines)}")
            if insert_line and not lines[insert_line - 1].endswith("\n"):
                lines[insert_line - 1] += "\n"
            ended = insert_text.endswith("\n") or insert_line == len(lines)
            lines.insert(insert_line, insert_text if ended else insert_text + "\n")
            return "".join(lines), insert_line

        return self._edit(path, put)

    def delete(self, path: str) -> str:
        """Ends a file, or all files of a directory. What they were stays in their history.

        Raises:
            FileCommandError: there is none, or it is the root.
        """
        path = _check_file_path(path)
        with self._lock:
            chosen = _under(path, self._files())
            if not chosen:
                raise FileCommandError(f"Error: the path {path} does not exist")
            for memory in chosen.values():
                self._memory.end(memory.id, **self._of)
        return f"Successfully deleted {path}"

    def rename(self, old_path: str, new_path: str) -> str:
        """Gives a file, or a directory with all in it, another path.

        Raises:
            FileCommandError: there is none, the new path is taken, or within the old one.
        """
        old_path, new_path = _check_file_path(old_path), _check_file_path(new_path)
        with self._lock:
            files = self._files()
            chosen = _under(old_path, files)
            if not chosen:
                raise FileCommandError(f"Error: the path {old_path} does not exist")
            if _under(new_path, files):
                raise FileCommandError(f"Error: the destination {new_path} already exists")
            if _is_within(new_path, old_path):
                raise FileCommandError(f"Error: {new_path} is within {old_path}")
            others = {path: memory for path, memory in files.items() if path not in chosen}
            moved = {path: new_path + path[len(old_path) :] for path in chosen}
            for target in moved.values():
                self._refuse_clash(check_path(target), others)
            for path, memory in chosen.items():
                self._write(moved[path], _text(memory), memory)
        return f"Successfully renamed {old_path} to {new_path}"

    def history(self, path: str) -> list[tuple[datetime | None, str, str]]:
        """All versions of a file, the oldest first: when it was written, its path then, its content.

        Raises:
            FileCommandError: no such file.
        """
        memory = self._file(check_path(path), self._files())
        versions = self._memory.history(memory.id, **self._of)
        return [(one.recorded, str(one.metadata.get("path")), _text(one)) for one in versions]

    def _edit(self, path: str, change: Callable[[str], tuple[str, int]]) -> str:
        """Writes what `change` makes of a file; shows the lines around the change."""
        path = _check_file_path(path)
        with self._lock:
            memory = self._file(path, self._files())
            text, line = change(_text(memory))
            self._write(path, text, memory)
        return f"The file {path} has been edited.\n{_around(text, line)}"

    def _write(self, path: str, text: str, old: Memory | None) -> None:
        if len(text.encode()) > FILE_BYTES_MAX or text.count("\n") >= LINES_MAX:
            raise FileCommandError(
                f"Error: {path} would have more than {FILE_BYTES_MAX} bytes or {LINES_MAX} lines"
            )
        metadata = {"kind": KIND, "path": path} | ({} if text else {"empty": True})
        try:
            if old is None:
                self._memory.remember(text or _EMPTY, **self._of, metadata=metadata)
            else:
                self._memory.update(old.id, text or _EMPTY, **self._of, metadata=metadata)
        except RefusedError as error:
            raise FileCommandError(f"Error: {error}") from error

    def _files(self) -> dict[str, Memory]:
        """The present files by path: those of exactly this scope."""
        return {
            str(memory.metadata["path"]): memory
            for memory in self._memory.list(**self._of)
            if memory.metadata.get("kind") == KIND
            and memory.scope == self._scope
            and "path" in memory.metadata
        }

    def _file(self, path: str, files: Mapping[str, Memory]) -> Memory:
        if path not in files:
            what = "is a directory" if _under(path, files) or path == ROOT else "does not exist"
            raise FileCommandError(f"Error: the path {path} {what}; please provide a valid path")
        return files[path]

    def _refuse_clash(self, path: str, files: Mapping[str, Memory]) -> None:
        """A name is a file's or a directory's, not both."""
        through = next((other for other in files if other != path and _is_within(path, other)), None)
        if through is not None:
            raise FileCommandError(f"Error: {through} is a file, not a directory")
        if path not in files and _under(path, files):
            raise FileCommandError(f"Error: {path} is a directory")


# Each command's method, its needed arguments, and the others.
_COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "view": ("view", ("path",), ("view_range",)),
    "create": ("create", ("path", "file_text"), ()),
    "str_replace": ("str_replace", ("path", "old_str"), ("new_str",)),
    "insert": ("insert", ("path", "insert_line", "insert_text"), ()),
    "delete": ("delete", ("path",), ()),
    "rename": ("rename", ("old_path", "new_path"), ()),
}


def check_path(path: Any) -> str:
    """A path in the memory, without a slash at its end.

    Raises:
        FileCommandError: it is none: not under `/memories`, or with a part that leads elsewhere.
    """
    if not isinstance(path, str):
        raise FileCommandError(f"Error: path={path!r:.80}: expected text")
    bare = path.rstrip("/") if len(path) > 1 else path
    parts = bare.split("/")
    first = parts[:2] == ["", ROOT[1:]]
    strange = any(part in ("", ".", "..") or not part.isprintable() or "\\" in part for part in parts[1:])
    try:
        long = len(bare.encode()) > PATH_BYTES_MAX
    except UnicodeEncodeError:
        strange, long = True, False
    if not first or strange or long:
        raise FileCommandError(
            f"Error: path={path!r:.200}: expected {ROOT} or a path under it, of printable names without '.', "
            f"'..' and backslashes, at most {PATH_BYTES_MAX} bytes"
        )
    return bare


def _check_file_path(path: Any) -> str:
    checked = check_path(path)
    if checked == ROOT:
        raise FileCommandError(f"Error: {ROOT} is the root; give a path under it")
    return checked


def _check_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise FileCommandError(f"Error: {name}={text!r:.80}: expected text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FileCommandError(f"Error: {name} is not Unicode text") from None
    return text


def _text(memory: Memory) -> str:
    return "" if memory.metadata.get("empty") else memory.text


def _is_within(path: str, directory: str) -> bool:
    return path.startswith(f"{directory}/")


def _under(path: str, files: Mapping[str, Memory]) -> dict[str, Memory]:
    """The file of a path, or those of a directory."""
    return {name: memory for name, memory in files.items() if name == path or _is_within(name, path)}


def _listing(path: str, files: Mapping[str, Memory]) -> str:
    below = _under(path, files)
    if not below and path != ROOT:
        raise FileCommandError(f"Error: the path {path} does not exist; please provide a valid path")
    sizes: dict[str, int] = {path: 0}
    for name, memory in below.items():
        size = len(_text(memory).encode())
        parts = name[len(path) + 1 :].split("/")
        sizes[path] += size
        for depth in range(1, min(DEPTH, len(parts)) + 1):
            shown = "/".join([path, *parts[:depth]]) + ("/" if depth < len(parts) else "")
            sizes[shown] = sizes.get(shown, 0) + size
    lines = [f"{_size(size)}\t{name}" for name, size in sorted(sizes.items())]
    heading = (
        f"Here're the files and directories up to {DEPTH} levels deep in {path}, excluding hidden items:"
    )
    return "\n".join([heading, *(line for line in lines if "/." not in line)])


def _size(size: int) -> str:
    """A size as `du -h` writes it."""
    value = float(size)
    for unit in ("", "K", "M"):
        if value < 1024 or unit == "M":
            break
        value /= 1024
    return f"{value:.1f}{unit}" if unit else f"{size}B"


def _numbered(path: str, text: str, view_range: Sequence[int] | None) -> str:
    lines = text.split("\n")
    if len(lines) > 1 and lines[-1] == "":
        lines.pop()
    first, last = _range(view_range, len(lines))
    shown = [f"{number:6d}\t{lines[number - 1]}" for number in range(first, last + 1)]
    return "\n".join([f"Here's the content of {path} with line numbers:", *shown])


def _range(view_range: Sequence[int] | None, count: int) -> tuple[int, int]:
    if view_range is None:
        return 1, count
    numbers = list(view_range) if isinstance(view_range, Sequence) else []
    if len(numbers) == 2 and all(isinstance(number, int) for number in numbers):
        first, last = numbers[0], count if numbers[1] == -1 else min(numbers[1], count)
        if 1 <= first <= last:
            return first, last
    raise FileCommandError(
        f"Error: view_range={view_range!s:.80}: expected [first, last] in 1 to {count}, or -1 for last"
    )


def _around(text: str, line: int) -> str:
    """The lines near line `line` (from 0 on), numbered."""
    lines = text.split("\n")
    start = max(line - 2, 0)
    return "\n".join(
        f"{number + 1:6d}\t{lines[number]}" for number in range(start, min(line + 4, len(lines)))
    )


def _lines_of(text: str, part: str) -> str:
    """The numbers of the lines in which a part begins, the first few."""
    numbers: list[int] = []
    place = text.find(part)
    while place >= 0 and len(numbers) < 10:
        numbers.append(text.count("\n", 0, place) + 1)
        place = text.find(part, place + len(part))
    return ", ".join(map(str, numbers))
