"""The kinds of tasks, after RULER: what is put into the text, and what is asked about it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterator

from stratakv.eval.haystack import Haystack
from stratakv.eval.question import Question, Trial
from stratakv.eval.words import CITIES, NAMES, NOUNS, NUMBERED, coined_words

__all__ = ["FAMILIES", "LISTS", "trials"]

Facts = tuple[list[tuple[float, str]], list[Question]]
"""Sentences with their depths, and questions about them."""

QUESTION_TOKENS = 160
"""What a prompt has room for beside the text: the chat's frame and the question."""
VALUES = 4
HOPS = 4


def _depths(count: int) -> list[float]:
    """`count` depths, spread over the text."""
    return [(index + 0.5) / count for index in range(count)]


def _numbers(chance: random.Random, count: int) -> list[str]:
    """Numbers of five digits, none of them twice in one: equal ones make small models stumble."""
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        numbers["".join(chance.sample("123456789", 5))] = None
    return list(numbers)


def needles(chance: random.Random, count: int) -> Facts:
    """A number for a city, alone in its text (RULER: single)."""
    return _one_of_many("needle", chance, count)


def keys(chance: random.Random, count: int) -> Facts:
    """A number for each of many cities in one text; one is asked for (RULER: multi-key)."""
    return _one_of_many("keys", chance, count)


def _one_of_many(family: str, chance: random.Random, count: int) -> Facts:
    cities, numbers = chance.sample(CITIES, count), _numbers(chance, count)
    sentences, questions = [], []
    for city, number, depth in zip(cities, numbers, _depths(count), strict=True):
        fact = f"special magic number for {city} is"
        sentences.append((depth, f"The {fact} {number}."))
        question = f"What is the special magic number for {city}?"
        questions.append(Question(family, question, f"The {fact}", (number,), 12, depth))
    return sentences, questions


def facts(chance: random.Random, count: int) -> Facts:
    """Numbers of many different things in one text; each is asked for by itself.

    Between `needle` and `keys`: the text is read once for all questions, and no fact is worded like another.
    """
    sentences, questions = [], []
    for thing, number, depth in zip(
        chance.sample(NUMBERED, count), _numbers(chance, count), _depths(count), strict=True
    ):
        sentences.append((depth, f"The {thing} is {number}."))
        question = f"What is the {thing}?"
        questions.append(Question("facts", question, f"The {thing} is", (number,), 12, depth))
    return sentences, questions


def values(chance: random.Random, count: int) -> Facts:
    """Several numbers for one name, far apart; all are asked for (RULER: multi-value)."""
    sentences, questions = [], []
    for name in chance.sample(NAMES, max(count // VALUES, 1)):
        numbers = _numbers(chance, VALUES)
        sentences += [
            (chance.random(), f"One of the access codes of {name} is {number}.") for number in numbers
        ]
        questions.append(
            Question(
                "values",
                f"What are all the access codes of {name}?",
                f"The {VALUES} access codes of {name} are",
                tuple(numbers),
                48,
            )
        )
    return sentences, questions


def queries(chance: random.Random, count: int) -> Facts:
    """A number for each of many animals; several are asked for at once (RULER: multi-query)."""
    nouns = chance.sample(NOUNS, max(count // VALUES, 1) * VALUES)
    numbers = dict(zip(nouns, _numbers(chance, len(nouns)), strict=True))
    sentences = [(chance.random(), f"The weight of the {noun} is {numbers[noun]} grams.") for noun in nouns]
    questions = []
    for group in (nouns[start : start + VALUES] for start in range(0, len(nouns), VALUES)):
        asked = ", ".join(f"the {noun}" for noun in group[:-1]) + f" and the {group[-1]}"
        questions.append(
            Question(
                "queries",
                f"What are the weights of {asked}?",
                f"The weights of {asked} are",
                tuple(numbers[noun] for noun in group),
                48,
            )
        )
    return sentences, questions


def tracking(chance: random.Random, count: int) -> Facts:
    """Variables that take over one another's value, in order; all of one value are asked for."""
    sentences, questions = [], []
    names = iter(coined_words(chance, max(count // VALUES, 1) * (HOPS + 1), length=5))
    for number in _numbers(chance, max(count // VALUES, 1)):
        chain = [next(names).upper() for _ in range(HOPS + 1)]
        lines = [f"VAR {chain[0]} = {number}"]
        lines += [f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(chain)]
        sentences += list(zip(sorted(chance.random() for _ in lines), lines, strict=True))
        questions.append(
            Question(
                "tracking",
                f"Find all variables that are assigned the value {number} in the text above.",
                f"The {len(chain)} variables that are assigned the value {number} are: VAR",
                tuple(chain),
                48,
            )
        )
    return sentences, questions


FAMILIES: dict[str, Callable[[random.Random, int], Facts]] = {
    "needle": needles,
    "facts": facts,
    "keys": keys,
    "values": values,
    "queries": queries,
    "tracking": tracking,
}
"""Facts put into real text."""
APART = frozenset({"needle"})
"""Families of which each fact has a text of its own. What they have in common is read once."""


def common(chance: random.Random, length: int, count_tokens: Callable[[str], int]) -> Trial:
    """A numbered list in which ten words stand often and the others seldom (RULER: common words)."""
    often = coined_words(chance, 10, length=6)
    words = list(often) * 30
    others = coined_words(chance, length // 2, length=6)
    seldom = (word for word in others if word not in often)
    sample = count_tokens("\n".join(f"{1000 + index}. {word}" for index, word in enumerate(others[:100])))
    lines_max = (length - QUESTION_TOKENS) * 100 // sample
    words = words[: lines_max // 2]
    words += itertools.islice(seldom, lines_max - len(words))
    chance.shuffle(words)
    text = _fit("\n".join(f"{index}. {word}" for index, word in enumerate(words, 1)), length, count_tokens)
    question = Question(
        "common",
        "What are the 10 most common words in the above list?",
        "The 10 most common words in the list are:",
        tuple(often),
        100,
    )
    return Trial("common", length, text, (question,))


def frequent(chance: random.Random, length: int, count_tokens: Callable[[str], int]) -> Trial:
    """Coined words, the n-th as often as 1/n^2 says; the three most frequent are asked for."""
    words = coined_words(chance, 200, length=6)
    weights = [1 / (rank + 1) ** 2 for rank in range(len(words))]
    drawn = chance.choices(words, weights, k=length)
    text = _fit(" ".join(drawn), length, count_tokens)
    question = Question(
        "frequent",
        "What are the three most frequently appeared words in the above coded text?",
        "The three most frequently appeared words are:",
        tuple(words[:3]),
        40,
    )
    return Trial("frequent", length, text, (question,))


LISTS: dict[str, Callable[[random.Random, int, Callable[[str], int]], Trial]] = {
    "common": common,
    "frequent": frequent,
}
"""Texts made of words alone."""


def _fit(text: str, length: int, count_tokens: Callable[[str], int]) -> str:
    """As much of the text's beginning as fits the length."""
    room = length - QUESTION_TOKENS
    while (tokens := count_tokens(text)) > room:
        text = text[: len(text) * room // tokens - 8]
    return text


def trials(
    families: Collection[str], length: int, haystack: Haystack, *, seed: int = 0, count: int = 20
) -> Iterator[Trial]:
    """The texts of one length with their questions.

    A text holds facts of one family only, and one fact where that is its point: what a question is not
    about are distractors, which small models often take for the answer.

    Args:
        families: keys of `FAMILIES` and of `LISTS`.
        length: tokens of text and question, at most.
        haystack: the text into which facts are put.
        seed: of all that is drawn; the same seed gives the same texts.
        count: facts of each family.

    Raises:
        TooShortError: the haystack is shorter.
    """
    for family, facts_of in FAMILIES.items():
        if family in families:
            yield from _texts_of(family, facts_of(_chance(seed, length, family), count), length, haystack)
    for family, trial_of in LISTS.items():
        if family in families:
            yield trial_of(_chance(seed, length, family), length, haystack.count_tokens)


def _texts_of(family: str, facts: Facts, length: int, haystack: Haystack) -> Iterator[Trial]:
    """The texts of a family's facts: one for each needle, one for all facts of the other families."""
    sentences, questions = facts
    texts = len(questions) if family in APART else 1
    for part in range(texts):
        text = haystack.with_sentences(sentences[part::texts], length - QUESTION_TOKENS)
        name = family if texts == 1 else f"{family}-{part + 1}"
        yield Trial(name, length, text, tuple(questions[part::texts]))


def _chance(seed: int, length: int, family: str) -> random.Random:
    return random.Random(f"{seed} {length} {family}")  # noqa: S311  # no secrets
