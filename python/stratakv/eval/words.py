"""Words that facts are made of."""

from __future__ import annotations

import random

__all__ = ["CITIES", "NAMES", "NOUNS", "coined_words"]

CITIES = (
    "Lisbon", "Nairobi", "Oslo", "Lima", "Hanoi", "Dublin", "Quito", "Vienna", "Cairo", "Seoul", "Paris",
    "Kyoto", "Madrid", "Athens", "Boston", "Prague", "Warsaw", "Havana", "Jakarta", "Manila", "Tehran",
    "Ankara", "Berlin", "Bogota", "Delhi", "Geneva", "Houston", "Kabul", "London", "Moscow", "Naples",
    "Ottawa", "Perth", "Riga", "Sofia", "Tokyo", "Tunis", "Venice", "Zurich", "Denver", "Dallas",
    "Chicago",
)  # fmt: skip
NAMES = (
    "Alice", "Bernard", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Irene", "Jacob", "Karen",
    "Lucas", "Martha", "Nathan", "Olivia", "Peter", "Quentin", "Rachel", "Simon", "Teresa", "Ursula",
    "Victor", "Wendy",
)  # fmt: skip
NOUNS = (
    "falcon", "otter", "badger", "rabbit", "turtle", "parrot", "beaver", "donkey", "monkey", "spider",
    "salmon", "lizard", "panther", "raven", "squirrel", "tiger", "walrus", "zebra", "camel", "dolphin",
    "eagle", "ferret", "goose", "hamster", "jaguar", "kangaroo", "leopard", "moose", "ostrich", "penguin",
    "pigeon", "puffin", "raccoon", "scorpion", "seal", "shark", "sparrow", "swan", "toad", "weasel",
)  # fmt: skip


def coined_words(chance: random.Random, count: int, *, length: int) -> list[str]:
    """Different words of `length` letters that no language has, easy to tell apart."""
    words: dict[str, None] = {}
    while len(words) < count:
        letters = (chance.choice("aeiou" if place % 2 else "bdfgklmnprstvz") for place in range(length))
        words["".join(letters)] = None
    return list(words)
