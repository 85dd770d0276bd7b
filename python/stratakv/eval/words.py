"""Words that facts are made of."""

from __future__ import annotations

import random

__all__ = ["CITIES", "NAMES", "NOUNS", "THINGS", "coined_words"]

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
# Of 68 tried, those whose numbers a small model (SmolLM2-135M, dense, 4K tokens) gives back most surely:
# what is measured is the cache.
THINGS = (
    "number of visitors of the doll museum",
    "catalogue number of the lost painting",
    "room number of the ghost",
    "distance to the northern island in metres",
    "altitude of the weather balloon in feet",
    "access code for the old lighthouse",
    "population of the fishing village",
    "serial number of the red tractor",
    "depth of the hidden lake in centimetres",
    "price of the golden crown",
    "cost of the airport tunnel in pounds",
    "launch code of the moon rocket",
    "badge number of the village sheriff",
    "number of fossils in the desert cave",
    "number of bees in the golden hive",
    "number of pages in the astronomer's diary",
    "number of candles in the marble chapel",
    "number of seats in the new stadium",
    "telephone number of the tooth fairy",
    "number of soldiers in the eastern army",
    "identification number of the white elephant",
    "membership number of the chess champion",
    "registration number of the rescue boat",
    "special magic number for Lisbon",
)


def coined_words(chance: random.Random, count: int, *, length: int) -> list[str]:
    """Different words of `length` letters that no language has, easy to tell apart."""
    words: dict[str, None] = {}
    while len(words) < count:
        letters = (chance.choice("aeiou" if place % 2 else "bdfgklmnprstvz") for place in range(length))
        words["".join(letters)] = None
    return list(words)
