"""Memories as an engine takes them: drafts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from stratakv.engram.engine import Draft
from stratakv.engram.times import to_ms

_T = TypeVar("_T")


def draft_of(
    text: str,
    metadata: Mapping[str, Any] | None,
    source: str | None,
    *,
    author: str | None = None,
    valid_from: datetime | None = None,
    valid_to: datetime | None = None,
    recorded: datetime | None = None,
    supersedes: int | None = None,
) -> Draft:
    """A draft of what `Engram.remember` takes; `recorded` is when it became known, now if not given.

    Raises:
        ValueError: no text, metadata that JSON does not hold, or a time without a zone.
    """
    times = (
        to_ms(valid_from, name="valid_from"),
        to_ms(valid_to, name="valid_to"),
        to_ms(recorded, name="recorded"),
    )
    if not isinstance(text, str):
        raise ValueError(f"text={text!r}: expected text")  # noqa: TRY004
    try:
        encoded = json.dumps(dict(metadata), ensure_ascii=False) if metadata else ""
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON holds: {error}") from None
    return (text, encoded, source, author, *times, supersedes)


def one_for_each(name: str, given: Sequence[_T | None] | None, texts: Sequence[str]) -> Sequence[_T | None]:
    """One entry for each text; None for all where nothing is given.

    Raises:
        ValueError: another number of entries.
    """
    if given is None:
        return [None] * len(texts)
    if len(given) != len(texts):
        raise ValueError(f"{name} has {len(given)} entries for {len(texts)} texts")
    return given
