"""The texts and questions of `stratakv eval`, with a tokenizer of one token per word."""

from __future__ import annotations

import itertools
import re

import pytest

from stratakv.eval import (
    FAMILIES,
    LISTS,
    Haystack,
    Question,
    TooShortError,
    paragraphs_of,
    standard_library_paragraphs,
    trials,
)
from stratakv.eval.families import QUESTION_TOKENS


def count_words(text: str) -> int:
    return len(text.split())


def haystack(paragraphs: int = 10_000) -> Haystack:
    return Haystack(
        (f"Paragraph {index} of a long and even text." for index in range(paragraphs)), count_words
    )


def made(families, length=4096, **options):
    return list(trials(families, length, haystack(), **options))


@pytest.mark.parametrize("family", [*FAMILIES, *LISTS])
@pytest.mark.parametrize("length", [1024, 4096, 20_000])
def test_a_text_is_nearly_as_long_as_asked_and_never_longer(family, length):
    for trial in made([family], length):
        tokens = count_words(trial.text)
        assert length - QUESTION_TOKENS - 16 <= tokens <= length - QUESTION_TOKENS


@pytest.mark.parametrize("family", [*FAMILIES, *LISTS])
def test_every_answer_stands_in_the_text_and_a_reply_that_gives_all_scores_one(family):
    (trial,) = made([family])
    assert trial.questions
    for question in trial.questions:
        assert question.family == family
        for answer in question.answers:
            assert re.search(rf"\b{re.escape(answer)}\b", trial.text), answer
        assert question.score(" and ".join(question.answers)) == 1
        assert question.score("nothing of that") == 0
        if len(question.answers) > 1:
            assert 0 < question.score(question.answers[0]) < 1


def test_needles_stand_at_ten_depths_two_at_each():
    (trial,) = made(["needle"], 20_000, count=20)
    words = trial.text.split()
    for question in trial.questions:
        at = next(index for index, word in enumerate(words) if word.strip(".") == question.answers[0])
        assert abs(at / len(words) - question.depth) < 0.01
    depths = sorted(question.depth for question in trial.questions)
    assert depths == sorted([(step + 0.5) / 10 for step in range(10)] * 2)


def test_a_chain_of_variables_is_told_in_order():
    (trial,) = made(["tracking"])
    for question in trial.questions:
        at = [trial.text.index(f"VAR {name} =") for name in question.answers]
        assert at == sorted(at)
        for old, new in itertools.pairwise(question.answers):
            assert f"VAR {new} = VAR {old}" in trial.text


def test_the_common_words_are_the_most_common():
    (trial,) = made(["common"])
    words = re.findall(r"\d+\. (\w+)", trial.text)
    often = {word for word in set(words) if words.count(word) >= 20}
    assert often == set(trial.questions[0].answers)


def test_families_share_one_text_and_lists_have_their_own():
    names = [trial.name for trial in made([*FAMILIES, *LISTS])]
    assert names == ["facts", *LISTS]
    facts = made(FAMILIES)[0]
    assert {question.family for question in facts.questions} == set(FAMILIES)


def test_the_same_seed_gives_the_same_text_and_another_another():
    first, again, other = made(FAMILIES), made(FAMILIES), made(FAMILIES, seed=1)
    assert first == again
    assert first != other


def test_the_facts_of_a_family_do_not_depend_on_the_others_asked_for():
    alone, together = made(["needle"])[0], made(["needle", "tracking"])[0]
    assert alone.questions == tuple(
        question for question in together.questions if question.family == "needle"
    )


def test_a_text_that_is_too_short_says_how_long_it_is():
    with pytest.raises(TooShortError, match=r"the text has 80 tokens, fewer than"):
        list(trials(["needle"], 4096, haystack(10)))


@pytest.mark.parametrize(
    ("reply", "score"),
    [("It is 12,345.", 1), ("12345", 1), ("112345", 0), ("12345.6 and 123456", 1), ("1234 5", 0)],
)
def test_an_answer_counts_as_a_whole_word(reply, score):
    assert Question("needle", "", "", ("12345",), 1).score(reply) == score


def test_paragraphs_come_without_markup_and_long_ones_in_parts():
    page = "<style>p {}</style><p>fi<b>rs</b>t</p><script>no()</script>"
    texts = [("a.html", page), ("b.txt", "second\r\n\r\nthird\n\n\n"), ("c", "x" * 5000)]
    found = list(paragraphs_of(texts))
    assert [paragraph.replace(" ", "") for paragraph in found[:3]] == ["first", "second", "third"]
    assert [len(paragraph) for paragraph in found[3:]] == [2000, 2000, 1000]


def test_every_machine_has_a_text_of_a_million_tokens():
    characters = 0
    for paragraph in standard_library_paragraphs():
        characters += len(paragraph)
        if characters > 4_500_000:
            return
    pytest.fail(f"the standard library has {characters} characters")
