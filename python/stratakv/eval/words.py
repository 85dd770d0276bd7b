"""Words that facts are made of."""

from __future__ import annotations

import random

__all__ = ["CITIES", "NAMES", "NOUNS", "NUMBERED", "coined_words"]

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

NUMBERED = (
    "phone number of the bakery in Lisbon", "serial number of the red telescope",
    "ticket number of the blue bicycle", "combination of the captain's safe", "account of the flower shop",
    "licence of the ferry to Oslo", "catalogue entry of the bronze statue", "price of the silver violin",
    "password of the harbour archive", "weight of the granite millstone", "frequency of the pirate station",
    "pension of the retired lighthouse keeper", "year of the oldest bottle of port", "height of Mount Ardel",
    "population of the village of Brenk", "postal code of the glass factory", "rent of the corner pharmacy",
    "length of the suspension bridge", "registration of the yellow tractor", "distance to the comet",
    "number on the goalkeeper's shirt", "depth of the salt mine", "code of the elevator in the museum",
    "room of the visiting dentist", "votes for the new mayor", "capacity of the water tower",
    "temperature of the pottery kiln", "volume of the brewery's largest vat", "mileage of the old taxi",
    "batch of the measles vaccine", "page of the missing recipe", "stock of the umbrella maker",
    "budget of the puppet theatre", "extension of the night watchman", "speed of the racing pigeon",
    "area of the cranberry farm", "inventory tag of the microscope", "flight of the ambassador",
    "locker of the swimming teacher", "edition of the torn atlas",
)  # fmt: skip
"""Things that have a number, each of another kind."""


def coined_words(chance: random.Random, count: int, *, length: int) -> list[str]:
    """Different words of `length` letters that no language has, easy to tell apart."""
    words: dict[str, None] = {}
    while len(words) < count:
        letters = (chance.choice("aeiou" if place % 2 else "bdfgklmnprstvz") for place in range(length))
        words["".join(letters)] = None
    return list(words)
