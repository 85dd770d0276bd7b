"""Byte sizes as people write them, to integers and back."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")
_ACCEPTED = 'a whole number of bytes or a string such as "512MB", "1.5GiB" (units B, KB to TB, KiB to TiB)'


def parse_bytes(size: int | str, *, name: str = "size", minimum: int = 1) -> int:
    """Bytes of a size.

    Args:
        size: bytes, or a number with a unit. KB, MB, ... count in thousands; KiB, MiB, ... in 1024s.
        name: the argument's name, for the message; "" where somebody else says it.
        minimum: smallest size that is accepted, in bytes.

    Returns:
        Whole bytes, rounded down.

    Raises:
        ValueError: not a size, an unknown unit, or less than `minimum`.
    """
    shown = f"{name}={size!r}" if name else repr(size)
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise ValueError(f"{shown} is not a size: accepted is {_ACCEPTED}")  # noqa: TRY004
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f"{shown} is not a size: accepted is {_ACCEPTED}")
        num_bytes = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    else:
        num_bytes = size
    if num_bytes < minimum:
        raise ValueError(f"{shown} is too small: at least {format_bytes(minimum)} is needed")
    return num_bytes


def format_bytes(num_bytes: int) -> str:
    """A size for people, in powers of 1024: `1536` is "1.5KiB"."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            # Three digits, four from 1000 on: never an exponent.
            return f"{value:.0f}{unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g}{unit}"
        value /= 1024
    return f"{value:.4g}TiB"
