"""Compiles every kernel for an H100 on a machine that needs no GPU, and prints one line for each.

A program of its own: a process that imported Triton for its interpreter can't compile.
"""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stratakv.attention.device.kernels import attending, merging, scoring, sealing
from stratakv.attention.device.summaries import SummaryLayout
from tests.attention.device import made

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    "attend_kernel": "fp32 fp32 fp32 u8 u8 i32 i32 i32 i32 i32 fp32 fp32",
    "merge_kernel": "fp32 fp32 fp32 fp32",
    "score_kernel": "u8 i32 fp32 fp16 fp32 i32 fp32",
    "seal_kernel": "i16 u8 u8 u8",
}
IS_NUMBER = {"score_kernel": ["head_stride"]}


def variants():
    """Each kernel with the constants of shapes that models have, and its warps."""
    for dtype in (torch.bfloat16, torch.float16):
        # Of steps, and of a prefill.
        for dim, group in ((64, 3), (80, 1), (128, 4), (128, 8), (64, 192), (128, 256)):
            pools = made.pools(slots=1, page_tokens=64, key_dim=dim, value_dim=dim, dtype=dtype).pools
            yield attending.attend_kernel, attending.constants(pools, group), attending.warps(group)
        yield sealing.seal_kernel, sealing.constants(dtype, 128), 4
    for dim, group in ((64, 3), (80, 1), (128, 8), (128, 64)):
        yield scoring.score_kernel, scoring.constants(SummaryLayout.of(made.rotary(dim), dim), group), 4
    yield merging.merge_kernel, merging.constants(17, 128), 4


def compile_one(kernel, constants, warps):
    """The compiled kernel: pointers first, then 32-bit numbers, then what it is compiled for."""
    name = kernel.fn.__name__
    types = iter(POINTERS[name].split())
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif (kind := next(types, None)) is None or argument in IS_NUMBER.get(name, []):
            signature[argument] = "i32"
        else:
            signature[argument] = f"*{kind}"
    # PyTorch aligns what it allocates, which a launch would have found out.
    pointers = [place for place, kind in enumerate(signature.values()) if kind.startswith("*")]
    attributes = {(place,): [["tt.divisibility", 16]] for place in pointers}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=HOPPER, options={"num_warps": warps})


def main() -> int:
    for kernel, constants, warps in variants():
        compiled = compile_one(kernel, constants, warps)
        print(
            kernel.fn.__name__,
            constants,
            "cubin",
            len(compiled.asm["cubin"]),
            "shared",
            compiled.metadata.shared,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
