"""Finding out how a model applies its positions, by running it on a few tokens.

Nothing is known of a model by its name. A first pass with the model's own attention gives the
output to be reproduced; a second one notes what queries and keys every attention module
gets; a third, with the rotary modules giving the identity, finds for each module the rotary
call and the pairing that lead to the same queries and keys, and its output is compared with the
first. A model that is not reproduced is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stratakv.cache.rotary import turn
from stratakv.hf.attention import UnsupportedModelError, check_arguments, plain_attention, probing
from stratakv.hf.rotary_modules import Pass, RotarySource, hook, length_dependent, rotary_modules, understand

NUM_TOKENS = 6
EXACT_MODE = "use exact mode: do not attach, and pass stratakv.TieredCache(model.config)"

# Largest relative difference (of root mean squares) that is rounding: of one module's queries and
# keys, and of a whole model's output.
_NEAR = {torch.float64: (1e-5, 1e-5), torch.float32: (1e-5, 1e-3)}
_NEAR_16_BITS = (2e-2, 1e-1)


@dataclass(frozen=True)
class Finding:
    """How an attention module's queries and keys get their positions; no source means not at all."""

    source: RotarySource | None
    interleaved: bool


@dataclass
class _Seen:
    """What attention modules were given, and what was found about them."""

    given: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    found: dict[nn.Module, Finding] = field(default_factory=dict)


def probe(decoder: nn.Module, set_attention: Any) -> dict[nn.Module, Finding]:
    """Runs the decoder three times.

    Args:
        decoder: the module that has the embedding, the layers and the rotary modules.
        set_attention: a context manager's factory that makes the decoder use our attention.

    Returns:
        A finding for each attention module.

    Raises:
        UnsupportedModelError: naming what is not reproduced, and what to do instead.
    """
    modules = list(rotary_modules(decoder))
    name = type(decoder).__name__
    if not modules:
        raise UnsupportedModelError(
            f"{name} has no rotary embedding that keeps its frequencies (inv_freq), so its keys cannot be "
            f"stored without positions: {EXACT_MODE}"
        )
    for module in modules:
        kind = length_dependent(module)
        if kind is not None:
            raise UnsupportedModelError(
                f"{name} uses {kind!r} rotary embeddings, whose frequencies change with the length of the "
                f"text, so stored keys would not stay valid: {EXACT_MODE}"
            )
    with _quiet(decoder):
        expected = _run(decoder)
        seen = _Seen()
        with set_attention():
            with probing(lambda *args, **kwargs: _note(seen, *args, **kwargs)):
                _run(decoder)
            if not seen.given:
                raise UnsupportedModelError(
                    f"{name} does not call its attention through transformers' interface: {EXACT_MODE}"
                )
            current = Pass()
            handles = [module.register_forward_hook(hook(current), with_kwargs=True) for module in modules]
            try:
                found = _matcher(seen, current, name)
                with probing(found):
                    actual = _run(decoder)
            except ValueError as error:
                if isinstance(error, UnsupportedModelError):
                    raise
                raise UnsupportedModelError(f"{name}: {error}; {EXACT_MODE}") from error
            finally:
                for handle in handles:
                    handle.remove()
    far = _distance(actual, expected)
    if not far <= _near(expected)[1]:
        raise UnsupportedModelError(
            f"{name}: its output is not reproduced with positions applied outside of it (relative difference "
            f"{far:.2g}), so its attention does more than is known here: {EXACT_MODE}"
        )
    return seen.found


def _note(  # noqa: PLR0917  # called as attention is
    seen: _Seen, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    check_arguments(kwargs)
    seen.given[module] = (query, key)
    return plain_attention(module, query, key, value, mask, **kwargs)


def _matcher(seen: _Seen, current: Pass, name: str) -> Any:
    """An attention that finds each module's way to the queries and keys it was given before."""
    sources: dict[Any, RotarySource | None] = {}

    def candidates() -> Iterator[tuple[Finding, Tensor | None, Tensor | None]]:
        yield Finding(None, False), None, None
        for key in current.calls():
            source = sources[key] if key in sources else sources.setdefault(key, understand(key))
            if source is not None:
                cos, sin = (source.per_frequency(part)[:, None] for part in current.own(key))
                yield Finding(source, False), cos, sin
                yield Finding(source, True), cos, sin

    def match(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        wanted = seen.given[module]
        best, best_far, best_turned = None, torch.inf, (query, key)
        for finding, cos, sin in candidates():
            if cos is None or sin is None:
                turned = (query, key)
            elif 2 * cos.shape[-1] > query.shape[-1]:
                continue
            else:
                pairs = finding.interleaved
                turned = (
                    turn(query, cos, sin, interleaved=pairs),
                    turn(key, cos, sin, interleaved=pairs),
                )
            far = max(_distance(mine, theirs) for mine, theirs in zip(turned, wanted, strict=True))
            if far < best_far:
                best, best_far, best_turned = finding, far, turned
        if best is None or not best_far <= _near(query)[0]:
            raise UnsupportedModelError(
                f"{name}: how {type(module).__name__} applies positions is not known here (neither to the "
                "first elements of a head in halves or neighbours, nor not at all; nearest relative "
                f"difference {best_far:.2g}): {EXACT_MODE}"
            )
        seen.found[module] = best
        return plain_attention(module, *best_turned, value, mask, **kwargs)

    return match


def _run(decoder: nn.Module) -> Tensor:
    """The decoder's last hidden state for a few tokens."""
    get_embeddings: Any = decoder.get_input_embeddings
    embedding = get_embeddings().weight
    num = embedding.shape[0]
    device = embedding.device if embedding.device.type != "meta" else None
    ids = torch.tensor([[(1 + place * (num // 7 + 1)) % num for place in range(NUM_TOKENS)]], device=device)
    output = decoder(input_ids=ids, use_cache=False)
    hidden: Tensor = output[0]
    return hidden


@contextlib.contextmanager
def _quiet(decoder: nn.Module) -> Iterator[None]:
    """No gradients and no dropout; the modules' modes are as before afterwards."""
    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _distance(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return torch.inf
    actual, expected = actual.double().cpu(), expected.double().cpu()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def _near(tensor: Tensor) -> tuple[float, float]:
    return _NEAR.get(tensor.dtype, _NEAR_16_BITS)
