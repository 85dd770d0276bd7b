"""What makes a vector of a text: a small protocol, and any function as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Makes vectors of texts. Texts of like meaning have vectors of like direction.

    The identity names the model and whatever else changes its vectors. It is stored, and memories are
    opened with the same one only.

    One whose questions get other vectors than what answers them has a second method, `embed_query`, with the
    arguments and the result of `embed`.
    """

    @property
    def identity(self) -> str:
        """Name of the model and its revision, 1 to 1,024 bytes."""

    @property
    def dimension(self) -> int:
        """Elements of a vector, D."""

    def embed(self, texts: list[str]) -> Floats:
        """Vectors (N, D), float32, finite, of any length but 0, for N texts."""


@dataclass(frozen=True, kw_only=True)
class FunctionEmbedder:
    """A function from texts to vectors, (N, D), as an embedder."""

    function: Callable[[list[str]], npt.ArrayLike]
    identity: str
    dimension: int

    def embed(self, texts: list[str]) -> Floats:
        """What the function gives, as float32."""
        return np.asarray(self.function(texts), dtype=np.float32)


def embed(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """Vectors of some texts, checked: C-contiguous float32 (N, D).

    Raises:
        ValueError: the embedder gave another shape.
    """
    return _checked(embedder, embedder.embed, texts)


def embed_query(embedder: Embedder, text: str) -> Floats:
    """The vector (1, D) of a question, as `embed`."""
    return _checked(embedder, getattr(embedder, "embed_query", embedder.embed), [text])


def _checked(embedder: Embedder, function: Callable[[list[str]], Floats], texts: Sequence[str]) -> Floats:
    vectors = np.ascontiguousarray(function(list(texts)), dtype=np.float32)
    expected = (len(texts), embedder.dimension)
    if vectors.shape != expected:
        raise ValueError(
            f"the embedder {embedder.identity!r} gave shape {vectors.shape}, expected {expected}"
        )
    return vectors
