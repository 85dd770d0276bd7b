"""A long real text that every Python has: the documentation of its standard library.

The same interpreter gives the same text, in the same order. Facts are hidden in it at chosen
depths, so that an answer shows whether the text was really read.
"""

from __future__ import annotations

import importlib
import inspect
import random
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
CLOSE_ENOUGH = 50  # a text may be a fiftieth too short
CITIES = ("Lisbon", "Nairobi", "Oslo", "Lima", "Hanoi", "Dublin", "Quito", "Vienna", "Cairo", "Seoul")


@dataclass(frozen=True)
class Fact:
    """One sentence that nothing else in the text tells, and what can be answered only with it."""

    sentence: str
    question: str
    answer: str

    def answered_by(self, text: str) -> bool:
        """Whether a text gives the answer."""
        return self.answer in text.lower().replace(",", "")


def random_facts(seed: int | None = None) -> list[Fact]:
    """Two facts, without a seed fresh ones each time: no run can know them from another.

    Both are numbers of different digits, for things of different kinds: a model of 135M parameters mixes
    two cities up now and then, and stops early among equal digits, whatever cache it has. Of seven kinds of
    facts hidden together in 6,000 tokens, it found these two (and a ticket's number) in all of five texts,
    codes, passwords and combinations in none to three.
    """
    chance = secrets.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311  # no secrets here
    city = chance.choice(CITIES)
    phone, serial = ("".join(chance.sample("123456789", 5)) for _ in range(2))
    return [
        Fact(
            f"The phone number of the bakery in {city} is {phone}.",
            f"What is the phone number of the bakery in {city}?",
            phone,
        ),
        Fact(
            f"The serial number of the red telescope is {serial}.",
            "What is the serial number of the red telescope?",
            serial,
        ),
    ]


def standard_library_text(num_tokens: int, count_tokens: Callable[[str], int]) -> tuple[list[str], int]:
    """Paragraphs of documentation, together as long as asked or a little less.

    Args:
        num_tokens: the most tokens that the text may have.
        count_tokens: tokens of a paragraph.

    Returns:
        the paragraphs, and of how many modules they are.
    """
    paragraphs: list[str] = []
    left, modules = num_tokens, 0
    for name in MODULES:
        before = len(paragraphs)
        for paragraph in _paragraphs(importlib.import_module(name)):
            length = count_tokens(paragraph + "\n\n")
            if length <= left:
                paragraphs.append(paragraph)
                left -= length
        modules += len(paragraphs) > before
        if left < num_tokens // CLOSE_ENOUGH:
            break
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
