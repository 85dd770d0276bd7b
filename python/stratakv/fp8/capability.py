"""Whether a device multiplies FP8 in hardware, and if not why: decided once, before anything is converted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stratakv.fp8.matmul import Quantized, emulated_mm, quantize_rows, quantize_weight, scaled_mm

# Ada (8.9) is the first with FP8 tensor cores.
MIN_CUDA_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Capability:
    """What a device can do: `scaled_mm` says whether, `reason` why."""

    device: str
    scaled_mm: bool
    reason: str


def detect(device: torch.device | str) -> Capability:
    """Asks the device, by its properties first and then by one small product.

    The properties alone do not settle it: torch 2.6 has row-wise products on Hopper only, later
    releases add Ada and Blackwell one by one, and Windows builds lack them.
    """
    device = torch.device(device)
    refusal = _refusal(device) or _probe_failure(device)
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


def _probe_failure(device: torch.device) -> str | None:
    """Why one small row-wise product does not work on the device."""
    try:
        ramp = torch.linspace(-1, 1, 16 * 32, device=device, dtype=torch.bfloat16).reshape(16, 32)
        weight = quantize_weight(ramp)
        return _difference(quantize_rows(ramp.flip(0)), weight)
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return f"torch {torch.__version__} has no row-wise FP8 product for this device: {lines[0]}"


def _difference(rows: Quantized, weight: Quantized) -> str | None:
    """What is wrong with the hardware's product, if anything."""
    actual, expected = scaled_mm(rows, weight).float(), emulated_mm(rows, weight).float()
    if torch.allclose(actual, expected, rtol=2e-2, atol=2e-2):
        return None
    error = (actual - expected).abs().max().item()
    return f"the device's FP8 product of a known matrix is off by {error:.3g}"
