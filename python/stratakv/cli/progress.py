"""What a person sees on stderr while a text is read in.

Two lines on a terminal, redrawn in place: tokens, speed and time left; and where the KV bytes
lie. Elsewhere, when asked for, a plain line every few seconds. Rendering is pure, from a
`Snapshot` to lines; `Progress` only decides when to write them.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from stratakv import sizes
from stratakv.cli.output import Style, format_count, format_seconds

__all__ = ["Progress", "Snapshot", "Tiers", "render", "render_plain", "tier_bar"]

BAR_WIDTH = 24
REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 5.0
RATE_WINDOW = 6  # updates over which the speed is measured: it falls as the context grows


@dataclass(frozen=True)
class Tiers:
    """Bytes of KV cache per tier; a limit of None is no limit."""

    ram_bytes: int
    ram_limit_bytes: int | None
    disk_bytes: int
    disk_limit_bytes: int | None = None
    hot_bytes: int | None = None
    hot_limit_bytes: int | None = None

    def as_dict(self) -> dict[str, dict[str, int | None]]:
        """For `--json`; what a hot tier holds and counted is reported apart."""
        return {
            "ram": {"bytes": self.ram_bytes, "limit_bytes": self.ram_limit_bytes},
            "disk": {"bytes": self.disk_bytes, "limit_bytes": self.disk_limit_bytes},
        }

    def describe(self) -> str:
        """`ram 61.2 MiB of 64.0 MiB, disk 70.1 MiB`, and before it a hot tier where there is one."""
        hot = ""
        if self.hot_bytes is not None:
            hot = f"hot {sizes.format_bytes(self.hot_bytes)}{_of(self.hot_limit_bytes)}, "
        ram = sizes.format_bytes(self.ram_bytes) + _of(self.ram_limit_bytes)
        return f"{hot}ram {ram}, disk {sizes.format_bytes(self.disk_bytes)}{_of(self.disk_limit_bytes)}"


@dataclass(frozen=True)
class Snapshot:
    """One moment of a long work. `rate` is in units per second, 0 while unknown."""

    label: str
    done: int
    total: int
    rate: float
    tiers: Tiers | None = None
    unit: str = "tokens"

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the present speed; None while the speed is unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@dataclass(frozen=True)
class Glyphs:
    """The characters of the bars: RAM and disk differ in shape, not in colour alone."""

    full: str = "█"
    empty: str = "░"
    ram: str = "█"
    disk: str = "▒"

    @classmethod
    def of(cls, stream: TextIO) -> Glyphs:
        """Block characters where the stream's encoding has them, else ASCII."""
        try:
            "█▒░".encode(getattr(stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return cls(full="#", empty=".", ram="#", disk="=")
        return cls()


UNICODE = Glyphs()


def render(
    snapshot: Snapshot, *, columns: int, style: Style | None = None, glyphs: Glyphs = UNICODE
) -> list[str]:
    """The lines of the live display, none wider than `columns`.

    Parts are dropped from the end where the terminal is narrow; the bar goes last.
    """
    style = style or Style()
    percent = int(100 * snapshot.done / max(snapshot.total, 1))
    filled = BAR_WIDTH * snapshot.done // max(snapshot.total, 1)
    bar = glyphs.full * filled + glyphs.empty * (BAR_WIDTH - filled)
    count = f"{format_count(snapshot.done)}/{format_count(snapshot.total)} {snapshot.unit}"
    parts = [f"{snapshot.label:<8}", bar, f"{percent:3d}%", count, *_speed(snapshot)]
    lines = [_fit(parts, columns)]
    if snapshot.tiers is not None:
        plain, painted = (tier_bar(snapshot.tiers, style=s, glyphs=glyphs) for s in (Style(), style))
        line = _fit([f"{'KV':<8}", plain, _legend(snapshot.tiers, glyphs)], columns)
        lines.append(line.replace(plain, painted))
    return lines


def render_plain(snapshot: Snapshot) -> str:
    """One line without control characters, for logs."""
    count = f"{format_count(snapshot.done)}/{format_count(snapshot.total)} {snapshot.unit}"
    parts = [f"{snapshot.label} {count}", *_speed(snapshot)]
    if snapshot.tiers is not None:
        parts.append(snapshot.tiers.describe())
    return ", ".join(parts)


def tier_bar(tiers: Tiers, *, style: Style, glyphs: Glyphs = UNICODE, width: int = BAR_WIDTH) -> str:
    """A bar of the stored bytes: those in RAM, then those on disk only.

    The cold tier keeps a copy of what RAM holds, so the larger of the two is the whole.
    """
    total = max(tiers.ram_bytes, tiers.disk_bytes)
    if total == 0:
        return glyphs.empty * width
    in_ram = round(width * tiers.ram_bytes / total)
    if 0 < tiers.ram_bytes < total:
        in_ram = min(max(in_ram, 1), width - 1)
    return style.good(glyphs.ram * in_ram) + style.cold(glyphs.disk * (width - in_ram))


class Progress:
    """Shows how far a long work is. Also a context manager: leaving it clears the live lines.

    `show` True or False is the user's choice; None means on a terminal only.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        label: str,
        total: int,
        done: int = 0,
        unit: str = "tokens",
        show: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self.label = label
        self.total = total
        self.unit = unit
        self.live = stream.isatty() and show is not False
        self.enabled = self.live or bool(show)
        self.style = Style.of(stream)
        self.glyphs = Glyphs.of(stream)
        self.clock = clock
        self.samples = deque([(clock(), done)], maxlen=RATE_WINDOW)
        self.drawn = 0
        self.last_write: float | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def update(self, done: int, tiers: Tiers | None = None) -> None:
        """Takes note of what is done and redraws if it is time."""
        now = self.clock()
        self.samples.append((now, done))
        if not self.enabled:
            return
        every = REDRAW_SECONDS if self.live else PLAIN_SECONDS
        if self.last_write is not None and now - self.last_write < every and done < self.total:
            return
        self.last_write = now
        snapshot = Snapshot(self.label, done, self.total, self._rate(), tiers, self.unit)
        if self.live:
            self._redraw(snapshot)
        else:
            self.stream.write(render_plain(snapshot) + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Wipes the live lines; the cursor is where they began."""
        if self.drawn:
            self.stream.write(f"\x1b[{self.drawn}A\x1b[J" if self.drawn else "")
            self.stream.flush()
            self.drawn = 0

    def _redraw(self, snapshot: Snapshot) -> None:
        columns = shutil.get_terminal_size().columns
        lines = render(snapshot, columns=columns, style=self.style, glyphs=self.glyphs)
        up = f"\x1b[{self.drawn}A" if self.drawn else ""
        self.stream.write(up + "".join(f"\r\x1b[K{line}\n" for line in lines))
        self.drawn = len(lines)

    def _rate(self) -> float:
        (start, first), (end, last) = self.samples[0], self.samples[-1]
        return (last - first) / (end - start) if end > start else 0.0


def _speed(snapshot: Snapshot) -> list[str]:
    eta = snapshot.eta_seconds
    if eta is None:
        return []
    rate = f"{format_count(round(snapshot.rate))} {snapshot.unit}/s"
    return [rate, f"{format_seconds(eta)} left"] if snapshot.done < snapshot.total else [rate]


def _legend(tiers: Tiers, glyphs: Glyphs) -> str:
    ram = f"{glyphs.ram} ram {sizes.format_bytes(tiers.ram_bytes)}{_of(tiers.ram_limit_bytes)}"
    disk = f"{glyphs.disk} disk {sizes.format_bytes(tiers.disk_bytes)}{_of(tiers.disk_limit_bytes)}"
    return f"{ram}  {disk}"


def _of(limit: int | None) -> str:
    return f" of {sizes.format_bytes(limit)}" if limit is not None else ""


def _fit(parts: list[str], columns: int) -> str:
    """Joins parts with two spaces, leaving off those that would not fit before the last column."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) >= columns:
            break
        line += "  " + part
    return line[: max(columns - 1, 1)]
