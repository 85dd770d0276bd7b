"""Real text of any length: code that every machine with Python has, and a book that Debian packages."""

from __future__ import annotations

import html.parser
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")


def token_ids(tokenizer: Any, count: int) -> list[int]:
    """The first `count` token ids of the standard library's sources, in the order of their names."""
    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += tokenizer(path.read_text(errors="replace"), add_special_tokens=False)["input_ids"]
        if len(ids) >= count:
            return ids[:count]
    raise SystemExit(f"the standard library has {len(ids)} tokens, fewer than the {count} asked for")


def prose() -> Iterator[str]:
    """The Debian Administrator's Handbook, chapters by name."""
    if not HANDBOOK.is_dir():
        raise SystemExit("this figure reads a book: install it (apt-get install debian-handbook)")
    for path in sorted(HANDBOOK.glob("*.html")):
        reader = _Paragraphs()
        reader.feed(path.read_text(encoding="utf-8"))
        yield "\n\n".join(reader.paragraphs)


def prose_ids(tokenizer: Any, count: int) -> list[int]:
    """The first `count` token ids of that book."""
    ids: list[int] = []
    for chapter in prose():
        ids += tokenizer(chapter, add_special_tokens=False)["input_ids"]
        if len(ids) >= count:
            return ids[:count]
    raise SystemExit(f"the book has {len(ids)} tokens, fewer than the {count} asked for")


def write_text(path: Any, tokenizer: Any, count: int) -> None:
    """A file of about `count` tokens."""
    path.write_text(tokenizer.decode(token_ids(tokenizer, count)))


class _Paragraphs(html.parser.HTMLParser):
    """The text of a page's paragraphs: no menus, no listings."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "div" and ("class", "para") in attrs:
            self._open = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "div"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.paragraphs[-1] = " ".join(f"{self.paragraphs[-1]} {data}".split())
