"""An embedder that knows a few words, and memories with it: in files, and in PostgreSQL."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stratakv.engram import Engram, FunctionEmbedder
from stratakv.testing import postgres

MEANINGS = [("database", "postgres", "mysql"), ("cat", "pet", "animal"), ("deploy", "release", "ship")]


def vectors_of(texts):
    """One element for each group of words that mean the same."""
    rows = [[any(word in text.lower() for word in group) for group in MEANINGS] for text in texts]
    return np.asarray(rows, np.float32) + 0.01


@pytest.fixture
def embedder():
    return FunctionEmbedder(function=vectors_of, identity="meanings", dimension=len(MEANINGS))


@pytest.fixture(scope="session")
def server():
    """The address of a server of the tests' own."""
    pytest.importorskip("psycopg_pool", reason="memories in PostgreSQL need stratakv[postgres]")
    pytest.importorskip("pgvector", reason="memories in PostgreSQL need stratakv[postgres]")
    try:
        with postgres.server() as address:
            yield address
    except postgres.NoServerError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def make_database(server):
    """Makes an empty database, and gives its address."""
    import psycopg

    numbers = itertools.count()

    def make():
        name = f"t{next(numbers)}"
        with psycopg.connect(postgres.url(server, "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return postgres.url(server, name)

    return make


@pytest.fixture
def database(make_database):
    """The address of an empty database."""
    return make_database()


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
