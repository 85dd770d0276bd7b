"""FP8 matrix products beside bfloat16's, on a GPU that has both."""

from __future__ import annotations

import statistics

from benches.harness import NotMeasurableHereError, Result, figure

# The MLP of an 8B Llama over one prefill chunk; the share is `convert`'s default.
HIDDEN, INTERMEDIATE, NUM_TOKENS, CRITICAL_FRACTION = 4096, 14336, 4096, 0.05
NUM_ROUNDS, CALLS_PER_ROUND = 15, 10


def mlp():
    """A gated MLP in bfloat16 on the GPU."""
    import torch
    from torch import nn

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = (nn.Linear(HIDDEN, INTERMEDIATE, bias=False) for _ in range(2))
            self.down = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

        def forward(self, x):
            return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))

    return Mlp().to("cuda", torch.bfloat16).eval()


def tokens_per_second(module, x):
    """One sample: CUDA events around calls that are queued back to back."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS_PER_ROUND):
        module(x)
    stop.record()
    stop.synchronize()
    return x.shape[0] * CALLS_PER_ROUND / (start.elapsed_time(stop) / 1000)


def require_fp8():
    """Raises where the hardware cannot: an emulated product says nothing about speed."""
    import torch

    from stratakv import fp8

    found = fp8.detect("cuda" if torch.cuda.is_available() else "cpu")
    if not found.scaled_mm:
        raise NotMeasurableHereError(f"needs CUDA capability 8.9 or more ({found.reason})")


@figure(
    "fp8_linear_ratio",
    "a gated MLP of an 8B model over 4096 tokens, 5 % of them in 16 bits",
    unit="times bfloat16's tokens/s",
    target=1.3,
    peer="the same module in bfloat16, eager, alternating calls",
    limit="FP8 tensor cores do twice bfloat16's operations; quantising and the critical rows come on top",
)
def fp8_linear_ratio() -> Result:
    require_fp8()
    import torch

    from stratakv import fp8

    torch.manual_seed(0)
    plain = mlp()
    x = torch.randn(NUM_TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = plain(x)
        converted = mlp()
        converted.load_state_dict(plain.state_dict())
        fp8.convert(converted, critical_fraction=CRITICAL_FRACTION, backend="scaled_mm")
        noise = (converted(x) - expected).float().norm() / expected.float().norm()
        assert noise < 0.1, f"the converted module is off by {noise:.3f}"
        for module in (plain, converted):
            tokens_per_second(module, x)
        pairs = [(tokens_per_second(plain, x), tokens_per_second(converted, x)) for _ in range(NUM_ROUNDS)]
    return Result(
        [ours / theirs for theirs, ours in pairs],
        {
            "device": torch.cuda.get_device_name(),
            "bfloat16_tokens_per_s": statistics.median(theirs for theirs, _ in pairs),
            "fp8_tokens_per_s": statistics.median(ours for _, ours in pairs),
            "relative_error": float(noise),
        },
    )
