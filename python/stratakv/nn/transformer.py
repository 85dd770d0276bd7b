"""`StrataLM`: a decoder of language whose residual path is hyper-connections. Read it top to bottom.

Grouped-query attention with rotary positions, SwiGLU, RMSNorm before each branch; around every
branch a `HyperConnections`, after the last a `StreamHead`; in chosen blocks a `ConditionalMemory`.
Torch only; `stratakv.hf` makes the same modules a transformers model with the same names in its
state, which saves, loads and generates.

    config = stratakv.nn.TransformerConfig(vocab_size=8192, hidden_size=256, num_layers=6, num_heads=4)
    model = stratakv.nn.StrataLM(config)
    loss = model.loss(input_ids_BT)

B batch, T tokens, P tokens past and present, S streams, C width, H heads, K key/value heads, D head
dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stratakv.nn.conditional_memory import ConditionalMemory, MemoryConfig, MemoryState
from stratakv.nn.hyper_connections import Backend, HyperConnections, StreamHead, expand_streams
from stratakv.nn.mixings import MixingName
from stratakv.nn.recompute import group_size, streams_recomputed

Recompute = Literal["nothing", "streams", "blocks"]
INITIAL_STD = 0.02
# Parts that make their own initial values.
_SELF_MADE = ("connection", "stream_head", ".memory.")


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a `StrataLM`.

    Attributes:
        vocab_size: V.
        hidden_size: C.
        num_layers: blocks of an attention and an MLP.
        num_heads: H; a multiple of the key/value heads.
        num_kv_heads: K; None is H.
        head_dim: D, even; None is C / H.
        intermediate_size: width of the MLP; None is 8/3 C, rounded up to a multiple of 64.
        max_positions: tokens that it is trained on at once.
        rope_theta: base of the rotary frequencies.
        norm_eps: of every norm.
        tie_embeddings: one matrix for embedding and output.
        num_streams: S; 1 is the ordinary residual connection (with a scale if `learnable_scale`).
        mixing: see `HyperConnections`.
        sinkhorn_iters: see `HyperConnections`.
        learnable_scale: with one stream, one factor per branch; otherwise the connection has no parameters.
        hyper_backend: see `HyperConnections`.
        memory: which blocks begin with a conditional memory, and their sizes; None for none.
    """

    vocab_size: int
    hidden_size: int = 512
    num_layers: int = 8
    num_heads: int = 8
    num_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    num_streams: int = 4
    mixing: MixingName = "sinkhorn"
    sinkhorn_iters: int = 20
    learnable_scale: bool = True
    hyper_backend: Backend = "auto"
    memory: MemoryConfig | None = None

    def __post_init__(self) -> None:
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.kv_heads,
            "max_positions": self.max_positions,
            "num_streams": self.num_streams,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.kv_heads}")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_heads={self.num_heads}: give head_dim"
            )
        if self.head_size % 2:
            raise ValueError(f"head_dim={self.head_size} must be even: rotary positions turn pairs")
        if self.memory is not None and max(self.memory.layers) >= self.num_layers:
            raise ValueError(
                f"memory layers {list(self.memory.layers)}: num_layers={self.num_layers} has blocks 0 to "
                f"{self.num_layers - 1}"
            )

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """D."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_size(self) -> int:
        """Width of the MLP."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        return -(-self.hidden_size * 8 // (3 * 64)) * 64


@dataclass(frozen=True)
class Surroundings:
    """What a forward pass gives to all its attentions.

    cos, sin: (B or 1, T, D) of the positions.
    attend: (module, q (B, H, T, D), k and v (B, K, P, D), mask, scaling=) to (B, T, H, D).
    mask: whatever `attend` takes; None is causal.
    update: puts a layer's keys and values (B, K, T, D) into a cache and gives all of them back.
    ids: (B, T) for the memories; negative where there is no text.
    memories: by block, what its memory knows of the tokens before.
    """

    cos: Tensor
    sin: Tensor
    attend: Callable[..., Tensor]
    mask: Any = None
    update: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    ids: Tensor | None = None
    memories: Mapping[int, MemoryState] | None = None


def causal_attention(
    module: Attention, q_BHTD: Tensor, k_BKPD: Tensor, v_BKPD: Tensor, mask: Any, *, scaling: float
) -> Tensor:
    """Torch's attention over the tokens themselves, with no past."""
    del module
    out_BHTD = functional.scaled_dot_product_attention(
        q_BHTD, k_BKPD, v_BKPD, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return out_BHTD.transpose(1, 2)


class RotaryPositions(nn.Module):
    """Cosines and sines of positions.

    Source: RoFormer (arXiv 2104.09864); element i is paired with element i + D / 2, as in Llama.
    """

    inv_freq: Tensor
    rope_type = "default"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_size, config.rope_theta
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryPositions:
        """Moves like any module, but 16-bit models keep float32 frequencies: positions reach far."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.inv_freq.dtype != torch.float32:
            self.inv_freq = self.frequencies().to(self.inv_freq.device)
        return self

    def frequencies(self) -> Tensor:
        """(D / 2,) radians per position, float32."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu") / self.head_dim
        return self.theta**-exponents

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) positions to (B, T, D) each, in the dtype of `x`; angles in float32."""
        angles = position_ids[..., None].float() * self.inv_freq.float()
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Queries or keys, turned to their positions."""
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * cos_BTD.unsqueeze(1) + torch.cat([-second, first], -1) * sin_BTD.unsqueeze(1)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

    is_causal = True

    def __init__(self, config: TransformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = layer_idx, config.head_size
        self.num_key_value_groups = config.num_heads // config.kv_heads
        self.scaling = config.head_size**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.kv_heads * config.head_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.kv_heads * config.head_size, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_size, config.hidden_size, bias=False)

    def forward(self, h_BTC: Tensor, around: Surroundings) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        shape = (*h_BTC.shape[:-1], -1, self.head_dim)
        q_BHTD = rotate(self.q_proj(h_BTC).view(shape).transpose(1, 2), around.cos, around.sin)
        k_BKTD = rotate(self.k_proj(h_BTC).view(shape).transpose(1, 2), around.cos, around.sin)
        v_BKTD = self.v_proj(h_BTC).view(shape).transpose(1, 2)
        if around.update is not None:
            k_BKTD, v_BKTD = around.update(k_BKTD, v_BKTD, self.layer_idx)
        out_BTHD = around.attend(self, q_BHTD, k_BKTD, v_BKTD, around.mask, scaling=self.scaling)
        out_BTC: Tensor = self.o_proj(out_BTHD.flatten(-2))
        return out_BTC


class SwiGlu(nn.Module):
    """The gated MLP (arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, h_BTC: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        out_BTC: Tensor = self.down_proj(functional.silu(self.gate_proj(h_BTC)) * self.up_proj(h_BTC))
        return out_BTC


class PlainConnection(nn.Module):
    """The ordinary residual connection, in the place of a `HyperConnections` with one stream."""

    def forward(self, x_SC: Tensor, branch: Callable[..., Tensor], *args: Any) -> Tensor:
        """(..., 1, C) to (..., 1, C)."""
        return x_SC + branch(x_SC.squeeze(-2), *args).unsqueeze(-2)


class Block(nn.Module):
    """An attention and an MLP, each inside a connection; before them a memory, where it has one."""

    def __init__(
        self, config: TransformerConfig, layer_idx: int, memory: ConditionalMemory | None = None
    ) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.memory = memory
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SwiGlu(config)
        self.attention_connection = _connection(config, 2 * layer_idx)
        self.mlp_connection = _connection(config, 2 * layer_idx + 1)

    def forward(self, x_BTSC: Tensor, around: Surroundings) -> Tensor:
        """(B, T, S, C) to (B, T, S, C)."""
        if self.memory is not None:
            assert around.ids is not None, "a memory looks tokens up by their ids"
            state = None if around.memories is None else around.memories[self.layer_idx]
            x_BTSC = self.memory(x_BTSC, around.ids, state)
        x_BTSC = self.attention_connection(x_BTSC, self._attend, around)
        out_BTSC: Tensor = self.mlp_connection(x_BTSC, self._think)
        return out_BTSC

    def _attend(self, h_BTC: Tensor, around: Surroundings) -> Tensor:
        out_BTC: Tensor = self.self_attn(self.attention_norm(h_BTC), around)
        return out_BTC

    def _think(self, h_BTC: Tensor) -> Tensor:
        out_BTC: Tensor = self.mlp(self.mlp_norm(h_BTC))
        return out_BTC


def _connection(config: TransformerConfig, index: int) -> nn.Module:
    if config.num_streams == 1 and not config.learnable_scale:
        return PlainConnection()
    return HyperConnections(
        config.hidden_size,
        num_streams=config.num_streams,
        layer_index=index,
        mixing=config.mixing,
        sinkhorn_iters=config.sinkhorn_iters,
        norm_eps=config.norm_eps,
        backend=config.hyper_backend,
    )


def _memories(
    config: TransformerConfig, vocabulary: Tensor | None, table_directory: Path | None
) -> dict[int, ConditionalMemory]:
    if config.memory is None:
        return {}
    sizes = config.memory
    if vocabulary is None:
        # What it is will be loaded; otherwise every token is its own.
        vocabulary = torch.arange(config.vocab_size, device="cpu") % sizes.compressed_size
    if len(vocabulary) != config.vocab_size or int(vocabulary.max()) >= sizes.compressed_size:
        raise ValueError(
            f"a vocabulary of {len(vocabulary)} tokens with ids up to {int(vocabulary.max())}, for "
            f"vocab_size={config.vocab_size} and compressed_size={sizes.compressed_size}"
        )
    return {
        layer: ConditionalMemory(
            config.hidden_size,
            plan,
            vocabulary,
            num_streams=config.num_streams,
            ngram_dim=sizes.ngram_dim,
            pad_id=sizes.pad_id,
            kernel_size=sizes.kernel_size,
            norm_eps=config.norm_eps,
            table_directory=table_directory,
        )
        for layer, plan in sizes.plans().items()
    }


class DecoderParts:
    """The decoder's modules and its pass, for a class that is an `nn.Module` otherwise."""

    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    stream_head: StreamHead
    norm: nn.RMSNorm
    rotary_emb: RotaryPositions
    num_streams: int

    def build(
        self,
        config: TransformerConfig,
        vocabulary: Tensor | None = None,
        table_directory: Path | None = None,
    ) -> None:
        """Makes the modules; `vocabulary` is that of the memories, whose tables may lie in files."""
        self.num_streams = config.num_streams
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        memories = _memories(config, vocabulary, table_directory)
        self.layers = nn.ModuleList(
            Block(config, index, memories.get(index)) for index in range(config.num_layers)
        )
        self.stream_head = StreamHead(
            config.hidden_size, num_streams=config.num_streams, norm_eps=config.norm_eps
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.rotary_emb = RotaryPositions(config)

    def output_layers(self) -> list[nn.Module]:
        """What writes into the residual path."""
        parts = [module for block in self.layers for module in block.modules()]
        return [
            *(part.o_proj for part in parts if isinstance(part, Attention)),
            *(part.down_proj for part in parts if isinstance(part, SwiGlu)),
        ]

    def prefetch(self, ids_BT: Tensor, states: Mapping[int, MemoryState] | None = None) -> None:
        """Has what the memories will look up read in the background, where their tables are in files."""
        for index, block in enumerate(self.layers):
            memory = cast("Block", block).memory
            if memory is not None:
                memory.prefetch(ids_BT, None if states is None else states[index])

    def run(self, h_BTC: Tensor, around: Surroundings, *, recompute: Recompute = "nothing") -> Tensor:
        """Embedded tokens to last hidden states, (B, T, C) to (B, T, C).

        Args:
            h_BTC: embedded tokens.
            around: positions, attention, cache.
            recompute: what is computed again in the backward pass instead of kept: "nothing"; "streams", of
                groups of connections, without running a branch twice (`recompute.py`); or whole "blocks",
                but for their streams.

        Raises:
            ValueError: another `recompute`.
        """
        if recompute not in get_args(Recompute):
            raise ValueError(f"recompute must be one of {', '.join(get_args(Recompute))}, not {recompute!r}")
        # A training step knew its batch a step before, see `StrataLM.prefetch`.
        if around.ids is not None and not torch.is_grad_enabled():
            self.prefetch(around.ids, around.memories)
        x_BTSC = expand_streams(h_BTC, self.num_streams)
        every = group_size(self.num_streams, 2 * len(self.layers))
        with streams_recomputed(every=every) if recompute == "streams" else nullcontext():
            for block in self.layers:
                if recompute == "blocks":
                    x_BTSC = checkpoint(block, x_BTSC, around, use_reentrant=False)
                else:
                    x_BTSC = block(x_BTSC, around)
        out_BTC: Tensor = self.norm(self.stream_head(x_BTSC))
        return out_BTC


def initialize(module: nn.Module, config: TransformerConfig) -> None:
    """All initial values but those of connections and memories, which make their own: normal, 0.02.

    What writes into the residual path is scaled by 1 / sqrt(2 * layers), as in GPT-2.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or any(part in name for part in _SELF_MADE):
            continue
        is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
        nn.init.normal_(parameter, std=output_std(config) if is_output else INITIAL_STD)


def output_std(config: TransformerConfig) -> float:
    """Of the matrices that write into the residual path."""
    return INITIAL_STD / math.sqrt(2 * config.num_layers)


class Decoder(nn.Module, DecoderParts):
    """Tokens to hidden states."""

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: Tensor | None = None,
        table_directory: Path | None = None,
    ) -> None:
        super().__init__()
        self.build(config, vocabulary, table_directory)

    def forward(self, input_ids_BT: Tensor, *, recompute: Recompute = "nothing") -> Tensor:
        """(B, T) ids to (B, T, C)."""
        h_BTC = self.embed_tokens(input_ids_BT)
        positions_1T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None]
        cos, sin = self.rotary_emb(h_BTC, positions_1T)
        around = Surroundings(cos, sin, causal_attention, ids=input_ids_BT)
        return self.run(h_BTC, around, recompute=recompute)


class StrataLM(nn.Module):
    """The decoder with its output, for training.

    Args:
        config: sizes and choices.
        vocabulary: (V,) compressed ids for the memories (`compress_vocabulary`); None leaves each its own.
        table_directory: where the memories' tables lie in scratch files, which may be larger than RAM;
            None for RAM.

    Attributes:
        model: the `Decoder`.
        lm_head: (V, C) output; the embedding's own matrix where `config.tie_embeddings`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: Tensor | None = None,
        table_directory: Path | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, vocabulary, table_directory)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        initialize(self, config)

    def forward(self, input_ids_BT: Tensor, *, recompute: Recompute = "nothing") -> Tensor:
        """(B, T) ids to (B, T, V) logits."""
        logits_BTV: Tensor = self.lm_head(self.model(input_ids_BT, recompute=recompute))
        return logits_BTV

    def prefetch(self, input_ids_BT: Tensor) -> None:
        """Has what the memories will look up for a batch of `loss` read in the background.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        self.model.prefetch(input_ids_BT[:, :-1])

    def loss(self, input_ids_BT: Tensor, *, recompute: Recompute = "nothing") -> Tensor:
        """Mean cross entropy (nats) of each token given those before it, in float32.

        Args:
            input_ids_BT: (B, T), T at least 2.
            recompute: see `DecoderParts.run`.

        Raises:
            ValueError: rows of one token.
        """
        if input_ids_BT.shape[1] < 2:
            raise ValueError("a loss needs rows of at least two tokens")
        logits_BTV = self(input_ids_BT[:, :-1], recompute=recompute)
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), input_ids_BT[:, 1:].flatten())
