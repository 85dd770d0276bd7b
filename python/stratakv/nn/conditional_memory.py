"""`ConditionalMemory`: a table that a layer looks its last few tokens up in, by hash (DeepSeek's Engram).

    vocabulary = compress_vocabulary(texts, tokens)          # what each id decodes to, and is called
    plans = plan_layers([1, 4], int(vocabulary.max()) + 1, table_sizes=[65536, 65536])
    memory = ConditionalMemory(512, plans[1], vocabulary, num_streams=4, pad_id=0)
    x = memory(x, input_ids)                                 # before the layer's attention

Not StrataKV's Engram, which remembers facts between sessions; the name of the paper is the same.
The rows looked up follow from the ids alone, so they are known before the layer is reached.

B batch, T tokens, S streams, C width, E width of an n-gram order, R rows per token (see `ngrams.py`),
N the longest n-gram, W the convolution's kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stratakv.nn.ngrams import NGramPlan, ngram_hashes

TABLE_STD = 0.02
# Below this the gate's square root would have no useful gradient.
GATE_MIN = 1e-6


@dataclass
class MemoryState:
    """What a memory needs of the tokens before, where a text comes in pieces.

    ids: (B, N - 1) compressed ids. values: (B, (W - 1) N, S, C) normalised values for the convolution.
    """

    ids: Tensor | None = None
    values: Tensor | None = None


class ConditionalMemory(nn.Module):
    """Adds to each stream what its last tokens look up, as far as the stream agrees with it.

        e = rows of the tables, concatenated            k[s] = W_k[s] e,  v = W_v e
        gate[s] = sigmoid(signed_sqrt(<norm(k[s]), norm(x[s])> / sqrt(C)))
        u[s] = gate[s] v                                x[s] + u[s] + silu(conv(norm(u[s])))

    The convolution is causal, depthwise, dilated by N, and zero at first.

    Args:
        dim: C.
        plan: the layer's hashes.
        vocabulary: (V,) compressed ids (`compress_vocabulary`).
        num_streams: S.
        ngram_dim: E, a multiple of the heads per order.
        pad_id: the tokenizer's id that stands before a text.
        kernel_size: W.
        norm_eps: of the norms.

    Attributes:
        table: all tables one after the other, (sum of primes, E / K).
        key: (S * C, (N - 1) E) and bias; value: (C, (N - 1) E) and bias.
        key_norm, query_norm, conv_norm: (S, C) weights.
        conv: (S * C, 1, W), zero at first.

    Raises:
        ValueError: a width that does not divide, or an id outside the vocabulary.

    Source: Engram (arXiv 2601.07372), equations 1 to 5. Differs from the paper's equation 4 by the signed
    square root inside the gate, which DeepSeek's published code and kernels have.
    """

    offsets: Tensor
    vocabulary: Tensor

    def __init__(
        self,
        dim: int,
        plan: NGramPlan,
        vocabulary: Tensor,
        *,
        num_streams: int = 4,
        ngram_dim: int = 512,
        pad_id: int = 0,
        kernel_size: int = 4,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        num_heads = len(plan.primes[0])
        if ngram_dim % num_heads:
            raise ValueError(f"ngram_dim={ngram_dim} must be a multiple of the {num_heads} heads")
        if not 0 <= pad_id < len(vocabulary):
            raise ValueError(f"pad_id={pad_id} is outside the vocabulary of {len(vocabulary)}")
        if kernel_size < 1 or num_streams < 1:
            raise ValueError(f"kernel_size={kernel_size} and num_streams={num_streams} must be at least 1")
        self.dim, self.num_streams, self.plan, self.norm_eps = dim, num_streams, plan, norm_eps
        self.pad, self.kernel_size = int(vocabulary[pad_id]), kernel_size
        self.register_buffer("vocabulary", vocabulary.to(torch.int64), persistent=False)
        self.register_buffer("offsets", torch.tensor(plan.offsets), persistent=False)
        features = len(plan.primes) * ngram_dim
        self.table = nn.Embedding(plan.num_rows, ngram_dim // num_heads)
        self.key = nn.Linear(features, num_streams * dim)
        self.value = nn.Linear(features, dim)
        self.key_norm = nn.Parameter(torch.ones(num_streams, dim))
        self.query_norm = nn.Parameter(torch.ones(num_streams, dim))
        self.conv_norm = nn.Parameter(torch.ones(num_streams, dim))
        self.conv = nn.Parameter(torch.zeros(num_streams * dim, 1, kernel_size))
        nn.init.normal_(self.table.weight, std=TABLE_STD)

    def rows(self, input_ids_BT: Tensor, state: MemoryState | None = None) -> Tensor:
        """(B, T, R) rows of `table`, for ids of the tokenizer; negative ids are no text.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        return self._rows(self._compressed(input_ids_BT), state)

    def forward(self, x_BTSC: Tensor, input_ids_BT: Tensor, state: MemoryState | None = None) -> Tensor:
        """The streams with what was looked up.

        Args:
            x_BTSC: (B, T, S, C).
            input_ids_BT: the tokenizer's ids; negative where there is no text (images): nothing is added
                there, and n-grams do not reach across.
            state: of the same text's earlier pieces; it is brought up to date.

        Returns:
            (B, T, S, C) in the streams' dtype.

        Raises:
            ValueError: shapes that do not fit, or an id outside the vocabulary.
        """
        if x_BTSC.shape != (*input_ids_BT.shape, self.num_streams, self.dim):
            raise ValueError(
                f"streams {tuple(x_BTSC.shape)} for ids {tuple(input_ids_BT.shape)}: expected "
                f"(B, T, {self.num_streams}, {self.dim})"
            )
        ids_BT = self._compressed(input_ids_BT)
        e_BTF = self.table(self._rows(ids_BT, state)).flatten(-2)
        u_BTSC = self._gates(x_BTSC, e_BTF, ids_BT).unsqueeze(-1) * self.value(e_BTF).unsqueeze(-2)
        out_BTSC = u_BTSC + functional.silu(self._convolve(u_BTSC, state))
        if state is not None:
            before = ids_BT.new_full((ids_BT.shape[0], len(self.plan.multipliers) - 1), self.pad)
            before = before if state.ids is None else state.ids
            state.ids = torch.cat([before, ids_BT], -1)[:, -before.shape[1] :]
        added_BTSC: Tensor = x_BTSC + out_BTSC.to(x_BTSC.dtype)
        return added_BTSC

    def _compressed(self, input_ids_BT: Tensor) -> Tensor:
        if input_ids_BT.numel() and int(input_ids_BT.max()) >= len(self.vocabulary):
            raise ValueError(
                f"id {int(input_ids_BT.max())} is outside the vocabulary of {len(self.vocabulary)}"
            )
        is_text = input_ids_BT >= 0
        return torch.where(is_text, self.vocabulary[input_ids_BT.clamp_min(0)], -1)

    def _rows(self, ids_BT: Tensor, state: MemoryState | None) -> Tensor:
        past = None if state is None else state.ids
        return ngram_hashes(ids_BT, self.plan, pad=self.pad, past_BP=past) + self.offsets

    def _gates(self, x_BTSC: Tensor, e_BTF: Tensor, ids_BT: Tensor) -> Tensor:
        """(B, T, S)."""
        key_BTSC = self.key(e_BTF).reshape(x_BTSC.shape)
        dot_BTS = (self._norm(key_BTSC, self.key_norm) * self._norm(x_BTSC, self.query_norm)).sum(-1)
        dot_BTS = dot_BTS / math.sqrt(self.dim)
        gates_BTS = (dot_BTS.abs().clamp_min(GATE_MIN).sqrt() * dot_BTS.sign()).sigmoid()
        return gates_BTS * (ids_BT >= 0).unsqueeze(-1)

    def _convolve(self, u_BTSC: Tensor, state: MemoryState | None) -> Tensor:
        normed_BTSC = self._norm(u_BTSC, self.conv_norm)
        dilation = len(self.plan.multipliers)
        reach = (self.kernel_size - 1) * dilation
        before = normed_BTSC.new_zeros(normed_BTSC.shape[0], reach, self.num_streams, self.dim)
        if state is not None and state.values is not None:
            before = state.values
        all_BASC = torch.cat([before, normed_BTSC], 1)
        if state is not None:
            state.values = all_BASC[:, all_BASC.shape[1] - reach :]
        channels = self.num_streams * self.dim
        mixed_BXT = functional.conv1d(
            all_BASC.flatten(2).transpose(1, 2), self.conv, dilation=dilation, groups=channels
        )
        return mixed_BXT.transpose(1, 2).reshape(u_BTSC.shape)

    def _norm(self, x_SC: Tensor, weight_SC: Tensor) -> Tensor:
        return functional.rms_norm(x_SC, (self.dim,), eps=self.norm_eps).to(weight_SC.dtype) * weight_SC
