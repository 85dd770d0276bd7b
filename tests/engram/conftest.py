"""An embedder that knows a few words, and a store with it."""

from __future__ import annotations

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


@pytest.fixture
def memory(tmp_path, embedder):
    with Engram.open(tmp_path / "memory", embedder=embedder) as memory:
        yield memory
