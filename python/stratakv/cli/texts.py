"""A long real text that every Python has: the documentation of its standard library.

The same interpreter gives the same text, in the same order. Facts are hidden in it at chosen
depths, so that an answer shows whether the text was really read.
"""

from __future__ import annotations

import importlib
import inspect
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

__all__ = ["Fact", "hide", "random_facts", "standard_library_text"]

# Modules with prose in their docstrings, harmless to import everywhere.
MODULES = (
    "textwrap", "statistics", "heapq", "bisect", "fractions", "calendar", "string", "random", "shutil",
    "collections", "functools", "argparse", "configparser", "csv", "datetime", "difflib", "email.message",
    "fileinput", "fnmatch", "gettext", "glob", "inspect", "ipaddress", "json", "logging", "mimetypes",
    "pathlib", "pickle", "pprint", "queue", "sched", "selectors", "shelve", "socket", "subprocess", "tarfile",
    "tempfile", "threading", "timeit", "tokenize", "typing", "unittest", "urllib.parse", "uuid", "weakref",
    "zipfile",
)  # fmt: skip
CITIES = ("Lisbon", "Nairobi", "Oslo", "Lima", "Hanoi", "Dublin", "Quito", "Vienna", "Cairo", "Seoul")


@dataclass(frozen=True)
class Fact:
    """One sentence that nothing else in the text tells."""

    city: str
    number: str

    @property
    def sentence(self) -> str:
        """The fact, as it stands in the text."""
        return f"The special magic number for {self.city} is {self.number}."

    @property
    def question(self) -> str:
        """What can be answered only with the fact."""
        return f"What is the special magic number for {self.city}?"

    def answered_by(self, answer: str) -> bool:
        """Whether the answer gives the number."""
        return self.number in answer.replace(",", "")


def random_facts(count: int) -> list[Fact]:
    """Facts about different cities, fresh ones each time: no run can know them from another."""
    cities = secrets.SystemRandom().sample(CITIES, count)
    return [Fact(city, str(10_000 + secrets.randbelow(90_000))) for city in cities]


def standard_library_text(num_tokens: int, count_tokens: Callable[[str], int]) -> tuple[list[str], int]:
    """Paragraphs of documentation, together as long as asked or a little less.

    Args:
        num_tokens: the most tokens that the text may have.
        count_tokens: tokens of a paragraph.

    Returns:
        the paragraphs, and of how many modules they are.
    """
    paragraphs: list[str] = []
    used, modules = 0, 0
    for name in MODULES:
        modules += 1
        for paragraph in _paragraphs(importlib.import_module(name)):
            length = count_tokens(paragraph + "\n\n")
            if used + length > num_tokens:
                return paragraphs, modules
            paragraphs.append(paragraph)
            used += length
    return paragraphs, modules


def hide(paragraphs: list[str], facts: list[Fact]) -> str:
    """The text with each fact as a paragraph of its own, at even depths (two: a third and two thirds)."""
    parts = list(paragraphs)
    for index in reversed(range(len(facts))):
        parts.insert(len(paragraphs) * (index + 1) // (len(facts) + 1), facts[index].sentence)
    return "\n\n".join(parts)


def _paragraphs(module: ModuleType) -> Iterator[str]:
    """The module's documentation, then that of its own public functions and classes, by name."""
    yield f"Module {module.__name__}.\n{inspect.getdoc(module) or ''}".strip()
    for name, member in sorted(vars(module).items()):
        own = getattr(member, "__module__", None) == module.__name__
        if name.startswith("_") or not own or not (inspect.isfunction(member) or inspect.isclass(member)):
            continue
        text = inspect.getdoc(member)
        if text:
            yield f"{module.__name__}.{name}: {text}"
