"""A conditional memory whose tables are larger than RAM, beside one that fits."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benches.harness import NotMeasurableHereError, Result, figure

SHARE = 0.25
NUM_ROUNDS = 2
# What the process has allocated once stays its own, so that a limit beyond it is a limit of the tables.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 60)}


def steps(work: str, share: float, directory: str) -> dict[str, Any]:
    """What `spilled_tables.py` reports, from a process of its own."""
    command = [sys.executable, "-m", "benches.spilled_tables", work, str(share), directory]
    environment = os.environ | KEEP_MEMORY
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if "PermissionError" in done.stderr or "Read-only file system" in done.stderr:
        raise NotMeasurableHereError("this figure sets a memory limit, which only root may")
    done.check_returncode()
    return dict(json.loads(done.stdout))


def over_ram(work: str) -> Result:
    """Seconds of a step with a quarter of the tables in RAM over those with all, each pair side by side."""
    samples = []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(NUM_ROUNDS):
            spilled, in_ram = steps(work, SHARE, directory), steps(work, 0, directory)
            ours, theirs = statistics.median(spilled["seconds"]), statistics.median(in_ram["seconds"])
            samples.append(ours / theirs)
    details = {"ms": round(1000 * ours, 1), "ms_in_ram": round(1000 * theirs, 1)}
    return Result(samples, details | {"table_mib": spilled["table_mib"]})


@figure(
    "ngram_table_spilled_over_ram",
    "training step, n-gram tables and their Adam moments four times the RAM they may take, over all in RAM",
    unit="times",
    target=1.1,
    at_most=True,
    peer="the same with all tables in RAM, updated in the same way",
    limit="1: rows of a batch are read while the one before is computed",
)
def ngram_table_spilled_over_ram() -> Result:
    return over_ram("train")


@figure(
    "ngram_table_spilled_over_ram_decode",
    "decoding a token, n-gram tables four times the RAM they may take, over all in RAM",
    unit="times",
    target=1.1,
    at_most=True,
    peer="the same with all tables in RAM",
    limit="1: rows of a token are read while the first block is computed",
)
def ngram_table_spilled_over_ram_decode() -> Result:
    return over_ram("decode")
