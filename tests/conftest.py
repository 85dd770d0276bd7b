"""Fixtures for all Python tests."""

from __future__ import annotations

import itertools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

# Triton looks once, when it is imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings

from stratakv.testing import postgres

# Tiny models gain nothing from threads, and lose much to waiting for them on a busy machine.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers in every run."""
    torch.manual_seed(0)


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
