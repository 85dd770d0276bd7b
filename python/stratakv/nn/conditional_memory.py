"""`ConditionalMemory`: a table that a layer looks its last few tokens up in, by hash (DeepSeek's Engram).

    vocabulary = compress_vocabulary(texts, tokens)          # what each id decodes to, and is called
    plans = plan_layers([1, 4], int(vocabulary.max()) + 1, table_sizes=[65536, 65536])
    memory = ConditionalMemory(512, plans[1], vocabulary, num_streams=4, pad_id=0)
    x = memory(x, input_ids)                                 # before the layer's attention

Not StrataKV's Engram, which remembers facts between sessions; the name of the paper is the same.
The rows looked up follow from the ids alone, so they are known before the layer is reached: a table may lie
in a file (`map_tables`), which is read ahead.

B batch, T tokens, P tokens before them, S streams, C width, E width of an n-gram order, R rows per token
(see `ngrams.py`), N the longest n-gram, W the convolution's kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from stratakv.nn.mapped_table import MappedTable
from stratakv.nn.ngrams import NGramPlan, ngram_hashes, plan_layers
from stratakv.nn.read_ahead import ReadAhead

INITIAL_STD = 0.02
# Below this the gate's square root would have no useful gradient.
GATE_MIN = 1e-6
# Tokens that a state has room for beyond what it holds, at least.
MIN_ROOM = 64


@dataclass(frozen=True)
class MemoryConfig:
    """The memories of a model.

    Attributes:
        layers: numbers of the blocks that have one.
        compressed_size: different ids of the vocabulary (`compress_vocabulary`), its greatest one plus 1.
        table_sizes: least rows of a table of each order, from bigrams on.
        num_heads: tables of an order.
        ngram_dim: E.
        kernel_size: W.
        pad_id: the tokenizer's id that stands before a text.
        seed: of the hashes.

    Raises:
        ValueError: sizes that do not go together, or a layer that comes twice.
    """

    layers: tuple[int, ...]
    compressed_size: int
    table_sizes: tuple[int, ...] = (65536, 65536)
    num_heads: int = 8
    ngram_dim: int = 512
    kernel_size: int = 4
    pad_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # From JSON they come as lists.
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "table_sizes", tuple(self.table_sizes))
        if len(set(self.layers)) != len(self.layers) or min(self.layers, default=0) < 0:
            raise ValueError(f"memory layers {list(self.layers)}: each block at most once, none below 0")
        self.plans()

    def plans(self) -> dict[int, NGramPlan]:
        """Each layer's hashes."""
        return plan_layers(
            self.layers,
            self.compressed_size,
            table_sizes=self.table_sizes,
            num_heads=self.num_heads,
            seed=self.seed,
        )


class MemoryState:
    """What a memory needs of the tokens before, where a text comes in pieces.

    Of every token its compressed id and its gates: what the convolution saw of it follows from these. So a
    state is a few bytes per token, goes back to any earlier token, and costs nothing to copy.

    Attributes:
        ids: (B, capacity) compressed ids, int64, negative where there was no text; None while empty.
        gates: (B, capacity, S); None while empty.
        length: P, how many tokens of these count.
    """

    def __init__(self) -> None:
        self.ids: Tensor | None = None
        self.gates: Tensor | None = None
        self.length = 0

    def append(self, ids_BT: Tensor, gates_BTS: Tensor) -> None:
        """Adds tokens to the end."""
        self._reserve(ids_BT, gates_BTS)
        assert self.ids is not None
        assert self.gates is not None
        stop = self.length + ids_BT.shape[1]
        self.ids[:, self.length : stop] = ids_BT
        self.gates[:, self.length : stop] = gates_BTS.detach()
        self.length = stop

    def last(self, num_tokens: int) -> tuple[Tensor, Tensor] | None:
        """(B, P) ids and (B, P, S) gates of the last tokens, at most so many; None while empty."""
        if self.ids is None or self.gates is None or not self.length:
            return None
        kept = slice(max(self.length - num_tokens, 0), self.length)
        return self.ids[:, kept], self.gates[:, kept]

    def drop_last(self, num_tokens: int) -> None:
        """Goes back by so many tokens."""
        self.length = max(self.length - num_tokens, 0)

    def take_rows(self, rows_B: Tensor) -> None:
        """Row i becomes what row `rows_B[i]` was."""
        if self.ids is not None and self.gates is not None:
            self.ids, self.gates = (
                self.ids[rows_B.to(self.ids.device)],
                self.gates[rows_B.to(self.gates.device)],
            )

    def clear(self) -> None:
        """Forgets everything."""
        self.ids = self.gates = None
        self.length = 0

    def _reserve(self, ids_BT: Tensor, gates_BTS: Tensor) -> None:
        needed = self.length + ids_BT.shape[1]
        if self.ids is not None and self.gates is not None:
            if self.ids.shape[0] != ids_BT.shape[0]:
                raise ValueError(f"{ids_BT.shape[0]} rows after {self.ids.shape[0]} in the memory's state")
            if needed <= self.ids.shape[1]:
                return
        # A quarter more each time: appending copies a token a few times in all.
        capacity = needed + max(needed // 4, MIN_ROOM)
        ids = ids_BT.new_zeros(ids_BT.shape[0], capacity)
        gates = gates_BTS.new_zeros(gates_BTS.shape[0], capacity, gates_BTS.shape[2])
        if self.ids is not None and self.gates is not None:
            ids[:, : self.length] = self.ids[:, : self.length]
            gates[:, : self.length] = self.gates[:, : self.length]
        self.ids, self.gates = ids, gates


class ConditionalMemory(nn.Module):
    """Adds to each stream what its last tokens look up, as far as the stream agrees with it.

        e = rows of the tables, concatenated            k[s] = W_k[s] e,  v = W_v e
        gate[s] = sigmoid(signed_sqrt(<norm(k[s]), norm(x[s])> / sqrt(C)))
        u[s] = gate[s] v                                x[s] + u[s] + silu(conv(norm(u[s])))

    The convolution is causal, depthwise, dilated by N, and zero at first. Where there is no text (padding,
    images) nothing is added, and neither n-grams nor the convolution reach across.

    Args:
        dim: C.
        plan: the layer's hashes.
        vocabulary: (V,) compressed ids (`compress_vocabulary`).
        num_streams: S.
        ngram_dim: E, a multiple of the heads per order.
        pad_id: the tokenizer's id that stands before a text.
        kernel_size: W.
        norm_eps: of the norms.
        table_directory: where the table lies in a scratch file (`MappedTable`); None for RAM.

    Attributes:
        table: all tables one after the other, (sum of primes, E / K).
        key: (S * C, (N - 1) E) and bias; value: (C, (N - 1) E) and bias.
        key_norm, query_norm, conv_norm: (S, C) weights.
        conv: (S * C, 1, W), zero at first.
        vocabulary: part of the state, so that a loaded memory needs no tokenizer.

    Raises:
        ValueError: a width that does not divide, or an id outside the vocabulary.
        OSError: the table's file cannot be made.

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
        table_directory: Path | None = None,
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
        self.pad_id, self.kernel_size = pad_id, kernel_size
        self.reach = (kernel_size - 1) * len(plan.multipliers)
        self.register_buffer("vocabulary", vocabulary.to(torch.int64).clone())
        self.register_buffer("offsets", torch.tensor(plan.offsets, device="cpu"), persistent=False)
        features = len(plan.primes) * ngram_dim
        sizes = plan.num_rows, ngram_dim // num_heads
        if table_directory is None:
            # Given its memory, an embedding does not draw values of its own.
            self.table = nn.Embedding(*sizes, _weight=torch.empty(sizes))
        else:
            self.table = MappedTable(*sizes, table_directory)
        self._read_ahead = ReadAhead()
        self.key = nn.Linear(features, num_streams * dim)
        self.value = nn.Linear(features, dim)
        self.key_norm = nn.Parameter(torch.ones(num_streams, dim))
        self.query_norm = nn.Parameter(torch.ones(num_streams, dim))
        self.conv_norm = nn.Parameter(torch.ones(num_streams, dim))
        self.conv = nn.Parameter(torch.zeros(num_streams * dim, 1, kernel_size))
        for matrix in (self.table, self.key, self.value):
            nn.init.normal_(matrix.weight, std=INITIAL_STD)
        nn.init.zeros_(self.key.bias)
        nn.init.zeros_(self.value.bias)

    def initial_values(self) -> dict[str, Tensor]:
        """By name, the initial values of its own parameters and of the buffers that its plan gives."""
        ones = torch.ones_like(self.key_norm, device="cpu")
        return {
            "key_norm": ones,
            "query_norm": ones,
            "conv_norm": ones,
            "conv": torch.zeros(self.conv.shape),
            "offsets": torch.tensor(self.plan.offsets),
        }

    def rows(self, input_ids_BT: Tensor, state: MemoryState | None = None) -> Tensor:
        """(B, T, R) rows of `table`, for ids of the tokenizer; negative ids are no text.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        past = None if state is None else state.last(len(self.plan.multipliers) - 1)
        return self._rows(self._compressed(input_ids_BT), None if past is None else past[0])

    def prefetch(self, input_ids_BT: Tensor, state: MemoryState | None = None) -> None:
        """Has what these ids will look up read in the background, where the table is in a file.

        That is a `MappedTable`'s, or the checkpoint that a loader mapped (`read_ahead.py`).

        Args:
            input_ids_BT: as in `forward`, which comes later.
            state: as there; it stays as it is.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        if isinstance(self.table, MappedTable):
            self.table.prefetch(self.rows(input_ids_BT, state))
        elif (file := self._read_ahead.file(self.table.weight)) is not None:
            file.prefetch(self.rows(input_ids_BT, state).contiguous())

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
        past = None if state is None else state.last(self.reach + len(self.plan.multipliers) - 1)
        # What the convolution reaches back to is looked up again: its rows were read a moment ago.
        num_tokens, num_back = ids_BT.shape[1], 0 if past is None else min(past[0].shape[1], self.reach)
        all_BP = ids_BT if past is None else torch.cat([past[0], ids_BT], -1)
        window_BA = all_BP[:, all_BP.shape[1] - num_back - num_tokens :]
        e_BAF = self._looked_up(window_BA, all_BP[:, : all_BP.shape[1] - num_back - num_tokens])
        new_BTS = self._gates(x_BTSC, e_BAF[:, num_back:], ids_BT)
        gates_BAS = (
            new_BTS if past is None else torch.cat([past[1][:, past[1].shape[1] - num_back :], new_BTS], 1)
        )
        u_BASC = gates_BAS.unsqueeze(-1) * self.value(e_BAF).unsqueeze(-2)
        out_BTSC = u_BASC[:, num_back:] + self._convolve(u_BASC, window_BA, num_tokens)
        if state is not None:
            state.append(ids_BT, new_BTS)
        added_BTSC: Tensor = x_BTSC + out_BTSC.to(x_BTSC.dtype)
        return added_BTSC

    def _compressed(self, input_ids_BT: Tensor) -> Tensor:
        if input_ids_BT.numel() and int(input_ids_BT.max()) >= len(self.vocabulary):
            raise ValueError(
                f"id {int(input_ids_BT.max())} is outside the vocabulary of {len(self.vocabulary)}"
            )
        is_text = input_ids_BT >= 0
        return torch.where(is_text, self.vocabulary[input_ids_BT.clamp_min(0)], -1)

    def _rows(self, ids_BT: Tensor, past_BP: Tensor | None) -> Tensor:
        """(B, T, R) for compressed ids after the last of (B, P)."""
        pad = int(self.vocabulary[self.pad_id])
        before = len(self.plan.multipliers) - 1
        if past_BP is not None:
            past_BP = functional.pad(past_BP, (before, 0), value=pad)[:, past_BP.shape[1] :]
        return ngram_hashes(ids_BT, self.plan, pad=pad, past_BP=past_BP) + self.offsets

    def _looked_up(self, ids_BT: Tensor, past_BP: Tensor) -> Tensor:
        """(B, T, F) what compressed ids find."""
        found_BTF: Tensor = self.table(self._rows(ids_BT, past_BP)).flatten(-2)
        return found_BTF

    def _gates(self, x_BTSC: Tensor, e_BTF: Tensor, ids_BT: Tensor) -> Tensor:
        """(B, T, S)."""
        key_BTSC = self.key(e_BTF).reshape(x_BTSC.shape)
        dot_BTS = (self._norm(key_BTSC, self.key_norm) * self._norm(x_BTSC, self.query_norm)).sum(-1)
        dot_BTS = dot_BTS / math.sqrt(self.dim)
        gates_BTS = (dot_BTS.abs().clamp_min(GATE_MIN).sqrt() * dot_BTS.sign()).sigmoid()
        return gates_BTS * (ids_BT >= 0).unsqueeze(-1)

    def _convolve(self, u_BASC: Tensor, ids_BA: Tensor, num_tokens: int) -> Tensor:
        """(B, T, S, C) of the last T tokens; A are these and as many before them as there are to be seen."""
        missing = self.reach + num_tokens - ids_BA.shape[1]
        normed_BASC = self._norm(u_BASC, self.conv_norm)
        normed_BASC = functional.pad(normed_BASC, (0, 0, 0, 0, missing, 0))
        taps_WSC = self.conv.reshape(self.num_streams, self.dim, self.kernel_size).permute(2, 0, 1)
        # Stretches of text between what is none: a source of another stretch is not seen.
        is_none_BA = functional.pad(ids_BA < 0, (missing, 0))
        stretch_BA = is_none_BA.long().cumsum(-1) if bool(is_none_BA.any()) else None
        mixed_BTSC = torch.zeros_like(normed_BASC[:, self.reach :])
        for tap_SC, shift in zip(taps_WSC, range(self.reach, -1, -len(self.plan.multipliers)), strict=True):
            seen = slice(self.reach - shift, self.reach - shift + num_tokens)
            source_BTSC = normed_BASC[:, seen]
            if stretch_BA is not None:
                is_seen_BT = (stretch_BA[:, seen] == stretch_BA[:, self.reach :]) & ~is_none_BA[
                    :, self.reach :
                ]
                source_BTSC = source_BTSC * is_seen_BT[..., None, None]
            mixed_BTSC = mixed_BTSC + source_BTSC * tap_SC
        return functional.silu(mixed_BTSC)

    def _norm(self, x_SC: Tensor, weight_SC: Tensor) -> Tensor:
        return functional.rms_norm(x_SC, (self.dim,), eps=self.norm_eps).to(weight_SC.dtype) * weight_SC


def map_tables(model: nn.Module, directory: str | Path) -> None:
    """Moves the tables of all conditional memories into scratch files; their RAM is free.

    Values stay. The files have no names, and go with the model.

    Args:
        model: on the CPU, with float32 tables.
        directory: on the disk that is to hold them.

    Raises:
        ValueError: a table on another device or of another dtype.
        OSError: the directory cannot be written to, or its disk is too full.
    """
    for module in model.modules():
        if isinstance(module, ConditionalMemory) and not isinstance(module.table, MappedTable):
            module.table = MappedTable.copy_of(module.table, Path(directory))
