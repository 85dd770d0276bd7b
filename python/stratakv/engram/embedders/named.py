"""Embedders by their names, as a command or a setting has them."""

from __future__ import annotations

from stratakv.engram.embedders import minilm
from stratakv.engram.embedders.hidden_states import HiddenStateEmbedder
from stratakv.engram.embedders.protocol import Embedder
from stratakv.engram.embedders.sentence_transformer import SentenceTransformerEmbedder

SENTENCE_TRANSFORMERS = "sentence-transformers:"
HIDDEN_STATES = "hidden-states:"
ACCEPTED = (
    "'auto', 'none', 'minilm', 'sentence-transformers:NAME' and 'hidden-states:NAME', with the name or the "
    "directory of a model"
)


def embedder_named(name: str) -> Embedder | None:
    """The embedder of a name.

    "auto" is `MiniLM` where its wheel is installed, else None; "none" is None; "minilm" is `MiniLM`;
    "sentence-transformers:NAME" is a model of that library, "hidden-states:NAME" a language model of
    `transformers`, each by its name or its directory.

    Raises:
        NotInstalledError: what it needs is not installed.
        OSError: there is no such model.
        ValueError: another name.
    """
    if name == "auto":
        return minilm.MiniLM() if minilm.is_installed() else None
    if name == "none":
        return None
    if name == "minilm":
        return minilm.MiniLM()
    model = name.partition(":")[2]
    if name.startswith(SENTENCE_TRANSFORMERS) and model:
        return SentenceTransformerEmbedder(model)
    if name.startswith(HIDDEN_STATES) and model:
        return _language_model(model)
    raise ValueError(f"embedder={name!r}: accepted are {ACCEPTED}")


def _language_model(name: str) -> HiddenStateEmbedder:
    from stratakv.hf.library import AutoModel, AutoTokenizer  # noqa: PLC0415  # of an extra

    return HiddenStateEmbedder(AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name))
