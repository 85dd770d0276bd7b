"""`attach`: a model whose keys reach the cache without positions.

    with stratakv.attach(model):
        cache = stratakv.TieredCache.open(model, "sessions/", name="my-repo")
        model.generate(**inputs, cache=cache)

While a model is attached its rotary modules give the identity, and positions are applied when
pages are read. Everything is per instance and is undone by `detach`; what is registered in
transformers for good is the name of an attention that nothing else uses.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from transformers import Cache

from stratakv.cache.rotary import Rotary
from stratakv.hf.attention import LINKS, NAME, Link, UnsupportedModelError
from stratakv.hf.compat import CACHE_ARGUMENT, check_version, is_full_attention, layer_plan
from stratakv.hf.probe import EXACT_MODE, Finding, probe
from stratakv.hf.rotary_modules import Pass, hook, rotary_modules

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()


class Attachment:
    """A model that is attached, until `detach` or the end of the `with` block.

    Attributes:
        rotary: what positions the paged layers have; None where they have none.
        settings: what tells its caches' stored keys from others.
        trained_tokens: tokens that the model was trained on at once; 0 where its config does not say.
        current: the forward pass under way.
    """

    def __init__(self, model: nn.Module) -> None:
        check_version()
        self._decoder = weakref.ref(_decoder_of(model))
        self._model = weakref.ref(model)
        self._remove_hooks = contextlib.ExitStack()
        self.current = Pass()
        self.is_active = False
        decoder = _decoder_of(model)
        _refuse_attached(model, decoder)
        findings = probe(decoder, lambda: _our_attention(decoder))
        self.rotary = _rotary_of_pages(decoder, findings)
        self.settings = {"key_rotation": "page"}
        self.settings |= {"rotary_pairs": "none"} if self.rotary is None else self.rotary.settings()
        self.trained_tokens = int(getattr(decoder.config, "max_position_embeddings", None) or 0)
        # From here on nothing can fail. What undoes it holds no reference that keeps the model alive.
        config: Any = decoder.config
        self._previous: str = config._attn_implementation
        _choose_attention(decoder, NAME)
        for module in rotary_modules(decoder):
            handle = module.register_forward_hook(hook(self.current), with_kwargs=True)
            self._remove_hooks.callback(handle.remove)
        handle = decoder.register_forward_pre_hook(self._before, with_kwargs=True)
        self._remove_hooks.callback(handle.remove)
        for module, finding in findings.items():
            LINKS[module] = Link(self, finding.source, finding.interleaved)
        _ATTACHED[model] = _ATTACHED[decoder] = self
        self.is_active = True

    def detach(self) -> None:
        """Gives the model back as it was. Detaching twice is no error."""
        if not self.is_active:
            return
        self.is_active = False
        self._remove_hooks.close()
        for module in [module for module, link in LINKS.items() if link.attachment is self]:
            del LINKS[module]
        for module in [module for module, attachment in _ATTACHED.items() if attachment is self]:
            del _ATTACHED[module]
        decoder = self._decoder()
        if decoder is not None:
            _choose_attention(decoder, self._previous)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        model = self._model()
        name = "a model that is gone" if model is None else type(model).__name__
        return f"<{'attached to' if self.is_active else 'detached from'} {name}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise RuntimeError("an attached model cannot be copied: detach it first, and attach each copy")

    def __reduce__(self) -> NoReturn:
        raise TypeError("an attached model cannot be pickled: detach it first")

    def check_update(self, cache: Any) -> None:
        """Refuses keys that do not come from this model while it is attached.

        Raises:
            RuntimeError: they do not.
        """
        if not self.is_active:
            raise RuntimeError(
                "this cache was opened while its model was attached, and holds keys without positions: use "
                "it inside `with stratakv.attach(model):`, or open another one for the model as it is"
            )
        if not self.current.is_of(cache):
            raise RuntimeError(
                "this cache was opened for an attached model, and is used with another one: open one for each"
            )

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None:
            # A cache of transformers' own, made in the pass, would hold keys without positions.
            kwargs = kwargs | {"use_cache": False}
        else:
            self._check_cache(cache)
            check_positions(kwargs.get("position_ids"), kwargs.get("attention_mask"), cache.get_seq_length())
        self.current.start(cache)
        return args, kwargs

    def _check_cache(self, cache: Any) -> None:
        theirs: Attachment | None = getattr(cache, "attachment", None)
        if theirs is self:
            return
        if theirs is not None and theirs._model() is self._model() and theirs.settings == self.settings:
            cache.attachment = self
            return
        if theirs is not None:
            raise ValueError(
                "this cache was opened for another attached model: open one for each, with "
                "stratakv.TieredCache.open(model, ...)"
            )
        raise ValueError(
            f"the model is attached, and this {type(cache).__name__} was not made for that: its keys would "
            f"have no positions. Pass {CACHE_ARGUMENT}=stratakv.TieredCache.open(model, ...), opened inside "
            "`with stratakv.attach(model):` (with None as its path it lives in RAM), or use_cache=False, or "
            "detach the model"
        )


def attach(model: nn.Module) -> Attachment:
    """Makes a model hand its keys to the cache without positions, which are applied when pages are read.

        with stratakv.attach(model):
            cache = stratakv.TieredCache.open(model, "sessions/", name="my-repo")
            model.generate(**inputs, cache=cache)

    or `handle = stratakv.attach(model)` and later `handle.detach()`. The model computes what it did
    before, up to rounding. That is tested here on six tokens, at the cost of three short forward
    passes. Only caches that were opened for the attached model can be used with it.

    Args:
        model: a transformers model with rotary positions, on its devices already.

    Returns:
        The attachment, a context manager.

    Raises:
        UnsupportedModelError: (a ValueError) the model is not reproduced; the message says why and what
            works instead.
        RuntimeError: the model is attached already.
    """
    return Attachment(model)


def attachment_of(model: nn.Module) -> Attachment | None:
    """The attachment of a model that is attached now."""
    return _ATTACHED.get(model)


def check_positions(positions: Any, mask: Any, held: int) -> None:
    """Accepts position ids that go up by one from token to token, as the cache's own count does.

    Args:
        positions: (B or 1, T), or None for the model's own choice.
        mask: the pass's attention mask; tokens that a (B, S + T) one masks do not count.
        held: S, tokens in the cache.

    Raises:
        ValueError: other positions.
    """
    if not isinstance(positions, Tensor):
        return
    shape = tuple(positions.shape)
    if positions.dim() != 2:
        raise ValueError(f"position_ids of shape {shape}: an attached model takes (B, T)")
    num_new = shape[1]
    positions = positions.to("cpu", torch.int64)
    offsets = positions - torch.arange(held, held + num_new)
    if not bool(offsets.any()):
        return
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == held + num_new:
        seen = mask.to("cpu") != 0
        # Padding before the text shifts a row as a whole; padding inside it would not.
        offsets = torch.where(seen[:, held:], offsets + seen.logical_not().sum(-1, keepdim=True), 0)
        inside = seen & (seen.logical_not().flip(-1).cumsum(-1).flip(-1) > 0)
        if not bool(offsets.any()) and not bool(inside.any()):
            return
    raise ValueError(
        f"position_ids {positions.tolist() if positions.numel() < 64 else shape} after {held} tokens: an "
        "attached model takes positions that go up by one from token to token in every row (after padding on "
        "the left, where attention_mask says so; without one, generate takes the pad token anywhere for "
        "padding). For packed sequences or positions of your own, use exact mode: do not attach"
    )


def _decoder_of(model: nn.Module) -> nn.Module:
    """The text decoder of a model."""
    get_decoder: Any = getattr(model, "get_decoder", None)
    if not isinstance(model, nn.Module) or getattr(model, "config", None) is None or get_decoder is None:
        raise ValueError(f"model must be a transformers model, not {type(model).__name__}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder: {EXACT_MODE}")
    decoder: nn.Module = get_decoder()
    return decoder


def _refuse_attached(model: nn.Module, decoder: nn.Module) -> None:
    if model in _ATTACHED or decoder in _ATTACHED:
        raise RuntimeError(f"this {type(model).__name__} is attached already: detach it first")


@contextlib.contextmanager
def _our_attention(decoder: nn.Module) -> Iterator[None]:
    config: Any = decoder.config
    previous = config._attn_implementation
    _choose_attention(decoder, NAME)
    try:
        if config._attn_implementation != NAME:
            raise UnsupportedModelError(
                f"{type(decoder).__name__} does not let its attention be chosen: {EXACT_MODE}"
            )
        yield
    finally:
        _choose_attention(decoder, previous)


def _choose_attention(decoder: nn.Module, name: str) -> None:
    set_attention: Any = decoder.set_attn_implementation
    set_attention(name)


def _rotary_of_pages(decoder: nn.Module, findings: dict[nn.Module, Finding]) -> Rotary | None:
    """The one rotary of the layers that keep their whole past."""
    plan = layer_plan(decoder.config)
    rotaries = set()
    for module, finding in findings.items():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and index < len(plan) and is_full_attention(plan[index][0]):
            source = finding.source
            rotaries.add(None if source is None else Rotary(source.inv_freq, finding.interleaved))
    if len(rotaries) > 1:
        raise UnsupportedModelError(
            f"{type(decoder).__name__}: its full-attention layers have different positions (some have none, "
            f"or other frequencies), and pages of a cache have one kind: {EXACT_MODE}"
        )
    return rotaries.pop() if rotaries else None
