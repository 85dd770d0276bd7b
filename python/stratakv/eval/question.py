"""A question about a text, its answers, and the share of them that a reply gives."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Question", "Trial"]

_GROUPED = re.compile(r"(?<=\d),(?=\d{3})")


@dataclass(frozen=True)
class Question:
    """What is asked, and what has to be in the reply.

    Attributes:
        family: the kind of task, a key of `FAMILIES` or of `LISTS`.
        text: the question.
        opening: the words with which the reply begins, given to the model.
        answers: strings that the reply has to contain.
        max_new_tokens: length of the reply.
        depth: where in the text the answer stands, from 0 to 1; None where that is in many places.
    """

    family: str
    text: str
    opening: str
    answers: tuple[str, ...]
    max_new_tokens: int
    depth: float | None = None

    def score(self, reply: str) -> float:
        """The share of the answers that the reply contains as whole words, whatever their case.

        RULER's string match; 12,345 counts as 12345.
        """
        said = _GROUPED.sub("", reply).lower()
        found = [re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", said) for answer in self.answers]
        return sum(one is not None for one in found) / len(found)


@dataclass(frozen=True)
class Trial:
    """One text and all that is asked about it.

    Attributes:
        name: its family.
        length: tokens of the prompt, the question included, at most.
        text: the document.
        questions: asked one by one, each as if it were the only one.
    """

    name: str
    length: int
    text: str
    questions: tuple[Question, ...]
