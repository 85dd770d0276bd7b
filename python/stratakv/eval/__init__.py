"""What a model is asked about a long text, and how its answers are judged.

What it is: real text cut to a length (`haystack`), facts put into it or lists made (`families`), and
questions that know their answers (`question`); conversations with questions about them
(`conversations`). What it is not: it runs no model and opens no cache,
which `stratakv eval` does.

Source of the families: Hsieh et al., "RULER", 2024 (arXiv:2404.06654). Different from it: one text
holds all facts of a family but `needle`, and texts share what comes before their facts, so that a million
tokens are read as seldom as can be.
"""

from stratakv.eval.families import FAMILIES, LISTS, trials
from stratakv.eval.haystack import Haystack, TooShortError, paragraphs_of, standard_library_paragraphs
from stratakv.eval.question import Question, Trial

__all__ = [
    "FAMILIES",
    "LISTS",
    "Haystack",
    "Question",
    "TooShortError",
    "Trial",
    "paragraphs_of",
    "standard_library_paragraphs",
    "trials",
]
