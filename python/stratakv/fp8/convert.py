"""Swaps a model's linear layers for FP8 ones in place, and back.

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


def convert(
    model: nn.Module,
    *,
    critical_fraction: float = 0.05,
    skip: Sequence[str] = ("lm_head",),
    min_features: int = 128,
    backend: Choice = "auto",
    keep_weights: bool = True,
) -> ConversionReport:
    """Makes the model's linear layers multiply in FP8, critical rows excepted. In place, for inference.

    Args:
        model: any module that contains linear layers; tied weights stay tied.
        critical_fraction: share of rows multiplied in 16 bits, 0 to 1 (`routing.py` has the rule).
        skip: patterns (`fnmatch`) of names to leave alone: of the whole dotted name, or its last part.
        min_features: layers with fewer inputs or outputs stay: a router of experts loses more than it
            gains. At least 1.
        backend: "auto" converts where the hardware multiplies FP8 and elsewhere keeps the model as it
            is, with a warning; "scaled_mm" raises instead; "emulate" computes the same numbers in
            float32 on any device, slowly, for tests and studies of quality; "keep" changes nothing.
        keep_weights: False frees the 16-bit weights of converted layers; needs `critical_fraction=0`,
            and rules `revert` out. With them, a converted layer takes 1.5 times its 16-bit bytes;
            without, half.

    Raises:
        ValueError: an argument out of range, a converted model, one linear layer alone, or
            backend "scaled_mm" where the hardware can't.
    """
    routing = TokenRouting(critical_fraction)
    _check(model, routing, min_features, backend, keep_weights)
    for pattern in skip:
        if pattern != "lm_head" and not any(_matches(name, pattern) for name, _, _ in _places(model)):
            warnings.warn(f"skip={pattern!r} names no module of this model", stacklevel=2)
    before = _num_bytes(model)
    reasons, chosen = _choose(model, backend)
    if backend == "auto" and reasons and not any(chosen.values()):
        why = "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
        warnings.warn(f"no FP8 products here, the model stays as it is. {why}", stacklevel=2)
    kept: dict[str, str] = {}
    made: dict[nn.Module, Fp8Linear] = {}
    converted = []
    for name, parent, linear in list(_places(model)):
        reason = _reason_to_keep(name, linear, skip, min_features)
        device = str(linear.weight.device)
        if reason is None and not chosen[device]:
            reason = reasons[device]
        if reason is not None:
            kept[name] = reason
            continue
        if linear not in made:
            made[linear] = _converted(linear, made, routing, chosen[device], keep_weights)
        setattr(parent, name.rpartition(".")[2], made[linear])
        converted.append(name)
    used = {layer.backend for layer in made.values()}
    return ConversionReport(
        backend=next(iter(used)) if used else "keep",
        reasons=reasons,
        converted=tuple(converted),
        kept=kept,
        bytes_before=before,
        bytes_after=_num_bytes(model),
        critical_fraction=routing.critical_fraction,
        routing=routing if made else None,
    )


def revert(model: nn.Module) -> int:
    """Puts the plain linear layers back, with the same parameter objects; how many places it changed.

    Raises:
        ValueError: the weights were not kept; the model is then unchanged.
    """
    places = [
        (parent, name, module)
        for _, parent in model.named_modules()
        for name, module in parent._modules.items()
        if isinstance(module, Fp8Linear)
    ]
    plain = {module: module.to_linear() for _, _, module in places}
    for parent, name, module in places:
        setattr(parent, name, plain[module])
    return len(places)


def token_routing(model: nn.Module) -> TokenRouting:
    """The routing that the model's converted layers share.

    Raises:
        ValueError: the model has no converted layer.
    """
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            return module.routing
    raise ValueError("the model has no FP8 layers: stratakv.fp8.convert(model) makes them")


def _check(
    model: nn.Module, routing: TokenRouting, min_features: int, backend: str, keep_weights: bool
) -> None:
    if backend not in get_args(Choice):
        raise ValueError(f"backend must be one of {', '.join(get_args(Choice))}, not {backend!r}")
    if min_features < 1:
        raise ValueError(f"min_features must be at least 1, not {min_features}")
    if not keep_weights and routing.critical_fraction:
        raise ValueError(
            "critical rows need the 16-bit weights: keep_weights=False needs critical_fraction=0"
        )
    if isinstance(model, (nn.Linear, Fp8Linear)):
        raise ValueError(  # noqa: TRY004  # a module is the right type
            "convert replaces the layers of a model: it cannot replace a linear layer itself"
        )
    if any(isinstance(module, Fp8Linear) for module in model.modules()):
        raise ValueError("the model is converted: stratakv.fp8.revert(model) first")


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Linear]]:
    """(dotted name, parent, layer) of every linear layer, each place of a shared one."""
    for prefix, parent in model.named_modules(remove_duplicate=False):
        for name, module in parent._modules.items():
            if isinstance(module, nn.Linear):
                yield f"{prefix}.{name}" if prefix else name, parent, module


def _choose(model: nn.Module, backend: Choice) -> tuple[dict[str, str], dict[str, Backend | None]]:
    """Why and what, by device of the linear layers."""
    devices = sorted({str(linear.weight.device) for _, _, linear in _places(model)})
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


def _converted(
    linear: nn.Linear,
    made: dict[nn.Module, Fp8Linear],
    routing: TokenRouting,
    backend: Backend | None,
    keep_weights: bool,
) -> Fp8Linear:
    """The FP8 layer; layers of one tied weight share its codes."""
    assert backend is not None
    layer = Fp8Linear(linear, routing, backend=backend, keep_weight=keep_weights)
    for plain, twin in made.items():
        if plain.weight is linear.weight:
            layer.weight_fp8, layer.weight_scale = twin.weight_fp8, twin.weight_scale
    return layer


def _num_bytes(model: nn.Module) -> int:
    """Memory of parameters and buffers; what is shared counts once."""
    storages: dict[Any, int] = {}
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        key: Any = id(tensor) if tensor.is_meta else (tensor.device, tensor.untyped_storage().data_ptr())
        storages[key] = (
            tensor.numel() * tensor.element_size() if tensor.is_meta else tensor.untyped_storage().nbytes()
        )
    return sum(storages.values())
