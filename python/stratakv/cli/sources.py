"""Which lines of which files an answer was read from, told by where its steps looked.

A token of the answer is the outcome of a step; the step's attention, layer by layer and head by head, says
which blocks it came from. Most heads look at most of a text a little; the few that fetch something look at
one block much. So a block counts by the cubes of its shares: of 20 facts in texts of 4K tokens, 17 were then
among the first three places, and 6 by the mean of the shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stratakv.cache.selection import BLOCK_TOKENS
from stratakv.cli.documents import Document, Lines

if TYPE_CHECKING:
    from torch import Tensor

    from stratakv import TieredCache

__all__ = ["Source", "Trace"]

LEAST_OF_BEST = 0.25
"""A source is named where it counts at least this much of the best one."""


@dataclass(frozen=True)
class Source:
    """Lines that an answer was read from; `weight` is their part of all that counts, 0 to 1."""

    lines: Lines
    weight: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        lines = self.lines
        return {
            "file": lines.name,
            "first_line": lines.first,
            "last_line": lines.last,
            "weight": round(self.weight, 4),
        }


class Trace:
    """Where the steps of an answer looked, within its document.

    Args:
        document: the files.
        offsets: for each token of the document, its characters.
        first: position of the document's first token in the prompt.
    """

    def __init__(self, document: Document, offsets: list[tuple[int, int]], first: int) -> None:
        self.document = document
        self.offsets = offsets
        self.first = first
        # The first block that holds nothing but the document.
        self.first_block = -(-first // BLOCK_TOKENS)
        # One row for each token of the answer, (N): blocks of the document.
        self.rows: list[Tensor] = []

    def note(self, cache: TieredCache) -> None:
        """Takes note of the cache's last step."""
        shares_LHN = cache.attention_shares()
        if shares_LHN is None:
            return
        stop = (self.first + len(self.offsets)) // BLOCK_TOKENS
        self.rows.append(shares_LHN[..., self.first_block : stop].pow(3).sum((0, 1)))

    def lines_of(self, block: int) -> Lines | None:
        """The lines of a block of a row."""
        start = (self.first_block + block) * BLOCK_TOKENS - self.first
        own = self.offsets[start : start + BLOCK_TOKENS]
        return self.document.lines(own[0][0], own[-1][1]) if own else None

    def sources(self, count: int) -> list[Source]:
        """The lines that count most, at most so many, the best first; neighbours are one."""
        if not self.rows or count == 0:
            return []
        total_N = sum(self.rows[1:], self.rows[0])
        whole = float(total_N.sum())
        if whole == 0:
            return []
        order = total_N.argsort(descending=True, stable=True)[: 4 * count].tolist()
        found: list[Source] = []
        for block in order:
            weight = float(total_N[block]) / whole
            lines = self.lines_of(block)
            if lines is None or weight < LEAST_OF_BEST * float(total_N[order[0]]) / whole:
                continue
            near = next((index for index, one in enumerate(found) if _touch(one.lines, lines)), None)
            if near is not None:
                found[near] = _joined(found[near], Source(lines, weight))
            elif len(found) < count:
                found.append(Source(lines, weight))
        return found


def _touch(one: Lines, other: Lines) -> bool:
    return one.name == other.name and one.first <= other.last + 1 and other.first <= one.last + 1


def _joined(one: Source, other: Source) -> Source:
    first, last = min(one.lines.first, other.lines.first), max(one.lines.last, other.lines.last)
    return Source(Lines(one.lines.name, first, last), one.weight + other.weight)
