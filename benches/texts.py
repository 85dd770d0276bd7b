"""Real text of any length: code that every machine with Python has, and a book.

The book is one that Debian packages, or else the one that comes with Rust: what is measured on prose
says which it was.
"""

from __future__ import annotations

import html.parser
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")


@dataclass(frozen=True)
class Book:
    """A folder of chapters in HTML."""

    title: str
    folder: Path
    chapters: str


def token_ids(tokenizer: Any, count: int) -> list[int]:
    """The first `count` token ids of the standard library's sources, in the order of their names."""
    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += tokenizer(path.read_text(errors="replace"), add_special_tokens=False)["input_ids"]
        if len(ids) >= count:
            return ids[:count]
    raise SystemExit(f"the standard library has {len(ids)} tokens, fewer than the {count} asked for")


def book() -> Book:
    """The Debian Administrator's Handbook where it is installed, or else Rust's own book."""
    known = [Book("Debian handbook", HANDBOOK, "*.html")]
    try:
        done = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True)
        folder = Path(done.stdout.strip()) / "share/doc/rust/html/book"
        known.append(Book("The Rust Programming Language", folder, "ch*.html"))
    except (OSError, subprocess.CalledProcessError):
        pass
    for one in known:
        if one.folder.is_dir():
            return one
    raise SystemExit("this figure reads a book: install it (apt-get install debian-handbook)")


def prose_ids(tokenizer: Any, count: int) -> list[int]:
    """The first `count` token ids of the book, chapters by name."""
    ids: list[int] = []
    source = book()
    for path in sorted(source.folder.glob(source.chapters)):
        reader = _Paragraphs()
        reader.feed(path.read_text(encoding="utf-8"))
        ids += tokenizer("\n\n".join(reader.paragraphs), add_special_tokens=False)["input_ids"]
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
        self._main = False
        self._open = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._main = self._main or tag == "main"
        if (tag == "div" and ("class", "para") in attrs) or (tag == "p" and self._main):
            self._open = tag
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._main = self._main and tag != "main"
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.paragraphs[-1] = " ".join(f"{self.paragraphs[-1]} {data}".split())
