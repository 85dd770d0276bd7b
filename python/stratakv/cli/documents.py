"""Several files as one text, and the way back from a place in it to a file and its lines."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stratakv.cli.files import TextFile

__all__ = ["Document", "Lines"]

DIVIDER = "\n\n"


@dataclass(frozen=True, order=True)
class Lines:
    """A range of lines of a file, from 1 on, both ends included."""

    name: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.name}:{self.first}" + (f"-{self.last}" if self.last > self.first else "")


class Document:
    """Files one after the other, each under a heading with its name."""

    def __init__(self, files: Iterable[TextFile]) -> None:
        self.files = list(files)
        headed = [(f"File {file.name}:\n\n", file.text) for file in self.files]
        self.text = DIVIDER.join(heading + text for heading, text in headed)
        lengths = [len(heading) + len(text) + len(DIVIDER) for heading, text in headed]
        starts = [0, *itertools.accumulate(lengths)][: len(headed)]
        # Where each file's own text starts.
        self._starts = [start + len(heading) for start, (heading, _) in zip(starts, headed, strict=True)]

    def lines(self, start: int, stop: int) -> Lines | None:
        """The lines on which the characters [start, stop) stand, of the file that most of them are of.

        None where they are no file's: a heading, or past the end.
        """
        index = bisect.bisect_right(self._starts, (start + stop - 1) // 2) - 1
        if index < 0:
            return None
        text, own = self.files[index].text, self._starts[index]
        start, stop = max(start - own, 0), min(stop - own, len(text))
        if start >= stop:
            return None
        # Blank lines at the ends say nothing.
        piece = text[start:stop]
        start += len(piece) - len(piece.lstrip("\n"))
        stop -= len(piece) - len(piece.rstrip("\n"))
        if start >= stop:
            return None
        first = 1 + text.count("\n", 0, start)
        return Lines(self.files[index].name, first, first + text.count("\n", start, stop))

    def offsets(self, tokenizer: Any) -> list[tuple[int, int]] | None:
        """For each token of the text, its characters; None where the tokenizer does not tell."""
        if not getattr(tokenizer, "is_fast", False):
            return None
        encoded = tokenizer(
            self.text + DIVIDER,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        return offsets
