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

from stratakv.fp8.capability import detect
from stratakv.fp8.linear import DTYPES, Backend, Fp8Linear
from stratakv.fp8.routing import TokenRouting
from stratakv.fp8.training import Fp8TrainingLinear

Choice = Literal["auto", "scaled_mm", "emulate", "keep"]


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did. `print(report)` for people, `as_dict()` for programs.

    Attributes:
        backend: "scaled_mm", "emulate", or "keep" where nothing was converted.
        reasons: why, by device.
        converted: names of the converted modules, all names of a shared one.
        kept: why each other linear layer was left alone, by name.
        bytes_before, bytes_after: parameters and buffers of the whole model, shared memory once.
        critical_fraction: share of rows in 16 bits.
        routing: the model's `TokenRouting`, or None where nothing was converted.
    """

    backend: str
    reasons: dict[str, str]
    converted: tuple[str, ...]
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int
    critical_fraction: float
    routing: TokenRouting | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the routing, of JSON's types."""
        return {
            "backend": self.backend,
            "reasons": dict(self.reasons),
            "converted": list(self.converted),
            "kept": dict(self.kept),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "critical_fraction": self.critical_fraction,
        }

    def __str__(self) -> str:
        lines = [f"fp8: backend {self.backend}"]
        lines += [f"  {device}: {reason}" for device, reason in self.reasons.items()]
        lines += [
            f"  converted {len(self.converted)} linear layers, kept {len(self.kept)}; "
            f"{self.bytes_before / 2**20:.1f} MiB before, {self.bytes_after / 2**20:.1f} MiB after; "
            f"{self.critical_fraction:.0%} of the rows in 16 bits"
        ]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  kept {', '.join(names[:3])}{more}: {reason}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Place:
    """A linear layer that is to be converted: its dotted name, who has it, and what multiplies."""

    name: str
    parent: nn.Module
    linear: nn.Linear
    backend: Backend


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
        return ConversionReport(
            backend=self.places[0].backend if self.places else "keep",
            reasons=self.reasons,
            converted=tuple(place.name for place in self.places),
            kept=self.kept,
            bytes_before=before,
            bytes_after=after,
            critical_fraction=critical_fraction,
            routing=routing,
        )


def make_plan(model: nn.Module, *, skip: Sequence[str], min_features: int, backend: Choice) -> Plan:
    """Looks at every linear layer; warns of what the caller may not expect.

    Raises:
        ValueError: an argument out of range, a converted model, one linear layer alone, or
            backend "scaled_mm" where the hardware can't.
    """
    _check(model, min_features, backend)
    for pattern in skip:
        if pattern != "lm_head" and not any(_matches(name, pattern) for name, _, _ in places(model)):
            warnings.warn(f"skip={pattern!r} names no module of this model", stacklevel=3)
    reasons, chosen = _choose(model, backend)
    if backend == "auto" and reasons and not any(chosen.values()):
        why = "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
        warnings.warn(f"no FP8 products here, the model stays as it is. {why}", stacklevel=3)
    plan = Plan([], {}, reasons)
    for name, parent, linear in places(model):
        device = str(linear.weight.device)
        found = chosen[device]
        reason = _reason_to_keep(name, linear, skip, min_features)
        if reason is None and found is not None:
            plan.places.append(Place(name, parent, linear, found))
        else:
            plan.kept[name] = reason or reasons[device]
    return plan


def _check(model: nn.Module, min_features: int, backend: str) -> None:
    if backend not in get_args(Choice):
        raise ValueError(f"backend must be one of {', '.join(get_args(Choice))}, not {backend!r}")
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


def _choose(model: nn.Module, backend: Choice) -> tuple[dict[str, str], dict[str, Backend | None]]:
    """Why and what, by device of the linear layers."""
    devices = sorted({str(linear.weight.device) for _, _, linear in places(model)})
    if backend in ("emulate", "keep"):
        loaded: Backend | None = "emulate" if backend == "emulate" else None
        return (
            dict.fromkeys(devices, f"backend={backend!r} was asked for"),
            {device: loaded if device != "meta" else None for device in devices},
        )
    found = {device: detect(device) for device in devices}
    missing = [f"{device}: {one.reason}" for device, one in found.items() if not one.scaled_mm]
    if backend == "scaled_mm" and missing:
        raise ValueError("backend='scaled_mm' is not possible here. " + "; ".join(missing))
    return (
        {device: one.reason for device, one in found.items()},
        {device: "scaled_mm" if one.scaled_mm else None for device, one in found.items()},
    )


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
