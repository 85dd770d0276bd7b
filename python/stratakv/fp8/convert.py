"""Swaps a model's linear layers for FP8 ones in place, and back; `plan.py` has which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import nn

from stratakv.fp8.linear import Fp8Linear
from stratakv.fp8.plan import Choice, ConversionReport, Place, make_plan, num_bytes
from stratakv.fp8.quantize import Scales
from stratakv.fp8.routing import TokenRouting
from stratakv.fp8.training import Fp8TrainingLinear, WeightGradient


def convert(
    model: nn.Module,
    *,
    critical_fraction: float = 0.05,
    skip: Sequence[str] = ("lm_head",),
    min_features: int = 128,
    backend: Choice = "auto",
    scales: Scales = "rows",
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
        scales: "rows" has one for each token and output channel; "tiles" one for each 128 features of a
            token and each 128 x 128 block of a weight, which one generation of GPUs multiplies (Hopper):
            elsewhere "auto" takes rows, with a warning, and "scaled_mm" raises.
        keep_weights: False frees the 16-bit weights of converted layers; needs `critical_fraction=0`,
            and rules `revert` out. With them, a converted layer takes 1.5 times its 16-bit bytes;
            without, half.

    Raises:
        ValueError: an argument out of range, a converted model, one linear layer alone, or
            backend "scaled_mm" where the hardware can't.
    """
    routing = TokenRouting(critical_fraction)
    if not keep_weights and routing.critical_fraction:
        raise ValueError(
            "critical rows need the 16-bit weights: keep_weights=False needs critical_fraction=0"
        )
    size = num_bytes(model)
    plan = make_plan(model, skip=skip, min_features=min_features, backend=backend, scales=scales)
    made: dict[nn.Module, Fp8Linear] = {}
    for place in plan.places:
        if place.linear not in made:
            made[place.linear] = _converted(place, made, routing, keep_weights)
        setattr(place.parent, place.name.rpartition(".")[2], made[place.linear])
    return plan.report(
        size, num_bytes(model), critical_fraction=routing.critical_fraction, routing=routing if made else None
    )


def convert_for_training(
    model: nn.Module,
    *,
    skip: Sequence[str] = ("lm_head",),
    min_features: int = 128,
    backend: Choice = "auto",
    scales: Scales = "rows",
    weight_gradient: WeightGradient = "high",
) -> ConversionReport:
    """Makes the model's linear layers train with FP8 products. In place; parameters and checkpoints stay.

    Args:
        model: any module that contains linear layers, its weights in float32 or in 16 bits.
        skip: as `convert` has it.
        min_features: as `convert` has it.
        backend: as `convert` has it.
        scales: as `convert` has it.
        weight_gradient: "high" multiplies gradients of weights in the input's own precision, "fp8" them too.

    Raises:
        ValueError: an argument that is not accepted, a converted model, one linear layer alone, or
            backend "scaled_mm" where the hardware can't.
    """
    if weight_gradient not in get_args(WeightGradient):
        raise ValueError(
            f"weight_gradient must be one of {', '.join(get_args(WeightGradient))}, not {weight_gradient!r}"
        )
    size = num_bytes(model)
    plan = make_plan(model, skip=skip, min_features=min_features, backend=backend, scales=scales)
    for place in plan.places:
        Fp8TrainingLinear.take_over(place.linear, place.means.backend, place.means.scales, weight_gradient)
    return plan.report(size, size)


def revert(model: nn.Module) -> int:
    """Puts the plain linear layers back, with the same parameter objects; how many places it changed.

    Raises:
        ValueError: the weights were not kept; the model is then unchanged.
    """
    trained = [module for module in model.modules() if isinstance(module, Fp8TrainingLinear)]
    for linear in trained:
        linear.give_back()
    if trained:
        return len(trained)
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


def _converted(
    place: Place, made: dict[nn.Module, Fp8Linear], routing: TokenRouting, keep_weights: bool
) -> Fp8Linear:
    """The FP8 layer; layers of one tied weight share its codes."""
    layer = Fp8Linear(
        place.linear,
        routing,
        backend=place.means.backend,
        scales=place.means.scales,
        keep_weight=keep_weights,
    )
    for plain, twin in made.items():
        if plain.weight is place.linear.weight:
            layer.weight_fp8, layer.weight_scale = twin.weight_fp8, twin.weight_scale
    return layer
