"""The one place that writes to the terminal: results on stdout, the rest on stderr.

Colour only adds to what the words say, and only on a terminal whose user has not set NO_COLOR.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["Output", "Style", "format_age", "format_count", "format_seconds", "table"]


@dataclass(frozen=True)
class Style:
    """Terminal attributes; with `enabled=False` every method returns its text unchanged."""

    enabled: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """The style that a stream can show: colour on a terminal, unless NO_COLOR or TERM says no."""
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(enabled=stream.isatty() and not plain)

    def bold(self, text: str) -> str:
        """Headings and the figures that matter."""
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        """Labels and asides."""
        return self._wrap("2", text)

    def good(self, text: str) -> str:
        """What went right, or lies in RAM."""
        return self._wrap("32", text)

    def bad(self, text: str) -> str:
        """What went wrong."""
        return self._wrap("31", text)

    def cold(self, text: str) -> str:
        """What lies on disk."""
        return self._wrap("34", text)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled and text else text


class Output:
    """Writes results, notes and errors; `json_mode` leaves stdout to `json` alone."""

    def __init__(
        self, *, json_mode: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.json_mode = json_mode
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.style = Style.of(self.stdout)
        self.note_style = Style.of(self.stderr)

    def result(self, text: str = "", *, end: str = "\n") -> None:
        """Writes a result to stdout at once; nothing in JSON mode."""
        if not self.json_mode:
            self.stdout.write(text + end)
            self.stdout.flush()

    def json(self, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Writes one line of JSON to stdout."""
        self.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Says something beside the result, on stderr."""
        self.stderr.write(text + "\n")
        self.stderr.flush()

    def warn(self, text: str) -> None:
        """Warns on stderr."""
        self.note(f"{self.note_style.bold('warning:')} {text}")

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Says on a terminal's last line what is being waited for; wiped afterwards."""
        live = self.stderr.isatty()
        if live:
            self.stderr.write(self.note_style.dim(text + " ..."))
            self.stderr.flush()
        try:
            yield
        finally:
            if live:
                self.stderr.write("\r\x1b[K")
                self.stderr.flush()

    def error(self, message: str, hint: str | None = None) -> None:
        """One line: what is wrong and what to do next."""
        tail = f" ({hint})" if hint else ""
        self.note(f"{self.note_style.bad('error:')} {message}{tail}")

    def fail(self, message: str, hint: str | None = None) -> None:
        """An error that is the outcome: in JSON mode a line of stdout besides, `{"error", "hint"}`."""
        self.error(message, hint)
        if self.json_mode:
            self.json({"error": message, "hint": hint})

    def stopped(self, message: str, hint: str | None = None) -> None:
        """As `fail`, of what the user ended: nothing went wrong."""
        self.note(f"{message}: {hint}" if hint else message)
        if self.json_mode:
            self.json({"error": message, "hint": hint})

    def flush(self) -> None:
        """Pushes stdout out, so that a closed pipe is noticed here and not at exit."""
        self.stdout.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Aligned columns, two spaces apart, without trailing blanks.

    Args:
        header: the columns' titles.
        rows: cells, each as long as the header.
        right: indices of the columns that are aligned to the right.
    """
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def cell(line: Sequence[str], column: int) -> str:
        text = line[column]
        return text.rjust(widths[column]) if column in right else text.ljust(widths[column])

    return ["  ".join(cell(line, column) for column in range(len(header))).rstrip() for line in lines]


def format_count(count: int) -> str:
    """1234567 as `1,234,567`."""
    return f"{count:,}"


def format_seconds(seconds: float) -> str:
    """A duration with the digits that matter: `4.2 ms`, `0.31 s`, `12.5 s`, `3 min 05 s`."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_age(seconds: float) -> str:
    """A rough age: `just now`, `5 min`, `3 h`, `12 d`."""
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h"
    return f"{int(seconds // 86400)} d"
