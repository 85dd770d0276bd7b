"""What a measured number is, and what is recorded with it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FIGURES_FILE = RESULTS / "figures.json"


class NotMeasurableHereError(Exception):
    """This machine lacks what a figure is about; the message says what. Nothing is recorded."""


@dataclass(frozen=True)
class Result:
    """Samples of one figure, all taken in one run; their median is its value."""

    samples: list[float]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Figure:
    """One number that the project publishes.

    `target` is what is asked of it: at least, or with `at_most` at most; None where it is only
    reported. `limit` says what the hardware allows, so that the distance to it can be seen.
    """

    key: str
    title: str
    unit: str
    target: float | None
    at_most: bool
    peer: str
    limit: str
    measure: Callable[[], Result]
    takes_hours: bool

    @property
    def asked(self) -> str:
        if self.target is None:
            return "reported"
        return ("at most" if self.at_most else "at least") + f" {self.target:g}"

    def holds(self, value: float) -> bool:
        if self.target is None:
            return True
        return value <= self.target if self.at_most else value >= self.target


FIGURES: dict[str, Figure] = {}


def figure(
    key: str,
    title: str,
    *,
    unit: str,
    target: float | None,
    peer: str,
    limit: str,
    at_most: bool = False,
    takes_hours: bool = False,
) -> Callable[[Callable[[], Result]], Callable[[], Result]]:
    """Registers the function that measures a figure; one that takes hours is measured only by its key."""

    def register(measure: Callable[[], Result]) -> Callable[[], Result]:
        FIGURES[key] = Figure(key, title, unit, target, at_most, peer, limit, measure, takes_hours)
        return measure

    return register


def record(one: Figure, result: Result, seconds: float) -> dict[str, Any]:
    """Writes a result into the file of figures, and gives what was written."""
    entry = {
        "title": one.title,
        "value": round(result.value, 6),
        "unit": one.unit,
        "target": one.asked,
        "holds": one.holds(result.value),
        "spread": [round(min(result.samples), 6), round(max(result.samples), 6)],
        "samples": [round(sample, 6) for sample in result.samples],
        "peer": one.peer,
        "limit": one.limit,
        "command": f"make figures KEY={one.key}",
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(seconds, 1),
        **({"details": result.details} if result.details else {}),
    }
    RESULTS.mkdir(exist_ok=True)
    known = json.loads(FIGURES_FILE.read_text()) if FIGURES_FILE.exists() else {}
    known[one.key] = entry
    beside = FIGURES_FILE.with_suffix(".tmp")
    beside.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
    beside.replace(FIGURES_FILE)
    return entry


def commit() -> str:
    """The commit measured, marked where the tree differs from it."""
    head = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benches/results")
    return (head or "unknown") + ("+" if changed else "")


def git(*words: str) -> str:
    """What git says about this tree; nothing where there is no git."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()


def hardware() -> str:
    """Processor, cores, memory: what a reader needs to compare."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else 0
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def versions() -> str:
    names = ("stratakv", "torch", "transformers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
