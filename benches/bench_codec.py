"""The compiled kernels beside the memory's own rate: FP8 codes to bfloat16, and attention over pages."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path

import torch

from benches.harness import Result, figure

ROOT = Path(__file__).parent.parent
ROUNDS = 5
# As codec_figures.rs: 512 rows of 128 are in cache, 512K rows are not.
CACHED, FROM_MEMORY = 512 * 128, (512 << 10) * 128


def codec_figures() -> dict[str, float]:
    """One sample of each rate of the compiled benchmark `codec-figures`."""
    command = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "stratakv-bench"]
    done = subprocess.run(
        [*command, "--bin", "codec-figures"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def torch_cast(elements: int, rounds: int) -> float:
    """10^9 elements/s of torch's cast from float8_e4m3fn to bfloat16, the fastest of some rounds."""
    codes = torch.randint(0, 0x7F, (elements,), dtype=torch.uint8).view(torch.float8_e4m3fn)
    out = torch.empty(elements, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        out.copy_(codes)
        best = min(best, time.perf_counter() - start)
    return elements / best / 1e9


@figure(
    "fp8_decode_geps",
    "decoding FP8 rows to bfloat16 on one core, in cache",
    unit="G elements/s",
    target=5,
    peer="torch's cast on one thread",
    limit="in cache, the core; from memory, its bandwidth: 3 bytes per element read and written (details)",
)
def fp8_decode_geps() -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peers = {"cached": torch_cast(CACHED, 200), "memory": torch_cast(FROM_MEMORY, 3)}
    finally:
        torch.set_num_threads(threads)
    rounds = [codec_figures() for _ in range(ROUNDS)]
    median = {key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]}
    over_copy = [one["decode_gb_per_s"] / one["copy_gb_per_s"] for one in rounds]
    details = {
        "from_memory_geps": median["memory_geps"],
        "from_memory_gb_per_s": median["decode_gb_per_s"],
        "copy_gb_per_s": median["copy_gb_per_s"],
        "read_gb_per_s": median["read_gb_per_s"],
        "from_memory_over_copy": round(statistics.median(over_copy), 3),
        "torch_cached_geps": round(peers["cached"], 3),
        "torch_from_memory_geps": round(peers["memory"], 3),
    }
    return Result([one["cached_geps"] for one in rounds], details)


@figure(
    "attend_kernel_over_bandwidth",
    "dense decode attention over 128K tokens of bfloat16, three query rows per KV head, two threads",
    unit="of one read's bytes/s",
    target=0.7,
    peer="a pass that adds the same bytes up, on the same threads",
    limit="1; and the core: 6 multiply-adds per element beside its widening",
)
def attend_kernel_over_bandwidth() -> Result:
    command = ["cargo", "bench", "--locked", "--quiet", "-p", "stratakv-bench", "--bench", "attend"]
    done = subprocess.run([*command, "--", "--figure"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    details = {
        "gb_per_s": found["gb_per_s"],
        "read_gb_per_s": found["read_gb_per_s"],
        "one_query_row": round(statistics.median(found["group_1"]), 3),
    }
    return Result(found["samples"], details)
