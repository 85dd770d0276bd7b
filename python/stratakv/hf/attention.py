"""The attention function of attached models: positions are applied here, not by the model.

While a model is attached its rotary modules give the identity, so queries and keys arrive
without positions. What is in pages is attended to by the engine, at its positions; plain
tensors (a first pass, sliding windows) are turned here, by the cosines and sines that the
model itself would have used.

Letters: B rows, Q query heads, H key/value heads, T query tokens, S keys, D head dim.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from stratakv.attention.masks import causal_mask
from stratakv.attention.paged import paged_attention
from stratakv.attention.paged_tensor import PagedTensor
from stratakv.attention.softcap import softcap_attention
from stratakv.cache.rotary import turn
from stratakv.hf.rotary_modules import RotarySource

if TYPE_CHECKING:
    from stratakv.hf.attachment import Attachment

NAME = "stratakv"

# What models pass to their attention and this one does not compute.
UNSUPPORTED = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "head_mask": "a head mask",
    "cu_seq_lens_q": "packed sequences",
    "cu_seq_lens_k": "packed sequences",
    "indices": "an indexer's selection",
    "block_indices": "a selection of blocks",
}


class UnsupportedModelError(ValueError):
    """A model that `attach` does not reproduce; it works unattached."""


@dataclass(frozen=True)
class Link:
    """How one attention module's queries and keys get their positions; no source means not at all."""

    attachment: Attachment
    source: RotarySource | None
    interleaved: bool = False

    def turned(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, T, D) queries and the (B, H, S, D) keys that end with theirs, at their positions."""
        if self.source is None:
            return query, key
        current = self.attachment.current
        cos, sin = current.turns(self.source, query.shape[2], query.device)
        query = turn(query, cos, sin, interleaved=self.interleaved)
        cos, sin = current.turns(self.source, key.shape[2], key.device)
        return query, turn(key, cos, sin, interleaved=self.interleaved)

    def scaled(self, query: Tensor, scaling: float) -> tuple[Tensor, float]:
        """Folds the factor of the model's cosines, once for queries and once for keys, into the scores."""
        factor = 1.0 if self.source is None else self.source.scaling**2
        if factor == 1.0 or self.source is None:
            return query, scaling
        dims = 2 * len(self.source.inv_freq)
        if dims == query.shape[-1]:
            return query, scaling * factor
        return torch.cat([query[..., :dims] * factor, query[..., dims:]], dim=-1), scaling


LINKS: weakref.WeakKeyDictionary[nn.Module, Link] = weakref.WeakKeyDictionary()


class _Probe(threading.local):
    """Who looks at attention calls before there are links."""

    attend: Callable[..., tuple[Tensor, None]] | None = None


_PROBE = _Probe()


@contextlib.contextmanager
def probing(attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Sends this thread's attention calls to `attend`."""
    _PROBE.attend = attend
    try:
        yield
    finally:
        _PROBE.attend = None


def attention(  # noqa: PLR0917  # transformers' own signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention; (B, T, Q, D) comes back.

    Raises:
        UnsupportedModelError: an argument that this attention does not compute.
        RuntimeError: a module that is not part of an attached model.
    """
    if _PROBE.attend is not None:
        return _PROBE.attend(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    link = LINKS.get(module)
    if link is None:
        raise RuntimeError(
            f"{type(module).__name__} asks for the attention {NAME!r}, and its model is not attached: a copy "
            "of an attached model, or another that shares its config, must be given another attention "
            "(model.set_attn_implementation('sdpa')) or be attached itself"
        )
    check_arguments(kwargs)
    if isinstance(key, PagedTensor):
        output = _paged(
            link,
            module,
            query,
            key,
            mask=attention_mask,
            dropout=dropout,
            scaling=scaling,
            kwargs=kwargs,
        )
        return output, None
    if attention_mask is None and 1 < query.shape[2] != key.shape[2] and _is_causal(module, kwargs):
        attention_mask = causal_mask(query.shape[2], key.shape[2], query.device)
    query, key = link.turned(query, key)
    return plain_attention(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def plain_attention(  # noqa: PLR0917  # transformers' own signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over plain tensors with positions: transformers' own, and capped scores."""
    softcap = kwargs.get("softcap")
    if softcap is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = softcap_attention(
        query,
        key,
        value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        mask=attention_mask,
        is_causal=attention_mask is None and _is_causal(module, kwargs),
        dropout=dropout,
    )
    return output.transpose(1, 2).contiguous(), None


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def check_arguments(kwargs: dict[str, Any]) -> None:
    """Refuses what this attention would silently leave out.

    Raises:
        UnsupportedModelError: naming the argument.
    """
    for name, meaning in UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"the model's attention uses {meaning} ({name}), which stratakv.attach does not compute: use "
                "exact mode, a TieredCache without attach"
            )


def _paged(
    link: Link,
    module: nn.Module,
    query: Tensor,
    key: PagedTensor,
    *,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """(B, T, Q, D) attention over pages."""
    if dropout > 0.0:
        raise ValueError(f"dropout={dropout} over a cached past: call model.eval() before generating")
    snapshot = key.snapshot
    causal = mask is None and query.shape[2] > 1 and _is_causal(module, kwargs)
    query, scale = link.scaled(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
    output = paged_attention(
        query, snapshot, mask=mask, causal=causal, scale=scale, softcap=kwargs.get("softcap")
    )
    if output is None:
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"queries {tuple(query.shape)} {query.dtype} on {query.device} and mask {shape} do not fit keys "
            f"{tuple(key.shape)} {key.dtype} on {key.device}"
        )
    return output.transpose(1, 2).contiguous()


def mask_or_none(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask that transformers makes, or None where it is the causal one of tokens after a past.

    A (B, 1, T, S) mask of a long past is larger than what is attended to.
    """
    attention_mask = kwargs.get("attention_mask")
    is_plain = (
        not args
        and kwargs.get("mask_function", causal_mask_function) is causal_mask_function
        and kwargs.get("allow_is_causal_skip", True)
        and kwargs.get("local_size") is None
        and (attention_mask is None or bool(attention_mask.all()))
    )
    return None if is_plain else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask_or_none)
