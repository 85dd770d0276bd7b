from __future__ import annotations

import io
import re

import pytest

from stratakv.cli.output import Style, format_age, format_seconds, table
from stratakv.cli.progress import Glyphs, Progress, Snapshot, Tiers, render, render_plain, tier_bar

MIB = 1 << 20
TIERS = Tiers(ram_bytes=64 * MIB, ram_limit_bytes=64 * MIB, disk_bytes=128 * MIB)
SNAPSHOT = Snapshot("prefill", done=3072, total=6144, rate=1024.0, tiers=TIERS)

WIDE = """\
prefill   ████████████░░░░░░░░░░░░   50%  3,072/6,144 tokens  1,024 tokens/s  3.00 s left
KV        ████████████▒▒▒▒▒▒▒▒▒▒▒▒  █ ram 64MiB of 64MiB  ▒ disk 128MiB"""
NARROW = """\
prefill   ████████████░░░░░░░░░░░░   50%
KV        ████████████▒▒▒▒▒▒▒▒▒▒▒▒"""
ASCII = """\
prefill   ############............   50%  3,072/6,144 tokens  1,024 tokens/s  3.00 s left
KV        ############============  # ram 64MiB of 64MiB  = disk 128MiB"""


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("columns", "expected"), [(120, WIDE), (50, NARROW)])
def test_live_lines(columns, expected):
    lines = render(SNAPSHOT, columns=columns)
    assert "\n".join(lines) == expected
    assert all(len(line) < columns for line in lines)


def test_ascii_where_the_encoding_has_no_blocks():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert "\n".join(render(SNAPSHOT, columns=120, glyphs=Glyphs.of(stream))) == ASCII


def test_colour_changes_no_character():
    coloured = render(SNAPSHOT, columns=120, style=Style(enabled=True))
    assert "\x1b[" in coloured[1]
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == WIDE.splitlines()


def test_plain_line():
    assert render_plain(SNAPSHOT) == (
        "prefill 3,072/6,144 tokens, 1,024 tokens/s, 3.00 s left, ram 64MiB of 64MiB, disk 128MiB"
    )


@pytest.mark.parametrize(
    ("ram", "disk", "bar"),
    [(0, 0, "░" * 8), (5, 0, "█" * 8), (1, 999, "█" + "▒" * 7), (998, 999, "█" * 7 + "▒")],
)
def test_a_tier_that_holds_a_share_always_shows(ram, disk, bar):
    assert tier_bar(Tiers(ram, None, disk), style=Style(), width=8) == bar


def test_live_progress_redraws_in_place_and_wipes_itself(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    stream, clock = Terminal(), Clock()
    with Progress(stream, label="prefill", total=1000, clock=clock) as progress:
        for step in (1, 2):
            clock.now += 1
            progress.update(step * 400, TIERS)
    written = stream.getvalue()
    assert "400 tokens/s" in written
    assert "\x1b[2A" in written  # back up over the two lines
    assert written.endswith("\x1b[2A\x1b[J")
    assert "\x1b[3" not in written  # NO_COLOR


def test_elsewhere_nothing_unless_asked_then_plain_lines():
    for show, lines in ((None, 0), (False, 0), (True, 3)):
        stream, clock = io.StringIO(), Clock()
        with Progress(stream, label="prefill", total=1000, show=show, clock=clock) as progress:
            for step in range(1, 11):
                clock.now += 1
                progress.update(step * 100)
        assert stream.getvalue().count("\n") == lines
        assert "\x1b" not in stream.getvalue()


def test_no_progress_is_obeyed_on_a_terminal():
    stream = Terminal()
    with Progress(stream, label="prefill", total=10, show=False) as progress:
        progress.update(10)
    assert stream.getvalue() == ""


def test_durations_ages_and_tables():
    seconds = [0.0042, 0.31, 12.5, 185.2, 7500]
    assert [format_seconds(s) for s in seconds] == ["4.2 ms", "0.31 s", "12.5 s", "3 min 05 s", "2 h 05 min"]
    assert [format_age(s) for s in (3, 400, 8000, 200000)] == ["just now", "6 min", "2 h", "2 d"]
    assert table(["A", "N"], [["x", "1"], ["long", "23"]], right=(1,)) == ["A      N", "x      1", "long  23"]
