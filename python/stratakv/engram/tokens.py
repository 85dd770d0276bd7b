"""How many tokens a text has, about, and what fits a budget of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stratakv.engram.memory import Recalled


def count_tokens(text: str) -> int:
    """About how many tokens a text has: four bytes each, rounded up."""
    return -(-len(text.encode()) // 4)


def within(recalled: Sequence[Recalled], tokens: int, count: Callable[[str], int]) -> list[Recalled]:
    """The best that fit a budget; one that does not is stepped over."""
    fitting, left = [], tokens
    for one in recalled:
        cost = count(one.text)
        if cost <= left:
            fitting.append(one)
            left -= cost
    return fitting
