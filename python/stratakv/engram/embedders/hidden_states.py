"""A language model's own hidden states as vectors of texts: no second model is needed.

A text is put into a prompt that asks for it in one word, and what the model has made of it by the end is the
vector: PromptEOL (Jiang et al., "Scaling Sentence Embeddings with Large Language Models", 2023). Means over
tokens are far worse: in most layers the first token's state is far longer than the others'.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from stratakv.engram.embedders.protocol import Floats

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = 'This sentence: "{text}" means in one word: "'
TOKENS_MAX = 256
BATCH_TEXTS = 16


class HiddenStateEmbedder:
    """The hidden state of a causal language model that is about to say a text in one word, as its vector.

    Shapes: B texts, T tokens of the longest prompt, C elements of a state.

    Args:
        model: a Hugging Face causal language model, or its body.
        tokenizer: its tokenizer.
        prompt: what the model reads, with `{text}` where the text goes.
        layer: after how many layers the state is taken; all of them if not given.
        tokens_max: tokens of a text that count.
        batch_texts: texts that are embedded at once.
        identity: what the memories are stored with; if not given, a hash of the configuration, a sample of
            the weights, the prompt, the layer and the length.

    Raises:
        ValueError: a layer that the model has not, or a prompt without a place for the text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompt: str = PROMPT,
        layer: int | None = None,
        tokens_max: int = TOKENS_MAX,
        batch_texts: int = BATCH_TEXTS,
        identity: str | None = None,
    ) -> None:
        config = model.config.get_text_config()
        layers = config.num_hidden_layers
        self._layer = layers if layer is None else layer
        if not 0 <= self._layer <= layers:
            raise ValueError(f"layer={layer}: accepted are 0 to {layers}, the layers of this model")
        before, place, after = prompt.partition("{text}")
        if not place:
            raise ValueError(f"prompt={prompt!r} has no {{text}}, where the text goes")
        self._body = model.base_model
        self._tokenizer = tokenizer
        self._tokens_max = tokens_max
        self._batch_texts = batch_texts
        self._before = list(tokenizer(before)["input_ids"])
        self._after = self._tokens(after)
        self.dimension = int(config.hidden_size)
        self.identity = identity or self._named(prompt)

    def embed(self, texts: list[str]) -> Floats:
        """Vectors (N, C) of length 1."""
        ids = [[*self._before, *self._tokens(text)[: self._tokens_max], *self._after] for text in texts]
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        # Texts of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), self._batch_texts):
            batch = order[start : start + self._batch_texts]
            vectors[batch] = self._embed([ids[index] for index in batch])
        return vectors

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _named(self, prompt: str) -> str:
        from stratakv.hf.fingerprint import model_identity  # noqa: PLC0415  # brings torch

        digest = hashlib.blake2b(model_identity(self._body) + prompt.encode(), digest_size=8)
        return f"hidden states {digest.hexdigest()}, layer {self._layer}, {self._tokens_max} tokens"

    def _embed(self, ids: list[list[int]]) -> Floats:
        import torch  # noqa: PLC0415

        longest = max(map(len, ids))
        device = next(self._body.parameters()).device
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        with torch.inference_mode():
            hidden_BTC = self._states(ids_BT, mask_BT)
            last_BC = hidden_BTC[torch.arange(len(ids), device=device), mask_BT.sum(1) - 1].float()
            vectors: Floats = torch.nn.functional.normalize(last_BC, dim=-1).cpu().numpy()
            return vectors

    def _states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) after the layer. Padding is behind a text, and so changes nothing of it."""
        out = self._body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, output_hidden_states=True)
        states: Tensor = out.hidden_states[self._layer]
        return states
