"""Vectors of all memories made anew: with another embedder, or where there are none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from stratakv.engram.embedders import Embedder, embed
from stratakv.engram.places import open_reembedding

# Texts that are embedded between two reports; what was embedded of them is lost where one is interrupted.
CHUNK = 64


def reembed(
    path: str | os.PathLike[str],
    embedder: Embedder,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """As `Engram.reembed`."""
    opened = open_reembedding(path, embedder=(embedder.identity, embedder.dimension))
    given = 0
    with contextlib.closing(opened) as reembedding:
        done = False
        while not done:
            if progress is not None:
                progress(*reembedding.progress())
            texts = reembedding.texts(CHUNK)
            if texts:
                reembedding.give(embed(embedder, texts))
                given += len(texts)
            else:
                done = reembedding.finish()
    return given
