"""An embedder that knows a few words, and memories with it: in files, and in PostgreSQL."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stratakv.engram import Engram, FunctionEmbedder

MEANINGS = [("database", "postgres", "mysql"), ("cat", "pet", "animal"), ("deploy", "release", "ship")]


def vectors_of(texts):
    """One element for each group of words that mean the same."""
    rows = [[any(word in text.lower() for word in group) for group in MEANINGS] for text in texts]
    return np.asarray(rows, np.float32) + 0.01


@pytest.fixture
def embedder():
    return FunctionEmbedder(function=vectors_of, identity="meanings", dimension=len(MEANINGS))


@pytest.fixture(params=["files", "postgres"])
def make_place(request, tmp_path):
    """Makes new places for memories, directories or databases: a test runs with either."""
    if request.param == "postgres":
        return request.getfixturevalue("make_database")
    numbers = itertools.count()
    return lambda: tmp_path / f"memory{next(numbers)}"


@pytest.fixture
def place(make_place):
    return make_place()


@pytest.fixture
def memory(place, embedder):
    with Engram.open(place, embedder=embedder) as memory:
        yield memory
