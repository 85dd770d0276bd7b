"""Times as users have them, and as the engine does: milliseconds since 1970."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def to_ms(time: datetime | None, *, name: str) -> int | None:
    """Milliseconds since 1970, rounded down; None for None.

    Raises:
        ValueError: a time without a time zone, or none at all.
    """
    if time is None:
        return None
    if not isinstance(time, datetime):
        raise ValueError(  # noqa: TRY004
            f"{name}={time!r}: expected a datetime, as in datetime.now(timezone.utc)"
        )
    if time.tzinfo is None:
        raise ValueError(f"{name}={time} has no time zone: write {name}.astimezone() if it is local time")
    return (time - _EPOCH) // _MILLISECOND


def from_ms(ms: int | None) -> datetime | None:
    """A time in UTC; None for None, and for what the calendar does not reach."""
    if ms is None:
        return None
    try:
        return _EPOCH + ms * _MILLISECOND
    except OverflowError:
        return None
