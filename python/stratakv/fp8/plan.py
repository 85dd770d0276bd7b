"""Which of a model's linear layers are converted to FP8, on what, and why the others are not.

What is converted: modules whose type is `nn.Linear` itself, of one of `linear.DTYPES`, with at least
`min_features` input and output features, without hooks of their own, on a device that multiplies FP8
in hardware. Everything else stays as it is, and the report says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import Tensor, nn

from stratakv.fp8.capability import Capability, detect
from stratakv.fp8.linear import DTYPES, Fp8Linear
from stratakv.fp8.matmul import Backend
from stratakv.fp8.quantize import ALIGNMENT, Scales
from stratakv.fp8.routing import TokenRouting
from stratakv.fp8.training import Fp8TrainingLinear

Choice = Literal["auto", "scaled_mm", "emulate", "keep"]


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did. `print(report)` for people, `as_dict()` for programs.

    Attributes:
        backend: "scaled_mm", "emulate", or "keep" where nothing was converted.
        scales: "rows" or "tiles", whichever it came to; None where nothing was converted.
        reasons: why, by device.
        converted: names of the converted modules, all names of a shared one.
        padded: those of them whose features are padded with zeros, which costs time and memory.
        kept: why each other linear layer was left alone, by name.
        bytes_before, bytes_after: parameters and buffers of the whole model, shared memory once.
        critical_fraction: share of rows in 16 bits.
        routing: the model's `TokenRouting`, or None where nothing was converted.
    """

    backend: str
    scales: Scales | None
    reasons: dict[str, str]
    converted: tuple[str, ...]
    padded: tuple[str, ...]
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int
    critical_fraction: float
    routing: TokenRouting | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the routing, of JSON's types."""
        return {
            "backend": self.backend,
            "scales": self.scales,
            "reasons": dict(self.reasons),
            "converted": list(self.converted),
            "padded": list(self.padded),
            "kept": dict(self.kept),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "critical_fraction": self.critical_fraction,
        }

    def __str__(self) -> str:
        lines = [f"fp8: backend {self.backend}" + (f", scales of {self.scales}" if self.scales else "")]
        lines += [f"  {device}: {reason}" for device, reason in self.reasons.items()]
        lines += [
            f"  converted {len(self.converted)} linear layers, kept {len(self.kept)}; "
            f"{self.bytes_before / 2**20:.1f} MiB before, {self.bytes_after / 2**20:.1f} MiB after; "
            f"{self.critical_fraction:.0%} of the rows in 16 bits"
        ]
        if self.scales and self.padded:
            lines.append(f"  padded {_some(self.padded)} to multiples of {ALIGNMENT[self.scales]} features")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            by_reason.setdefault(reason, []).append(name)
        lines += [f"  kept {_some(names)}: {reason}" for reason, names in by_reason.items()]
        return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class Means:
    """What multiplies on a device, and with which scales."""

    backend: Backend
    scales: Scales


@dataclass(frozen=True)
class Place:
    """A linear layer that is to be converted: its dotted name, who has it, and what multiplies."""

    name: str
    parent: nn.Module
    linear: nn.Linear
    means: Means

    @property
    def is_padded(self) -> bool:
        """Whether its features are no multiples of what is multiplied."""
        multiple = ALIGNMENT[self.means.scales]
        return bool(self.linear.in_features % multiple or self.linear.out_features % multiple)


@dataclass(frozen=True)
class Plan:
    """What is converted, each place of a shared layer; why others are not; and why on each device."""

    places: list[Place]
    kept: dict[str, str]
    reasons: dict[str, str]

    def report(
        self, before: int, after: int, *, critical_fraction: float = 0.0, routing: TokenRouting | None = None
    ) -> ConversionReport:
        """What was done, given the bytes before and after."""
        means = self.places[0].means if self.places else None
        return ConversionReport(
            backend=means.backend if means else "keep",
            scales=means.scales if means else None,
            reasons=self.reasons,
            converted=tuple(place.name for place in self.places),
            padded=tuple(place.name for place in self.places if place.is_padded),
            kept=self.kept,
            bytes_before=before,
            bytes_after=after,
            critical_fraction=critical_fraction,
            routing=routing,
        )


def make_plan(
    model: nn.Module, *, skip: Sequence[str], min_features: int, backend: Choice, scales: Scales
) -> Plan:
    """Looks at every linear layer; warns of what the caller may not expect.

    Raises:
        ValueError: an argument out of range, a converted model, one linear layer alone, or
            backend "scaled_mm" where the hardware can't.
    """
    _check(model, min_features, backend, scales)
    for pattern in skip:
        if pattern != "lm_head" and not any(_matches(name, pattern) for name, _, _ in places(model)):
            warnings.warn(f"skip={pattern!r} names no module of this model", stacklevel=3)
    chosen = _choose(model, backend, scales)
    reasons = {device: reason for device, (reason, _) in chosen.items()}
    _warn_of_less(chosen, backend, scales)
    plan = Plan([], {}, reasons)
    for name, parent, linear in places(model):
        device = str(linear.weight.device)
        _, means = chosen[device]
        reason = _reason_to_keep(name, linear, skip, min_features)
        if reason is None and means is not None:
            plan.places.append(Place(name, parent, linear, means))
        else:
            plan.kept[name] = reason or reasons[device]
    return plan


def _warn_of_less(chosen: dict[str, tuple[str, Means | None]], backend: Choice, scales: Scales) -> None:
    """Says so where "auto" came to less than was asked for."""
    why = "; ".join(f"{device}: {reason}" for device, (reason, _) in chosen.items())
    found = [means for _, means in chosen.values()]
    if backend == "auto" and found and not any(found):
        warnings.warn(f"no FP8 products here, the model stays as it is. {why}", stacklevel=4)
    elif any(means is not None and means.scales != scales for means in found):
        warnings.warn(f"scales of rows, not of {scales}. {why}", stacklevel=4)


def _check(model: nn.Module, min_features: int, backend: str, scales: str) -> None:
    for name, given, accepted in (("backend", backend, Choice), ("scales", scales, Scales)):
        if given not in get_args(accepted):
            raise ValueError(f"{name} must be one of {', '.join(get_args(accepted))}, not {given!r}")
    if min_features < 1:
        raise ValueError(f"min_features must be at least 1, not {min_features}")
    if isinstance(model, (nn.Linear, Fp8Linear)):
        raise ValueError(  # noqa: TRY004  # a module is the right type
            "convert replaces the layers of a model: it cannot replace a linear layer itself"
        )
    if any(isinstance(module, (Fp8Linear, Fp8TrainingLinear)) for module in model.modules()):
        raise ValueError("the model is converted: stratakv.fp8.revert(model) first")


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Linear]]:
    """(dotted name, parent, layer) of every linear layer, each place of a shared one."""
    for prefix, parent in model.named_modules(remove_duplicate=False):
        for name, module in parent._modules.items():
            if isinstance(module, nn.Linear):
                yield f"{prefix}.{name}" if prefix else name, parent, module


def _choose(model: nn.Module, backend: Choice, scales: Scales) -> dict[str, tuple[str, Means | None]]:
    """Why and what, by device of the linear layers."""
    devices = sorted({str(linear.weight.device) for _, _, linear in places(model)})
    if backend in ("emulate", "keep"):
        loaded = Means("emulate", scales) if backend == "emulate" else None
        reason = f"backend={backend!r} was asked for"
        return {device: (reason, loaded if device != "meta" else None) for device in devices}
    found = {device: detect(device, scales) for device in devices}
    missing = [f"{device}: {one.reason}" for device, one in found.items() if not one.scaled_mm]
    if backend == "scaled_mm" and missing:
        raise ValueError("backend='scaled_mm' is not possible here. " + "; ".join(missing))
    return {device: _means(one, scales) for device, one in found.items()}


def _means(found: Capability, scales: Scales) -> tuple[str, Means | None]:
    """Why and what, given what a device can do with these scales: rows are the next best to tiles."""
    if found.scaled_mm:
        return found.reason, Means("scaled_mm", scales)
    by_rows = detect(found.device) if scales == "tiles" else found
    if by_rows.scaled_mm:
        return f"{found.reason}: scales of rows instead. {by_rows.reason}", Means("scaled_mm", "rows")
    return by_rows.reason, None


def _reason_to_keep(name: str, linear: nn.Linear, skip: Sequence[str], min_features: int) -> str | None:
    """Why a layer stays whatever the device can do."""
    reason = None
    if any(_matches(name, pattern) for pattern in skip):
        reason = "skipped by name"
    elif type(linear) is not nn.Linear:
        reason = f"a {type(linear).__name__}, whose own behaviour would be lost"
    elif min(linear.in_features, linear.out_features) < min_features:
        reason = f"fewer than {min_features} features"
    elif linear.weight.dtype not in DTYPES:
        reason = f"of {linear.weight.dtype}"
    elif linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__:
        reason = "has hooks, which would be lost"
    return reason


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def num_bytes(model: nn.Module) -> int:
    """Memory of parameters and buffers; what is shared counts once."""
    storages: dict[Any, int] = {}
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        key: Any = id(tensor) if tensor.is_meta else (tensor.device, tensor.untyped_storage().data_ptr())
        storages[key] = (
            tensor.numel() * tensor.element_size() if tensor.is_meta else tensor.untyped_storage().nbytes()
        )
    return sum(storages.values())
