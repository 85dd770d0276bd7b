"""A model's rotary modules: making them give the identity, and remembering what they would have given.

A rotary module is one that keeps inverse frequencies (`inv_freq`, or one per type of layer) and
gives (cos, sin) of (B, T, W) for position ids of (B, T). Its own forward pass still runs; a hook
on it takes what it gave and hands out cosines of 1 and sines of 0. A hook belongs to the
instance, survives `model.to()`, and works around forwards that other libraries have wrapped.

Letters: B rows, T tokens, N frequencies, W the width that a module gives, N or 2N.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True, eq=False)
class Key:
    """One kind of call of a rotary module: the module, and what it is given beside positions."""

    module: nn.Module
    rest: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]

    def __hash__(self) -> int:
        return hash((id(self.module), self.rest, self.named))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Key)
            and self.module is other.module
            and (self.rest, self.named) == (other.rest, other.named)
        )

    def compute(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What the module gives for (B, T) positions, in the dtype and on the device of `like`."""
        cos, sin = self.module.forward(like, positions, *self.rest, **dict(self.named))
        return cos, sin


@dataclass(frozen=True)
class RotarySource:
    """A kind of call that was understood.

    Attributes:
        key: the call.
        inv_freq: radians per position, float64.
        scaling: what the module multiplies its cosines and sines by.
        is_repeated: whether each frequency comes twice in a row, instead of all of them twice.
    """

    key: Key
    inv_freq: tuple[float, ...]
    scaling: float
    is_repeated: bool

    def per_frequency(self, values: Tensor) -> Tensor:
        """(B, T, N) of the (B, T, W) that the module gives."""
        if values.shape[-1] == len(self.inv_freq):
            return values
        return values[..., ::2] if self.is_repeated else values[..., : len(self.inv_freq)]


class Pass(threading.local):
    """What the rotary modules gave in the forward pass under way, in this thread."""

    def __init__(self) -> None:
        self._cache: weakref.ref[Any] | None = None
        self._own: dict[Key, tuple[Tensor, Tensor, Tensor]] = {}
        self._turns: dict[tuple[Key, int, torch.device], tuple[Tensor, Tensor]] = {}

    def start(self, cache: Any) -> None:
        """A pass with that cache begins."""
        self._cache = None if cache is None else weakref.ref(cache)
        self._own.clear()
        self._turns.clear()

    def is_of(self, cache: Any) -> bool:
        """Whether the pass was started with that cache."""
        return self._cache is not None and self._cache() is cache

    def record(self, key: Key, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
        """A module was called."""
        self._own[key] = (cos, sin, positions)
        self._turns = {known: turns for known, turns in self._turns.items() if known[0] != key}

    def calls(self) -> list[Key]:
        """The calls so far."""
        return list(self._own)

    def own(self, key: Key) -> tuple[Tensor, Tensor]:
        """(B, T, W) cosines and sines of the pass's own tokens."""
        return self._own[key][:2]

    def turns(self, source: RotarySource, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, 1, num_tokens, N) cosines and sines of the tokens that end with the pass's own."""
        place = (source.key, num_tokens, device)
        if place not in self._turns:
            if source.key not in self._own:
                raise RuntimeError(
                    f"{type(source.key.module).__name__} was not called in this forward pass: call the "
                    "model, not a layer of it, while it is attached"
                )
            cos, sin, positions = self._own[source.key]
            if num_tokens != positions.shape[-1]:
                back = torch.arange(num_tokens - 1, -1, -1, device=positions.device)
                cos, sin = source.key.compute(cos, positions[:, -1:] - back)
            self._turns[place] = (
                source.per_frequency(cos)[:, None].to(device),
                source.per_frequency(sin)[:, None].to(device),
            )
        return self._turns[place]


def rotary_modules(decoder: nn.Module) -> Iterator[nn.Module]:
    """Modules of a decoder that keep inverse frequencies."""
    for module in decoder.modules():
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            yield module


def length_dependent(module: nn.Module) -> str | None:
    """The kind of rotary whose frequencies change with the length of what is read, if it is one."""
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    return next((kind for kind in named if kind in LENGTH_DEPENDENT), None)


def hook(current: Pass) -> Callable[..., Any]:
    """A forward hook that records a module's calls, and gives the identity in their place."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        named = dict(kwargs)
        positions = args[1] if len(args) > 1 else named.pop("position_ids", None)
        named.pop("x", None)
        is_pair = isinstance(output, tuple) and len(output) == 2 and all(map(torch.is_tensor, output))
        if not is_pair or not isinstance(positions, Tensor) or output[0].is_complex():
            raise ValueError(f"{type(module).__name__} does not give (cos, sin) for position ids")
        if positions.dim() != 2 or output[0].dim() != 3:
            raise ValueError(
                f"{type(module).__name__} was given position ids of shape {tuple(positions.shape)}: "
                "multimodal positions in several dimensions cannot be applied to pages"
            )
        key = Key(module, tuple(args[2:]), tuple(sorted(named.items())))
        cos, sin = output
        current.record(key, cos, sin, positions)
        return torch.ones_like(cos), torch.zeros_like(sin)

    return record


def understand(key: Key) -> RotarySource | None:
    """Frequencies, factor and layout of a module's calls; None where they are not a plain rotary's."""
    candidates = [
        buffer.detach().to("cpu", torch.float64)
        for name, buffer in key.module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and buffer.dim() == 1
    ]
    device = next(iter(key.module.buffers(recurse=False))).device
    positions = torch.tensor([[0, 1, 2, 3, 7, 50, 333, 1000]], device=device)
    with torch.no_grad():
        cos, sin = (part.double().cpu() for part in key.compute(torch.zeros(1, device=device), positions))
    scaling = float(cos[0, 0, 0])
    for inv_freq in candidates:
        angles = positions.cpu()[..., None].double() * inv_freq
        # A module's float32 angles are off by half a unit in their last place.
        tolerance = abs(scaling) * (1e-5 + 1e-6 * positions.cpu()[..., None])
        for expanded, is_repeated in _layouts(angles):
            if (
                expanded.shape == cos.shape
                and bool(((cos - scaling * expanded.cos()).abs() <= tolerance).all())
                and bool(((sin - scaling * expanded.sin()).abs() <= tolerance).all())
            ):
                return RotarySource(key, tuple(inv_freq.tolist()), scaling, is_repeated)
    return None


def _layouts(angles: Tensor) -> list[tuple[Tensor, bool]]:
    """How modules lay N angles out, and whether each comes twice in a row."""
    return [
        (angles, False),
        (torch.cat([angles, angles], dim=-1), False),
        (angles.repeat_interleave(2, dim=-1), True),
    ]
