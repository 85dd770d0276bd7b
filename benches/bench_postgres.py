"""Memories in PostgreSQL beside memories in files: the same calls, in turns, on the same memories."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benches.bench_engram import Vectors, fill, text_of
from benches.harness import NotMeasurableHereError, Result, figure

MEMORIES = 10_000
CALLS = 100
# As a server has it, but for its memory, which the data fits.
SETTINGS = ("shared_buffers=256MB",)


@contextlib.contextmanager
def engines() -> Iterator[dict[str, Any]]:
    """Empty memories in files and in a server of their own, durable both."""
    from stratakv.engram import Engram
    from stratakv.testing import postgres

    embedder = Vectors()
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(postgres.server(SETTINGS))
            database = Engram.open(postgres.url(address, "postgres"), embedder=embedder)
        except (ImportError, postgres.NoServerError) as missing:
            raise NotMeasurableHereError(str(missing)) from None
        stack.enter_context(database)
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        yield {
            "files": stack.enter_context(Engram.open(scratch, embedder=embedder)),
            "postgres": database,
        }


def recall(memory: Any, number: int) -> None:
    """Finds ten of one user's memories by words and vector."""
    assert len(memory.recall(text_of(10_000_000 + 7919 * number), user="ana", k=10)) == 10


def remember(memory: Any, number: int) -> None:
    """Stores one, durably."""
    memory.remember(text_of(20_000_000 + number), user="ana")


def forget(memory: Any, number: int) -> None:
    """Erases one."""
    assert memory.forget(MEMORIES - number, user="ana") == 1


def in_turns(memories: dict[str, Any], call: Callable[[Any, int], None], count: int) -> dict[str, Any]:
    """Milliseconds of a call: the least, the median and the 99th of a hundred."""
    samples: dict[str, list[float]] = {name: [] for name in memories}
    for number in range(count):
        for name, memory in memories.items():
            begin = time.perf_counter()
            call(memory, number)
            samples[name].append(1000 * (time.perf_counter() - begin))
    told = {}
    for name, some in samples.items():
        some.sort()
        told[name] = {
            "least": round(some[0], 2),
            "median": round(statistics.median(some), 2),
            "p99": round(some[int(0.99 * len(some))], 2),
        }
    return told


@figure(
    "recall_10k_postgres_over_files",
    "the median recall of 10 of 10,000 memories in PostgreSQL, over that of files",
    unit="times",
    target=None,
    at_most=True,
    peer="memories in files, called in turns",
    limit="a round trip and a scan of the vectors by the server",
)
def recall_10k_postgres_over_files() -> Result:
    with engines() as memories:
        details: dict[str, Any] = {
            "stored_per_s": {
                name: round(MEMORIES / fill(memory, MEMORIES)) for name, memory in memories.items()
            }
        }
        in_turns(memories, recall, 5)
        for call, count in ((recall, CALLS), (remember, CALLS), (forget, CALLS // 5)):
            details[f"{call.__name__}_ms"] = in_turns(memories, call, count)
    found = details["recall_ms"]
    return Result([found["postgres"]["median"] / found["files"]["median"]], details)
