"""The report of `stratakv eval`: one JSON file, written after every answer, that a later run goes on from."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from stratakv.cli.errors import UsageError
from stratakv.cli.output import format_count, table

__all__ = ["PERPLEXITY", "Report"]

PERPLEXITY = "perplexity"


class Report:
    """Settings of a run and what it found so far.

    Args:
        path: the file; None keeps the report in memory.
        settings: what the results depend on.

    Raises:
        UsageError: the file is no report, or one of other settings.
    """

    def __init__(self, path: str | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = settings
        self.results: list[dict[str, Any]] = []
        # Tokens and seconds of what was read of each text, over all runs.
        self.reading: dict[str, dict[str, float]] = {}
        self.peak_memory_bytes = 0
        if self.path is not None and self.path.exists():
            self._resume(self.path)

    def _resume(self, path: Path) -> None:
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            settings, self.results = saved["settings"], list(saved["results"])
            self.reading = dict(saved["reading"])
            self.peak_memory_bytes = int(saved["peak_memory_bytes"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is not a report of `stratakv eval`", "give another --report") from None
        differing = [key for key in self.settings if settings.get(key) != self.settings[key]]
        if differing:
            parts = [f"{key} {settings.get(key)} there, {self.settings[key]} here" for key in differing]
            raise UsageError(
                f"{path} is of other settings: {'; '.join(parts)}",
                "give the same ones to go on, or another --report",
            )

    def has(self, length: int, family: str, question: str) -> bool:
        """Whether that question was answered."""
        wanted = (length, family, question)
        return any((one["length"], one["family"], one["question"]) == wanted for one in self.results)

    def add(self, result: dict[str, Any]) -> None:
        """Takes a result, and writes it down."""
        self.results.append(result)
        self._write()

    def add_reading(self, text: str, tokens: int, seconds: float) -> None:
        """Notes how long it took to read a part of a text, and writes it down."""
        before = self.reading.get(text, {"tokens": 0, "seconds": 0.0})
        seconds = round(before["seconds"] + seconds, 2)
        self.reading[text] = {"tokens": before["tokens"] + tokens, "seconds": seconds}
        self._write()

    def _write(self) -> None:
        """Writes the file anew beside the old one."""
        from stratakv.cli.engine import peak_rss_bytes

        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_rss_bytes() or 0)
        if self.path is None:
            return
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Settings, the mean of every family and length, what was read how fast, and each answer."""
        return {
            "settings": self.settings,
            "summary": self.summary(),
            "reading": self.reading,
            "peak_memory_bytes": self.peak_memory_bytes,
            "results": self.results,
        }

    def summary(self) -> list[dict[str, Any]]:
        """For each family and length, in order: the mean score, or the perplexity, and of how many."""
        groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for one in self.results:
            groups.setdefault((one["family"], one["length"]), []).append(one)
        return [
            {"family": family, "length": length, "questions": len(ones), **_mean(family, ones)}
            for (family, length), ones in sorted(groups.items())
        ]

    def lines(self) -> list[str]:
        """A table: a row for each family, a column for each length."""
        lengths = sorted({one["length"] for one in self.results})
        cells: dict[str, dict[int, str]] = {}
        for one in self.summary():
            text = (
                f"{one['perplexity']:.2f}"
                if one["family"] == PERPLEXITY
                else f"{100 * one['score']:.0f} % of {one['questions']}"
            )
            cells.setdefault(one["family"], {})[one["length"]] = text
        rows = [[family, *(own.get(length, "") for length in lengths)] for family, own in cells.items()]
        header = ["FAMILY", *(format_count(length) for length in lengths)]
        return table(header, rows, right=range(1, len(header)))


def _mean(family: str, ones: list[dict[str, Any]]) -> dict[str, float]:
    mean = statistics.mean(one["score"] for one in ones)
    return {"perplexity": round(math.exp(mean), 4)} if family == PERPLEXITY else {"score": round(mean, 4)}
