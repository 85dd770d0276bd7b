"""Dates that a text tells relative to the day on which it was said: "yesterday", "in two weeks".

English only. A phrase becomes the period that it names, as ISO 8601: a day, a week (by its Monday), a month
or a year. "Last Friday" is the latest before the day, "this Friday" and "on Friday" the coming one, and "next
Friday" too, but not one of the next two days. "On Friday" is past where the sentence speaks of the past ("we
shipped on Friday").
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

_DAYS = [name.lower() for name in calendar.day_name]
_DAY = "(?:" + "|".join(_DAYS) + ")"
_MONTHS = [name.lower() for name in calendar.month_name]
_MONTH = "(?:" + "|".join(_MONTHS[1:]) + ")"
_WORDS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_NUMBERS = {"a": 1, "an": 1, "a couple of": 2, "a few": 3} | {word: n for n, word in enumerate(_WORDS, 1)}
_NUMBER = r"(?:a couple of|a few|an?|" + "|".join(_WORDS) + r"|\d{1,3})"
_UNIT = "(?:day|week|month|year)s?"
# Verbs by which a sentence speaks of what was.
_PAST = re.compile(r"\b(?:was|were|had|did|went|got|made|\w{2,}ed)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Dated:
    """A phrase of a text, characters `start` to `end`, and what it names: `label`, from `first` on."""

    start: int
    end: int
    label: str
    first: date


def find_dates(text: str, said: date) -> list[Dated]:
    """The phrases of a text that name a time relative to `said`, in order, none overlapping another."""
    found: list[Dated] = []
    for pattern, resolve in _PHRASES:
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(start < other.end and other.start < end for other in found):
                continue
            period = resolve(match, said)
            if period is not None:
                found.append(Dated(start=start, end=end, label=period[0], first=period[1]))
    return sorted(found, key=lambda one: one.start)


def resolved(text: str, said: date) -> str:
    """The text with each such phrase followed by what it names: "next Friday (2024-05-10)"."""
    for one in reversed(find_dates(text, said)):
        text = f"{text[: one.end]} ({one.label}){text[one.end :]}"
    return text


_Period = tuple[str, date] | None


def _day(day: date) -> _Period:
    return day.isoformat(), day


def _week(day: date) -> _Period:
    monday = day - timedelta(days=day.weekday())
    return f"week of {monday.isoformat()}", monday


def _month(day: date) -> _Period:
    return f"{day:%Y-%m}", day.replace(day=1)


def _year(day: date) -> _Period:
    return f"{day:%Y}", day.replace(month=1, day=1)


def _months_later(day: date, months: int) -> date:
    number = day.year * 12 + day.month - 1 + months
    year, month = divmod(number, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))


def _shift(day: date, count: int, unit: str) -> _Period:
    """So many units from a day, as exact as the unit is."""
    unit = unit.rstrip("s")
    try:
        if unit == "day":
            return _day(day + timedelta(days=count))
        if unit == "week":
            return _week(day + timedelta(weeks=count))
        if unit == "month":
            return _month(_months_later(day, count))
        return _year(_months_later(day, 12 * count))
    except (ValueError, OverflowError):
        return None  # beyond the calendar


def _count(text: str) -> int:
    text = text.lower()
    return _NUMBERS[text] if text in _NUMBERS else int(text)


def _near(match: re.Match[str], said: date) -> _Period:
    offset = {"yesterday": -1, "today": 0, "tonight": 0, "tomorrow": 1}
    phrase = re.sub(r"\s+", " ", match.group().lower())
    if phrase in ("the day before yesterday", "the day after tomorrow"):
        return _shift(said, -2 if "before" in phrase else 2, "day")
    word = phrase.split()[0]
    return _shift(said, offset.get(word, -1 if word == "last" else 0), "day")


def _ago(match: re.Match[str], said: date) -> _Period:
    return _shift(said, -_count(match["count"]), match["unit"].lower())


def _ahead(match: re.Match[str], said: date) -> _Period:
    return _shift(said, _count(match["count"]), match["unit"].lower())


def _neighbour(match: re.Match[str], said: date) -> _Period:
    step = {"last": -1, "past": -1, "previous": -1, "this": 0, "next": 1, "coming": 1}[match["which"].lower()]
    unit = match["unit"].lower()
    if unit == "weekend":
        saturday = said - timedelta(days=said.weekday()) + timedelta(days=5, weeks=step)
        return f"weekend of {saturday.isoformat()}", saturday
    return _shift(said, step, unit)


def _weekday(match: re.Match[str], said: date) -> _Period:
    which = (match["which"] or "").lower()
    ahead = (_DAYS.index(match["day"].lower()) - said.weekday()) % 7
    if which in ("last", "past", "previous") or (which == "on" and _PAST.search(match.string)):
        return _shift(said, ahead - 7, "day")
    if which == "next" and ahead <= 2:
        ahead += 7
    return _shift(said, ahead or 7, "day")


def _weekday_of_week(match: re.Match[str], said: date) -> _Period:
    step = {"last": -1, "this": 0, "next": 1}[match["which"].lower()]
    monday = said - timedelta(days=said.weekday())
    return _day(monday + timedelta(weeks=step, days=_DAYS.index(match["day"].lower())))


def _month_of(match: re.Match[str], said: date) -> _Period:
    month = _MONTHS.index(match["month"].lower())
    year = said.year
    if match["which"].lower() == "last":
        year -= month >= said.month
    elif match["which"].lower() == "next":
        year += month <= said.month
    return _month(date(year, month, 1))


def _phrases() -> Iterator[tuple[re.Pattern[str], Callable[[re.Match[str], date], _Period]]]:
    """Patterns, the longest phrases first."""

    def pattern(text: str) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{text})\b", re.IGNORECASE)

    yield (
        pattern(
            r"the day before yesterday|the day after tomorrow|yesterday|today|tonight|tomorrow"
            r"|last night|this (?:morning|afternoon|evening)"
        ),
        _near,
    )
    yield pattern(rf"(?P<day>{_DAY}) (?:of )?(?P<which>last|this|next) week"), _weekday_of_week
    yield pattern(rf"(?P<count>{_NUMBER}) (?P<unit>{_UNIT}) ago"), _ago
    yield pattern(rf"in (?:about )?(?P<count>{_NUMBER}) (?P<unit>{_UNIT})(?:'?s time)?(?! or\b)"), _ahead
    yield pattern(rf"(?P<count>{_NUMBER}) (?P<unit>{_UNIT}) from now"), _ahead
    yield (
        pattern(r"(?:the )?(?P<which>last|past|previous|this|next|coming) (?P<unit>week|month|year|weekend)"),
        _neighbour,
    )
    yield pattern(rf"(?P<which>last|this|next) (?P<month>{_MONTH})"), _month_of
    yield pattern(rf"(?:(?P<which>last|past|previous|this|next|coming|on) )(?P<day>{_DAY})"), _weekday


_PHRASES = tuple(_phrases())
