"""`add_hyper_connections`: an existing decoder gets residual streams, and computes what it did before.

    model = AutoModelForCausalLM.from_pretrained("my-model/")
    stratakv.nn.add_hyper_connections(model, num_streams=4)
    ...                                   # train on
    model.save_pretrained("mine/")        # after `import stratakv.hf` AutoModelForCausalLM loads it

The layers' own modules keep their names and parameters; beside them come `attention_connection` and
`mlp_connection`, and `stream_head` in the last one. The decoder is not touched otherwise: its first
layer takes (B, T, C) and makes the streams of it, the last one gives (B, T, C) back. Torch only: a model
is known by its modules, and the result is compared with what the model computed before.

B batch, T tokens, S streams, C width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stratakv.nn.hyper_connections import Backend, HyperConnections, StreamHead, expand_streams
from stratakv.nn.mixings import MixingName

# In a config: that a model has streams, and which.
CONFIG_FIELD = "hyper_connections"
MODEL_TYPE_PREFIX = "mhc_"
# Families of layers, by their norms: what they share is an attention, then an MLP, one after the other.
_NORMS_BEFORE = {"input_layernorm", "post_attention_layernorm"}
_NORMS_AROUND = _NORMS_BEFORE | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_NORMS_AFTER = {"post_attention_layernorm", "post_feedforward_layernorm"}
_BRANCHES = {"self_attn", "mlp"}
_DROPOUTS = {"resid_attn_dropout", "resid_mlp_dropout"}
_NUM_TOKENS = 6
# Largest relative difference that is rounding.
_NEAR = {torch.float64: 1e-5, torch.float32: 1e-4}
_NEAR_16_BITS = 5e-2
_CONFIG_CLASSES: dict[type[Any], type[Any]] = {}
_LAYER_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class StreamConfig:
    """What a model's connections are made with; see `HyperConnections`."""

    num_streams: int = 4
    mixing: MixingName = "sinkhorn"
    sinkhorn_iters: int = 20
    backend: Backend = "auto"


def add_hyper_connections(
    model: nn.Module,
    *,
    num_streams: int = 4,
    mixing: MixingName = "sinkhorn",
    sinkhorn_iters: int = 20,
    backend: Backend = "auto",
) -> nn.Module:
    """Turns a decoder's residual path into hyper-connections, in place.

    The model computes what it did before, up to rounding, which is tested here on six tokens: two short
    forward passes. From there it can be trained; with `output_hidden_states` its inner layers give
    (B, T, S, C). A causal model of text is loaded again by `AutoModelForCausalLM`, once `stratakv.hf` is
    imported; a vision-language model can be converted and trained, but not loaded again.

    Args:
        model: a model whose decoder's layers are an attention and an MLP with norms before, after or around
            them, as in Llama, Mistral, Qwen 2 and 3, Gemma, OLMo 2, Phi-3 and Granite.
        num_streams: see `HyperConnections`, like the rest.
        mixing: how streams mix.
        sinkhorn_iters: sweeps of Sinkhorn's algorithm.
        backend: who computes.

    Returns:
        The same model.

    Raises:
        ValueError: layers of another kind, a model that has streams already, or one that would not compute
            what it did; the message says which, and the model is as it was.
    """
    decoder = _decoder_of(model)
    layers = _layers_of(decoder)
    config = StreamConfig(num_streams, mixing, sinkhorn_iters, backend)
    before = _run(decoder)
    undo = _convert(layers, config)
    after = _run(decoder)
    far = float((after - before).norm() / before.norm().clamp_min(1e-30))
    kept = next(layers[0].parameters()).dtype
    if not far <= _NEAR.get(kept, _NEAR_16_BITS):
        undo()
        raise ValueError(
            f"{type(decoder).__name__} would not compute what it did (relative difference {far:.2g}): its "
            f"{type(layers[0]).__name__} does more than its modules say"
        )
    mark(decoder, config)
    return model


def convert_layers(model: nn.Module, config: StreamConfig) -> None:
    """Adds connections to a model that is being made, without running it; for loading.

    Raises:
        ValueError: layers of another kind.
    """
    _convert(_layers_of(_decoder_of(model)), config)


def mark(decoder: nn.Module, config: StreamConfig) -> None:
    """Writes into the decoder's config, where it has one, that the model has streams."""
    theirs: Any = getattr(decoder, "config", None)
    if theirs is not None:
        # A type of its own, so that nobody loads the model without its connections.
        theirs.__class__ = config_class_of(type(theirs))
        setattr(theirs, CONFIG_FIELD, asdict(config))


def config_class_of(base: type[Any]) -> type[Any]:
    """The class of configs of a family's models with streams, one for each family."""
    if base.model_type.startswith(MODEL_TYPE_PREFIX):
        return base
    if base not in _CONFIG_CLASSES:
        _CONFIG_CLASSES[base] = type(
            f"Mhc{base.__name__}",
            (base,),
            {
                "model_type": MODEL_TYPE_PREFIX + base.model_type,
                CONFIG_FIELD: None,
                "__module__": __name__,
                "__doc__": f"A {base.__name__} of a model with hyper-connections.",
            },
        )
    return _CONFIG_CLASSES[base]


def _decoder_of(model: nn.Module) -> nn.Module:
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder: nn.Module = model if get_decoder is None else get_decoder()
    return decoder


def _layers_of(decoder: nn.Module) -> nn.ModuleList:
    layers = getattr(decoder, "layers", None)
    name = type(decoder).__name__
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ValueError(f"{name} has no list of `layers`: accepted are decoders such as LlamaModel")
    for layer in layers:
        names = {child for child, module in layer.named_children() if module is not None}
        if "attention_connection" in names:
            raise ValueError(f"{name} has hyper-connections already")
        norms = names - _BRANCHES - _DROPOUTS
        if not names >= _BRANCHES or norms not in (_NORMS_BEFORE, _NORMS_AROUND, _NORMS_AFTER):
            raise ValueError(
                f"{name}: a {type(layer).__name__} has {', '.join(sorted(names))}: accepted are self_attn "
                "and mlp one after the other, with input_layernorm and post_attention_layernorm before "
                "them, or norms around or after them as in Gemma 2 and OLMo 2"
            )
    return layers


def _convert(layers: nn.ModuleList, config: StreamConfig) -> Callable[[], None]:
    """Gives every layer its connections; what comes back takes them away again."""
    classes = [type(layer) for layer in layers]
    dim = _width_of(layers[0])
    for index, layer in enumerate(layers):
        device = next(layer.parameters()).device
        for place, name in enumerate(("attention_connection", "mlp_connection")):
            connection = HyperConnections(
                dim,
                num_streams=config.num_streams,
                layer_index=2 * index + place,
                mixing=config.mixing,
                sinkhorn_iters=config.sinkhorn_iters,
                backend=config.backend,
            )
            layer.add_module(name, connection.to(device))
        layer.__class__ = _layer_class_of(type(layer))
        layer.num_streams_in = config.num_streams if index == 0 else None  # type: ignore[assignment]
    head = StreamHead(dim, num_streams=config.num_streams)
    layers[-1].add_module("stream_head", head.to(next(layers[-1].parameters()).device))

    def undo() -> None:
        for layer, kind in zip(layers, classes, strict=True):
            layer.__class__ = kind
            del layer.attention_connection, layer.mlp_connection, layer.num_streams_in
        del layers[-1].stream_head

    return undo


def _width_of(layer: nn.Module) -> int:
    norm: Any = layer.get_submodule("post_attention_layernorm")
    return int(norm.weight.shape[0])


def _layer_class_of(base: type[nn.Module]) -> type[nn.Module]:
    """The family's layer whose residual path is streams, one class for each family."""
    if base in _LAYER_CLASSES:
        return _LAYER_CLASSES[base]
    signature = inspect.signature(base.forward)

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bound = signature.bind_partial(self, hidden_states, *args).arguments
        around = dict(list(bound.items())[2:]) | kwargs  # without self and what is read
        if self.num_streams_in is not None:
            hidden_states = expand_streams(hidden_states, self.num_streams_in)
        hidden_states = self.attention_connection(hidden_states, lambda h: _attend(self, h, around))
        hidden_states = self.mlp_connection(hidden_states, lambda h: _think(self, h))
        head = getattr(self, "stream_head", None)
        return hidden_states if head is None else head(hidden_states)

    made = type(f"Mhc{base.__name__}", (base,), {"forward": forward, "__module__": __name__})
    return _LAYER_CLASSES.setdefault(base, made)


def _attend(layer: Any, h_BTC: Tensor, around: dict[str, Any]) -> Tensor:
    """(B, T, C) what the attention adds."""
    before, after = getattr(layer, "input_layernorm", None), None
    if before is None or hasattr(layer, "pre_feedforward_layernorm"):
        after = layer.post_attention_layernorm
    out = layer.self_attn(hidden_states=h_BTC if before is None else before(h_BTC), **around)
    return _finish(layer, out, after, "resid_attn_dropout")


def _think(layer: Any, h_BTC: Tensor) -> Tensor:
    """(B, T, C) what the MLP adds."""
    before = getattr(layer, "pre_feedforward_layernorm", None)
    if before is None and hasattr(layer, "input_layernorm"):
        before = layer.post_attention_layernorm
    after = getattr(layer, "post_feedforward_layernorm", None)
    out = layer.mlp(h_BTC if before is None else before(h_BTC))
    return _finish(layer, out, after, "resid_mlp_dropout")


def _finish(layer: Any, out: Any, norm: nn.Module | None, dropout: str) -> Tensor:
    """A branch's output with what comes between it and the residual path."""
    out = out[0] if isinstance(out, tuple) else out
    out = out if norm is None else norm(out)
    drop = getattr(layer, dropout, None)
    out = out if drop is None else drop(out)
    added: Tensor = out * getattr(layer, "residual_multiplier", 1.0)
    return added


@torch.no_grad()
def _run(decoder: nn.Module) -> Tensor:
    """(1, T, C) float64 of a few tokens, without dropout; modules' modes are as before afterwards."""
    get_embeddings: Any = getattr(decoder, "get_input_embeddings", None)
    embedding: Any = decoder.embed_tokens if get_embeddings is None else get_embeddings()
    num, device = embedding.weight.shape[0], embedding.weight.device
    ids = torch.tensor([[(1 + place * (num // 7 + 1)) % num for place in range(_NUM_TOKENS)]], device=device)
    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        hidden: Tensor = decoder(input_ids=ids, use_cache=False)[0]
    finally:
        for module, mode in modes:
            module.training = mode
    return hidden.double().cpu()
