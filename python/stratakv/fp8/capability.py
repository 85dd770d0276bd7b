"""Whether a device multiplies FP8 in hardware, and if not why: decided once, before anything is converted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from stratakv.fp8.matmul import emulated_mm, scaled_mm
from stratakv.fp8.quantize import Quantized, Scales, quantize_activations, quantize_weight

# Ada (8.9) is the first with FP8 tensor cores.
MIN_CUDA_CAPABILITY = (8, 9)
# The one that cuBLAS multiplies 1 x 128 tiles and 128 x 128 blocks on; later ones have other tiles.
TILES_CUDA_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Capability:
    """What a device can do: `scaled_mm` says whether, `reason` why."""

    device: str
    scaled_mm: bool
    reason: str


def detect(device: torch.device | str, scales: Scales = "rows") -> Capability:
    """Asks the device, by its properties first and then by one small product.

    The properties alone do not settle it: torch 2.6 has row-wise products on Hopper only, later
    releases add Ada and Blackwell one by one, and Windows builds lack them.

    Args:
        device: whose products.
        scales: of rows or of tiles.
    """
    device = torch.device(device)
    refusal = _refusal(device) or (scales == "tiles" and _refusal_of_tiles(device))
    refusal = refusal or _probe_failure(device, scales)
    if refusal:
        return Capability(str(device), False, refusal)
    major, minor = torch.cuda.get_device_capability(device)
    return Capability(str(device), True, f"CUDA capability {major}.{minor}, torch {torch.__version__}")


def _refusal(device: torch.device) -> str | None:
    """Why the device's properties exclude FP8 products."""
    if device.type == "meta":
        return "the weights are not loaded (meta device)"
    if device.type != "cuda":
        return f"FP8 products need CUDA; on {device.type} torch has none in hardware, and emulates slowly"
    if torch.version.hip is not None:
        return "ROCm is not supported: MI300 multiplies e4m3fnuz, another format, and none was tested"
    if not torch.cuda.is_available():
        return "this torch has no usable CUDA"
    have = torch.cuda.get_device_capability(device)
    if have < MIN_CUDA_CAPABILITY:
        return f"FP8 products need CUDA capability 8.9 or more; this device has {have[0]}.{have[1]}"
    return None


def _refusal_of_tiles(device: torch.device) -> str | None:
    """Why a device with FP8 products has none with scales of tiles."""
    have = torch.cuda.get_device_capability(device)
    if have != TILES_CUDA_CAPABILITY:
        return f"scales of tiles need CUDA capability 9.0 (Hopper); this device has {have[0]}.{have[1]}"
    if not hasattr(functional, "scaled_mm"):
        return f"scales of tiles need torch 2.10 or more, not {torch.__version__}"
    return None


def _probe_failure(device: torch.device, scales: Scales) -> str | None:
    """Why one small product does not work on the device."""
    try:
        # More than one tile, and scales that differ.
        ramp = torch.linspace(-1, 1, 16 * 272, device=device, dtype=torch.bfloat16).reshape(16, 272)
        return _difference(quantize_activations(ramp.flip(0), scales), quantize_weight(ramp, scales))
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return f"torch {torch.__version__} has no product by {scales} for this device: {lines[0]}"


def _difference(rows: Quantized, weight: Quantized) -> str | None:
    """What is wrong with the hardware's product, if anything."""
    actual, expected = scaled_mm(rows, weight).float(), emulated_mm(rows, weight).float()
    if torch.allclose(actual, expected, rtol=2e-2, atol=2e-2):
        return None
    error = (actual - expected).abs().max().item()
    return f"the device's FP8 product of a known matrix is off by {error:.3g}"
