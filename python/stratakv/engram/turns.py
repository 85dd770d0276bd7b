"""Turns of a conversation, out of the messages that chat models take.

What recall put into a message is taken out again: text that came from memory must not be remembered as if it
had been said.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from stratakv.engram.memory import Scope
from stratakv.engram.times import from_ms, to_ms

# Around what is put into a prompt from memory (`context.py`), and taken out here.
OPENING = "<stratakv-memory>"
CLOSING = "</stratakv-memory>"

# Who speaks in a conversation; other roles of a chat (system, developer, tool, function) are not turns of it.
SPEAKERS = ("user", "assistant")
OTHERS = ("system", "developer", "tool", "function")
# What the engine takes.
TEXT_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 1024

_BLOCK = re.compile(f"{re.escape(OPENING)}.*?(?:{re.escape(CLOSING)}|\\Z)\\n*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One thing that somebody said.

    `id` is the caller's, or drawn; it is what facts refer to. `time_ms` is when it was said, in milliseconds
    since 1970.
    """

    id: str
    role: str
    text: str
    time_ms: int
    user: str
    name: str | None = None
    agent: str | None = None
    project: str | None = None
    session: str | None = None

    @property
    def scope(self) -> Scope:
        """Where the turn belongs."""
        return Scope(user=self.user, agent=self.agent, project=self.project, session=self.session)

    @property
    def time(self) -> datetime:
        """When it was said, in UTC."""
        time = from_ms(self.time_ms)
        assert time is not None
        return time

    def as_dict(self) -> dict[str, Any]:
        """As the journal has it."""
        return asdict(self)


def turns_of(
    messages: Sequence[Mapping[str, Any]], scope: Scope, *, now: datetime | None = None
) -> list[Turn]:
    """The turns among some messages, in order; other roles, and what is empty, are left out.

    Args:
        messages: `{"role", "content"}` each, as chat templates take them; `content` is text, or a list of
            parts of which those with text count. Optional: `name` of who speaks, `time` when it was said (a
            datetime with a zone, or ISO 8601 text), and `id`. Other keys are of no concern here.
        scope: where they belong.
        now: the time of messages without one; the present if not given.

    Raises:
        ValueError: a message that is not of this form; its place is named.
    """
    if isinstance(messages, Mapping | str) or not isinstance(messages, Sequence):
        raise ValueError(  # noqa: TRY004
            "messages: expected a list of {'role': ..., 'content': ...}"
        )
    for part, name in zip(("user", "agent", "project", "session"), scope.parts(), strict=True):
        _check_size(name, part, NAME_BYTES_MAX)
    present = datetime.now(UTC) if now is None else now
    turns = (_turn(message, f"messages[{place}]", scope, present) for place, message in enumerate(messages))
    return [turn for turn in turns if turn is not None]


def without_recalled(text: str) -> str:
    """A text without what recall put into it."""
    return _BLOCK.sub("", text)


def _turn(message: Mapping[str, Any], where: str, scope: Scope, now: datetime) -> Turn | None:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: expected {{'role': ..., 'content': ...}}, got {type(message).__name__}")  # noqa: TRY004
    role = message.get("role")
    if role in OTHERS:
        return None
    if role not in SPEAKERS:
        raise ValueError(f"{where}: role={role!r}; accepted are {', '.join((*SPEAKERS, *OTHERS))}")
    text = without_recalled(_text(message.get("content"), where)).strip()
    if not text:
        return None
    _check_size(text, f"{where}: content", TEXT_BYTES_MAX)
    names = {key: _optional_text(message.get(key), f"{where}: {key}") for key in ("name", "id")}
    return Turn(
        id=names["id"] or secrets.token_hex(8),
        role=role,
        text=text,
        name=names["name"],
        time_ms=_time_ms(message.get("time"), now, f"{where}: time"),
        user=scope.user,
        agent=scope.agent,
        project=scope.project,
        session=scope.session,
    )


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""  # a message that only calls tools
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        if len(parts) == len(content) and all(part is None or isinstance(part, str) for part in parts):
            return "\n".join(part for part in parts if part)
    raise ValueError(
        f"{where}: content={content!r:.80}; expected text, or a list of {{'type': ..., 'text': ...}}"
    )


def _optional_text(value: Any, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{where}={value!r:.80}: expected text")
    _check_size(value, where, NAME_BYTES_MAX)
    return value


def _check_size(value: str | None, where: str, bytes_max: int) -> None:
    """What the engine would refuse later, in the background, is refused at once."""
    try:
        size = 0 if value is None else len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: not Unicode text ({error.reason})") from None
    if size > bytes_max:
        raise ValueError(f"{where}: {size} bytes, expected at most {bytes_max}")


def _time_ms(value: Any, now: datetime, where: str) -> int:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{where}={value!r:.80}: expected ISO 8601, as 2024-05-06T12:30:00+02:00"
            ) from None
    ms = to_ms(now if value is None else value, name=where)
    assert ms is not None
    return ms
