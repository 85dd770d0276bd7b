"""Models of the sentence-transformers library as embedders."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from stratakv.engram.embedders.protocol import Floats
from stratakv.errors import NotInstalledError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_TEXTS = 32


class SentenceTransformerEmbedder:
    """A model of the `sentence-transformers` library, with its own prompts for questions and for texts.

    Args:
        model: its name, the directory that it is in, or a loaded `SentenceTransformer`.
        identity: what the memories are stored with; if not given, the name with a hash of a sample of the
            weights, the prompts and the length.
        batch_texts: texts that are embedded at once.

    Raises:
        NotInstalledError: the library is not installed.
        OSError: there is no such model here, and none is found where the library looks.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer,
        *,
        identity: str | None = None,
        batch_texts: int = BATCH_TEXTS,
    ) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise NotInstalledError(
                "sentence-transformers is not installed", "pip install 'stratakv[sentence-transformers]'"
            )
        name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else "sentence-transformers"
        self._model: Any = _loaded(name) if isinstance(model, (str, os.PathLike)) else model
        self._batch_texts = batch_texts
        # What it gives tells most: models cut their vectors short, and the method's name has changed.
        self.dimension = self._encoded("encode_document", ["a"]).shape[1]
        self.identity = identity or f"{name.rstrip('/').rsplit('/', 1)[-1]} {self._fingerprint()}"

    def embed(self, texts: list[str]) -> Floats:
        """Vectors (N, D) of texts that may answer a question."""
        return self._encoded("encode_document", texts)

    def embed_query(self, texts: list[str]) -> Floats:
        """Vectors (N, D) of questions."""
        return self._encoded("encode_query", texts)

    def _encoded(self, method: str, texts: list[str]) -> Floats:
        encode = getattr(self._model, method)
        vectors = encode(texts, batch_size=self._batch_texts, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    def _fingerprint(self) -> str:
        from stratakv.hf.fingerprint import model_identity  # noqa: PLC0415  # brings torch

        digest = hashlib.blake2b(model_identity(self._model), digest_size=8)
        facts = [dict(self._model.prompts), self._model.max_seq_length, self.dimension]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()


def _loaded(name: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  # of an extra

    return SentenceTransformer(name)
