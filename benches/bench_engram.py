"""Long-term memory: writing, opening, recall at three sizes, and what the graph of vectors finds.

The memories are made up: 14 words of a vocabulary as skewed as a language's, and a vector of 384 elements
near that of one of 500 topics. `STRATAKV_ENGRAM_MEMORIES` caps how many are made; figures that need more are
not measured then.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches.harness import NotMeasurableHereError, Result, figure

ROOT = Path(__file__).parent.parent
ROUNDS = 5
MILLION = 1_000_000
MANY_USERS = 1000
# The log and what is derived from it, per memory.
BYTES_PER_MEMORY = 5_000


def engram_figures(what: str, directory: Path, *numbers: int) -> dict[str, Any]:
    """What the compiled benchmark `engram-figures` prints."""
    command = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "stratakv-bench"]
    command += ["--bin", "engram-figures", "--", what, str(directory), *map(str, numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def capped(count: int) -> int:
    """As many memories as asked for, or the figure cannot be measured here."""
    cap = int(os.environ.get("STRATAKV_ENGRAM_MEMORIES", count))
    if cap < count:
        raise NotMeasurableHereError(f"STRATAKV_ENGRAM_MEMORIES={cap} is fewer than its {count} memories")
    free = os.statvfs(ROOT / "target")
    if free.f_bavail * free.f_frsize < count * BYTES_PER_MEMORY:
        raise NotMeasurableHereError(f"{count} memories need {count * BYTES_PER_MEMORY >> 20} MiB of disk")
    return count


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as directory:
        yield Path(directory)


@functools.cache
def filled(count: int, users: int) -> tuple[tempfile.TemporaryDirectory[str], float]:
    """A directory of so many memories, made once, and how fast it was made."""
    directory = tempfile.TemporaryDirectory(dir=ROOT / "target")
    rate = engram_figures("fill", Path(directory.name), capped(count), users)["sample"]
    return directory, rate


@functools.cache
def indexed(count: int) -> tuple[Path, dict[str, Any]]:
    """A directory of one user's memories with their graph, and what that finds."""
    directory, _ = filled(count, 1)
    return Path(directory.name), engram_figures("index", Path(directory.name))


@figure(
    "remember_batch_per_s",
    "durable memories per second, in batches of 1,000, vectors included",
    unit="memories/s",
    target=2000,
    peer="none",
    limit="one sync and 1.7 MB per batch: the disk's sequential rate",
)
def remember_batch_per_s() -> Result:
    samples = []
    for _ in range(ROUNDS):
        with scratch() as directory:
            samples.append(engram_figures("fill", directory, capped(20_000), 1)["sample"])
    return Result(samples)


@figure(
    "open_1m_memories_s",
    "opening a directory of a million memories of one user, and finding five by words",
    unit="s",
    target=1,
    at_most=True,
    peer="none",
    limit="150 MB of checkpoint, read and checked: about 0.15 s",
)
def open_1m_memories_s() -> Result:
    directory, rate = filled(MILLION, 1)
    samples = [engram_figures("open", Path(directory.name))["sample"] for _ in range(ROUNDS)]
    return Result(samples, {"memories_per_s_while_filling": round(rate)})


def recall_p50(count: int) -> Result:
    """Medians of a scope that has all memories, in rounds; of a thousand users in the details."""
    one, _ = indexed(count)
    rounds = [engram_figures("recall", one, 1)["samples"] for _ in range(ROUNDS)]
    samples = [sorted(times)[len(times) // 2] for times in rounds]
    details: dict[str, Any] = {"p95_ms": round(sorted(rounds[0])[len(rounds[0]) * 95 // 100], 3)}
    if count >= 10 * MANY_USERS:
        many, _ = filled(count, MANY_USERS)
        times = sorted(engram_figures("recall", Path(many.name), MANY_USERS)["samples"])
        details["p50_ms_of_a_thousand_users"] = round(times[len(times) // 2], 3)
    return Result(samples, details)


@figure(
    "recall_p50_ms_10k",
    "recall of 10 of 10,000 memories by words and vector, without the embedder, median",
    unit="ms",
    target=2,
    at_most=True,
    peer="none",
    limit="7.7 MB of vectors through the processor: about 0.7 ms",
)
def recall_p50_ms_10k() -> Result:
    return recall_p50(10_000)


@figure(
    "recall_p50_ms_100k",
    "recall of 10 of 100,000 memories by words and vector, without the embedder, median",
    unit="ms",
    target=5,
    at_most=True,
    peer="none",
    limit="the postings of six words, and a few hundred vectors",
)
def recall_p50_ms_100k() -> Result:
    return recall_p50(100_000)


@figure(
    "recall_p50_ms_1m",
    "recall of 10 of a million memories by words and vector, without the embedder, median",
    unit="ms",
    target=10,
    at_most=True,
    peer="none",
    limit="the postings of six words, and a few hundred vectors",
)
def recall_p50_ms_1m() -> Result:
    return recall_p50(MILLION)


@figure(
    "index_recall10_1m",
    "of the exact ten nearest of a million memories, found through the graph",
    unit="share",
    target=0.98,
    peer="the exact scan",
    limit="1",
)
def index_recall10_1m() -> Result:
    _, found = indexed(MILLION)
    return Result([found["sample"]], {"build_seconds": found["build_seconds"]})
