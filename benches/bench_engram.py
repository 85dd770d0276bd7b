"""Long-term memory: what is found of long conversations, and how long remembering and recalling take."""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benches.harness import NotMeasurableHereError, Result, figure

DIMENSION = 384
CONVERSATIONS = "LOCOMO"
"""The variable that names LoCoMo's file, locomo10.json (CC BY-NC 4.0, not part of this project)."""
SPREAD = 200
"""Recalls that a latency is the median of."""
BATCH = 1000


# What is found.


@functools.cache
def locomo() -> list[dict[str, Any]]:
    """What `stratakv eval memory` finds of every question."""
    from stratakv.cli.eval_memory import examine
    from stratakv.engram import Engram
    from stratakv.eval.conversations import read_conversations

    path = os.environ.get(CONVERSATIONS, "")
    if not path or not Path(path).is_file():
        raise NotMeasurableHereError(f"this figure reads LoCoMo: {CONVERSATIONS}=path/to/locomo10.json")
    with tempfile.TemporaryDirectory() as scratch, Engram.open(scratch, durable=False) as memory:
        conversations = read_conversations(Path(path), "locomo")
        return [result for one in conversations for result in examine(memory, one, (5, 10))]


def found(k: int) -> Result:
    """The mean over all questions, with that of each conversation."""
    groups: dict[str, list[float]] = {}
    for one in locomo():
        groups.setdefault(one["conversation"], []).append(one[f"turn@{k}"])
    everything = [value for some in groups.values() for value in some]
    details = {
        "questions": len(everything),
        "conversations": [round(statistics.fmean(some), 3) for some in groups.values()],
    }
    return Result([statistics.fmean(everything)], details)


LOCOMO = "BM25 of single turns 0.538 and 0.612 among the first 5 and 10, cosines of MiniLM 0.337 and 0.428"


@figure(
    "locomo_turn_r5",
    "LoCoMo: share of the turns with the answer among the first 5 recalled, offline embedder",
    unit="of all",
    target=0.67,
    peer=LOCOMO,
    limit="1",
)
def locomo_turn_r5() -> Result:
    return found(5)


@figure(
    "locomo_turn_r10",
    "LoCoMo: share of the turns with the answer among the first 10 recalled, offline embedder",
    unit="of all",
    target=0.77,
    peer=LOCOMO,
    limit="1",
)
def locomo_turn_r10() -> Result:
    return found(10)


# How long it takes.


class Vectors:
    """An embedder that costs little: a text's vector is drawn by its number, around one of 500 topics."""

    identity = "drawn"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._topics = np.random.default_rng(0).standard_normal((500, DIMENSION), dtype=np.float32)

    def embed(self, texts: list[str]) -> Any:
        numbers = [int(text.split()[0]) for text in texts]
        noise = np.stack(
            [np.random.default_rng(n).standard_normal(DIMENSION, dtype=np.float32) for n in numbers]
        )
        made = self._topics[[n % 500 for n in numbers]] + noise
        return made / np.linalg.norm(made, axis=1, keepdims=True)


WORDS = [
    f"{a}{b}{c}" for a in ("ba", "do", "ke", "li", "mu") for b in "nrst" for c in ("an", "ir", "op", "ug")
]


def text_of(number: int) -> str:
    """A dozen words, drawn by the number."""
    chance = np.random.default_rng(number)
    return f"{number} " + " ".join(WORDS[n] for n in chance.zipf(1.3, 12) % len(WORDS))


def fill(memory: Any, count: int, start: int = 0) -> float:
    """Remembers so many facts of one user in batches; seconds, without making them."""
    seconds = 0.0
    for first in range(start, start + count, BATCH):
        texts = [text_of(n) for n in range(first, min(first + BATCH, start + count))]
        begin = time.perf_counter()
        memory.remember_many(texts, user="ana")
        seconds += time.perf_counter() - begin
    return seconds


@figure(
    "remember_batch_per_s",
    "facts remembered durably, batches of 1,000",
    unit="facts/s",
    target=2000,
    peer="none",
    limit="one sync of the disk for each batch",
)
def remember_batch_per_s() -> Result:
    from stratakv.engram import Engram

    samples = []
    with tempfile.TemporaryDirectory() as scratch, Engram.open(scratch, embedder=Vectors()) as memory:
        for round_number in range(5):
            samples.append(5000 / fill(memory, 5000, start=5000 * round_number))
    return Result(samples, {"elements": DIMENSION})


def recall_ms(count: int) -> Result:
    """Milliseconds of a recall of 10 out of one scope, the query embedded already."""
    from stratakv.engram import Engram

    with tempfile.TemporaryDirectory() as scratch:
        embedder = Vectors()
        with Engram.open(scratch, embedder=embedder, durable=False) as memory:
            fill(memory, count)
            memory.optimize(user="ana")
            samples = []
            for number in range(SPREAD + 10):
                query = text_of(10_000_000 + 7919 * number)
                begin = time.perf_counter()
                found = memory.recall(query, user="ana", k=10)
                samples.append(1000 * (time.perf_counter() - begin))
                assert len(found) == 10
    samples = sorted(samples[10:])
    return Result(
        [statistics.median(samples)],
        {"p99_ms": round(samples[int(0.99 * len(samples))], 2), "elements": DIMENSION, "recalls": SPREAD},
    )


RECALL_LIMIT = "one read of the vectors that are looked at"


@figure(
    "recall_p50_ms_10k",
    "recall of 10 out of 10,000 memories of one user, the median",
    unit="ms",
    target=2,
    at_most=True,
    peer="none",
    limit=RECALL_LIMIT,
)
def recall_p50_ms_10k() -> Result:
    return recall_ms(10_000)


@figure(
    "recall_p50_ms_100k",
    "recall of 10 out of 100,000 memories of one user, the median",
    unit="ms",
    target=5,
    at_most=True,
    peer="none",
    limit=RECALL_LIMIT,
)
def recall_p50_ms_100k() -> Result:
    return recall_ms(100_000)
