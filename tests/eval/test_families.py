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
    found = made([family])
    for text, question in [(trial.text, question) for trial in found for question in trial.questions]:
        assert question.family == family
        for answer in question.answers:
            assert re.search(rf"\b{re.escape(answer)}\b", text), answer
        assert question.score(" and ".join(question.answers)) == 1
        assert question.score("nothing of that") == 0
        if len(question.answers) > 1:
            assert 0 < question.score(question.answers[0]) < 1


@pytest.mark.parametrize("family", ["needle", "facts", "keys"])
def test_facts_stand_at_depths_all_over_the_text(family):
    found = made([family], 20_000, count=20)
    depths = []
    for trial in found:
        words = trial.text.split()
        for question in trial.questions:
            at = next(index for index, word in enumerate(words) if word.strip(".") == question.answers[0])
            assert abs(at / len(words) - question.depth) < 0.01
            depths.append(question.depth)
    assert sorted(depths) == [(step + 0.5) / 20 for step in range(20)]


def test_each_needle_has_a_text_of_its_own_that_shares_what_comes_before():
    found = made(["needle"], count=8)
    assert [trial.name for trial in found] == [f"needle-{number}" for number in range(1, 9)]
    for trial in found:
        (question,) = trial.questions
        own = [other.questions[0].answers[0] in trial.text for other in found]
        assert own.count(True) == 1
        start = int(0.9 * question.depth * len(trial.text))
        assert trial.text[:start] == found[-1].text[:start]


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


def test_every_family_has_a_text_of_its_own():
    found = made([*FAMILIES, *LISTS])
    assert [trial.name for trial in found if not trial.name.startswith("needle-")] == [*FAMILIES, *LISTS][1:]
    for trial in found:
        assert {question.family for question in trial.questions} == {trial.name.split("-")[0]}


def test_the_same_seed_gives_the_same_text_and_another_another():
    first, again, other = made(FAMILIES), made(FAMILIES), made(FAMILIES, seed=1)
    assert first == again
    assert first != other
    assert first[0] == made(["needle"])[0]


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
