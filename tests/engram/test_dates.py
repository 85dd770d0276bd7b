"""Phrases of time, resolved against the day on which they were said: a Monday, 2024-05-06."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.engram.dates import find_dates, resolved

MONDAY = date(2024, 5, 6)


@pytest.mark.parametrize(
    ("phrase", "label"),
    [
        ("yesterday", "2024-05-05"),
        ("the day before yesterday", "2024-05-04"),
        ("today", "2024-05-06"),
        ("last night", "2024-05-05"),
        ("this morning", "2024-05-06"),
        ("tomorrow", "2024-05-07"),
        ("the day after tomorrow", "2024-05-08"),
        ("three days ago", "2024-05-03"),
        ("10 days ago", "2024-04-26"),
        ("a week ago", "week of 2024-04-29"),
        ("two months ago", "2024-03"),
        ("a couple of years ago", "2022"),
        ("in two weeks", "week of 2024-05-20"),
        ("in 3 days", "2024-05-09"),
        ("six months from now", "2024-11"),
        ("last week", "week of 2024-04-29"),
        ("next month", "2024-06"),
        ("this year", "2024"),
        ("last year", "2023"),
        ("next weekend", "weekend of 2024-05-18"),
        ("this weekend", "weekend of 2024-05-11"),
        ("last Friday", "2024-05-03"),
        ("last Monday", "2024-04-29"),
        ("next Friday", "2024-05-10"),
        ("next Tuesday", "2024-05-14"),
        ("this Friday", "2024-05-10"),
        ("on Friday", "2024-05-10"),
        ("Thursday next week", "2024-05-16"),
        ("Friday last week", "2024-05-03"),
        ("last May", "2023-05"),
        ("last March", "2024-03"),
        ("next January", "2025-01"),
    ],
)
def test_a_phrase_becomes_its_period(phrase, label):
    (found,) = find_dates(f"we meet {phrase}, they say", MONDAY)
    assert found.label == label
    assert label.endswith(found.first.isoformat()) or found.first.isoformat().startswith(label)
    assert resolved(f"we meet {phrase}, they say", MONDAY) == f"we meet {phrase} ({label}), they say"


def test_a_weekday_of_a_sentence_about_the_past_is_past():
    assert resolved("We shipped it on Friday", MONDAY) == "We shipped it on Friday (2024-05-03)"
    assert resolved("The demo was on Monday", MONDAY) == "The demo was on Monday (2024-04-29)"


def test_several_in_one_text_and_none_in_others():
    text = resolved("Yesterday we chose Postgres, next week we migrate", MONDAY)
    assert text == "Yesterday (2024-05-05) we chose Postgres, next week (week of 2024-05-13) we migrate"
    for text in (
        "on 2024-05-03",
        "a day in the life",
        "in 2 days or so",
        "the last of us",
        "someday",
        "may be",
    ):
        assert resolved(text, MONDAY) == text


def test_ends_of_months_and_of_the_calendar():
    assert resolved("a month ago", date(2024, 3, 31)) == "a month ago (2024-02)"
    assert resolved("in a year", date(2024, 2, 29)) == "in a year (2025)"
    assert resolved("999 years ago", date(500, 1, 1)) == "999 years ago"
    assert resolved("tomorrow", date.max) == "tomorrow"


@given(
    st.dates(),
    st.sampled_from(["last", "next", "this", "on"]),
    st.sampled_from(["Monday", "Friday", "Sunday"]),
)
def test_a_weekday_is_that_weekday_and_on_its_side(said, which, day):
    found = find_dates(f"{which} {day}", said)
    if not found:
        assert date.max - said < (date.max - date(9999, 12, 10)) or said < date(1, 1, 10)
        return
    apart = (found[0].first - said).days
    assert found[0].first.strftime("%A") == day
    assert -7 <= apart < 0 if which == "last" else 0 < apart <= 9
