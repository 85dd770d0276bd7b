"""Real text of a chosen length, with sentences put into it at chosen depths."""

from __future__ import annotations

import html.parser
import itertools
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

__all__ = ["Haystack", "TooShortError", "paragraphs_of", "standard_library_paragraphs"]

DIVIDER = "\n\n"
PARAGRAPH_CHARS_MAX = 2000  # longer ones are cut: facts stand between paragraphs
_SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo"}


class TooShortError(ValueError):
    """The text has fewer tokens than were asked for."""


class Haystack:
    """Paragraphs in reading order, with the tokens of each.

    Args:
        paragraphs: read only as far as needed.
        count_tokens: tokens of a piece of text.
    """

    def __init__(self, paragraphs: Iterable[str], count_tokens: Callable[[str], int]) -> None:
        self.count_tokens = count_tokens
        self._rest = iter(paragraphs)
        self._known: list[tuple[str, int]] = []

    def paragraphs(self, num_tokens: int) -> list[tuple[str, int]]:
        """The first paragraphs, of `num_tokens` together or a little less, each with its tokens.

        Raises:
            TooShortError: there are not so many.
        """
        taken: list[tuple[str, int]] = []
        total = 0
        for index in itertools.count():
            if index == len(self._known):
                paragraph = next(self._rest, None)
                if paragraph is None:
                    raise TooShortError(f"the text has {total:,} tokens, fewer than {num_tokens:,}")
                self._known.append((paragraph, self.count_tokens(DIVIDER + paragraph)))
            if total + self._known[index][1] > num_tokens:
                return taken
            taken.append(self._known[index])
            total += self._known[index][1]
        raise AssertionError("unreachable")

    def with_sentences(self, sentences: Sequence[tuple[float, str]], num_tokens: int) -> str:
        """At most `num_tokens` of text, each sentence a paragraph of its own at its depth (0 to 1).

        Raises:
            TooShortError: there is less text.
        """
        needed = sum(self.count_tokens(DIVIDER + sentence) for _, sentence in sentences)
        paragraphs = self.paragraphs(num_tokens - needed)
        starts = [0, *itertools.accumulate(tokens for _, tokens in paragraphs)]
        waiting = sorted(sentences, reverse=True)
        parts = []
        for (paragraph, _), start in zip(paragraphs, starts, strict=False):
            while waiting and waiting[-1][0] * starts[-1] <= start:
                parts.append(waiting.pop()[1])
            parts.append(paragraph)
        return DIVIDER.join([*parts, *(sentence for _, sentence in reversed(waiting))])


def paragraphs_of(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The paragraphs of files, given as names and texts; HTML is read without its markup."""
    for name, text in texts:
        yield from _split(_text_of_html(text) if name.endswith((".html", ".htm", ".xhtml")) else text)


def standard_library_paragraphs() -> Iterator[str]:
    """The sources of the interpreter's own library: real text that every machine has."""
    for parent, folders, files in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(files):
            if name.endswith(".py"):
                yield from _split(Path(parent, name).read_text(encoding="utf-8", errors="replace"))


def _split(text: str) -> Iterator[str]:
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        whole = paragraph.strip("\n")
        if whole.strip():
            for start in range(0, len(whole), PARAGRAPH_CHARS_MAX):
                yield whole[start : start + PARAGRAPH_CHARS_MAX]


class _Reader(html.parser.HTMLParser):
    """Text of a page, a blank line wherever a block begins."""

    INLINE = frozenset(
        {"a", "abbr", "b", "cite", "code", "em", "i", "q", "small", "span", "strong", "sub", "sup"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in {"script", "style"}
        if tag not in self.INLINE:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            # Line ends inside a block are layout.
            self.parts.append(" ".join(data.split()) + " " if data.strip() else " ")


def _text_of_html(page: str) -> str:
    reader = _Reader()
    reader.feed(page)
    return "".join(reader.parts)
