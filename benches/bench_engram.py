"""Long-term memory: what is found of long conversations, and how long remembering and recalling take."""

from __future__ import annotations

import functools
import importlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benches.harness import NotMeasurableHereError, Result, figure

DIMENSION = 384
ROOT = Path(__file__).parent.parent
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


# Words of a made-up language, as rare as in a text (Zipf) of which the most frequent hundred are stop
# words: that of `engram_figures.rs`. Of 80 words, recall from 100,000 memories takes 10 ms.
NUM_WORDS, STOP_WORDS, WORDS_PER_TEXT = 20_000, 100, 14


def text_of(number: int) -> str:
    """Some words, drawn by the number."""
    even = np.random.default_rng(number).random(WORDS_PER_TEXT)
    ranks = STOP_WORDS * ((STOP_WORDS + NUM_WORDS) / STOP_WORDS) ** even
    return f"{number} " + " ".join(f"w{int(rank) - STOP_WORDS}x" for rank in ranks)


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


@figure(
    "observe_p95_ms",
    "a turn of a conversation observed, durable on return, 95 of 100 take no longer",
    unit="ms",
    target=10,
    at_most=True,
    peer="none",
    limit="one sync of a file",
)
def observe_p95_ms() -> Result:
    from stratakv.engram import AssistantMemory

    samples = []
    with tempfile.TemporaryDirectory() as scratch, AssistantMemory.open(scratch) as memory:
        for number in range(SPREAD + 10):
            said = f"{text_of(number)}. We chose w{number}x over the others because it is faster."
            begin = time.perf_counter()
            memory.observe([{"role": "user", "content": said}], user="ana", session="talk")
            samples.append(1000 * (time.perf_counter() - begin))
            # Its facts are taken out before the next one comes, as in a conversation.
            memory.drain()
    samples = sorted(samples[10:])
    return Result(
        [samples[int(0.95 * len(samples))]],
        {"p50_ms": round(statistics.median(samples), 2), "turns": SPREAD},
    )


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


# A million memories, from below: making a million texts in Python would take longer than all else.


@functools.cache
def engram_figures(what: str, *settings: int, users: int = 1) -> dict[str, Any]:
    """One run of the compiled benchmark `engram-figures` on the same million memories of so many users."""
    command = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "stratakv-bench"]
    command += ["--bin", "engram-figures", "--", what, million(users).name, *map(str, settings)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


@functools.cache
def million(users: int) -> tempfile.TemporaryDirectory[str]:
    """The directory of so many users' memories, empty at first."""
    del users
    return tempfile.TemporaryDirectory()


def a_million() -> None:
    """Remembers them and builds their index; once."""
    engram_figures("fill", 1_000_000, 1)
    engram_figures("index")


@figure(
    "open_1m_memories_s",
    "a directory of 1,000,000 memories of one user opened, and 5 of them found by words",
    unit="s",
    target=1,
    at_most=True,
    peer="none",
    limit="reading rows and words: one checkpoint",
    takes_hours=True,
)
def open_1m_memories_s() -> Result:
    a_million()
    # Not cached: each is a process of its own.
    return Result([engram_figures.__wrapped__("open")["sample"] for _ in range(5)])


@figure(
    "index_recall10_1m",
    "of the nearest 10 of 1,000,000 memories, the share that the graph finds",
    unit="of all",
    target=0.98,
    peer="every vector looked at",
    limit="1",
    takes_hours=True,
)
def index_recall10_1m() -> Result:
    a_million()
    found = engram_figures("index")
    return Result([found["sample"]], {"build_seconds": found["build_seconds"]})


@figure(
    "recall_p50_ms_1m",
    "recall of 10 out of 1,000,000 memories of one user, by words and vector, the median",
    unit="ms",
    target=10,
    at_most=True,
    peer="none",
    limit=RECALL_LIMIT,
    takes_hours=True,
)
def recall_p50_ms_1m() -> Result:
    a_million()
    samples = sorted(engram_figures("recall", 1)["samples"])
    return Result([statistics.median(samples)], {"p99_ms": round(samples[int(0.99 * len(samples))], 2)})


@figure(
    "recall_p50_ms_1m_of_1000",
    "recall of 10 out of 1,000,000 memories of a thousand users, by words and vector, the median",
    unit="ms",
    target=10,
    at_most=True,
    peer="none",
    limit=RECALL_LIMIT,
)
def recall_p50_ms_1m_of_1000() -> Result:
    users = 1000
    engram_figures("fill", 1_000_000, users, users=users)
    samples = sorted(engram_figures("recall", users, users=users)["samples"])
    return Result([statistics.median(samples)], {"p99_ms": round(samples[int(0.99 * len(samples))], 2)})


# Beside libraries that index vectors and nothing else.

PEER_ROWS = 100_000
PEER_K = 10
NEAREST = {"bm25_window": 0.0, "cosine_window": 1.0}


def usearch_peer(vectors: Any) -> Any:
    """16 neighbours, 128 looked at to add and 192 to search, float16: as ours."""
    index = importlib.import_module("usearch.index").Index(
        ndim=DIMENSION, metric="cos", dtype="f16", connectivity=16, expansion_add=128, expansion_search=192
    )
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return lambda query: index.search(query, PEER_K, threads=1).keys


def hnswlib_peer(vectors: Any) -> Any:
    index = importlib.import_module("hnswlib").Index(space="cosine", dim=DIMENSION)
    index.init_index(max_elements=len(vectors), ef_construction=128, M=16)
    index.set_num_threads(1)
    index.add_items(vectors)
    index.set_ef(192)
    return lambda query: index.knn_query(query, PEER_K)[0][0]


def faiss_peer(vectors: Any) -> Any:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 128, 192
    index.add(vectors)
    return lambda query: index.search(query[None], PEER_K)[1][0]


def sqlite_vec_peer(vectors: Any) -> Any:
    """No graph: every vector is looked at. By apsw: many a Python's own SQLite loads no extensions."""
    database = importlib.import_module("apsw").Connection(":memory:")
    database.enable_load_extension(True)
    database.load_extension(importlib.import_module("sqlite_vec").loadable_path())
    database.execute(f"create virtual table v using vec0(e float[{DIMENSION}] distance_metric=cosine)")
    rows = ((row, vector.tobytes()) for row, vector in enumerate(vectors))
    with database:
        database.executemany("insert into v(rowid, e) values (?, ?)", rows)
    ask = f"select rowid from v where e match ? and k = {PEER_K}"
    return lambda query: [row for (row,) in database.execute(ask, (query.tobytes(),))]


PEERS = {
    "usearch": usearch_peer,
    "hnswlib": hnswlib_peer,
    "faiss HNSW": faiss_peer,
    "sqlite-vec": sqlite_vec_peer,
}


def timed(search: Any, queries: Any, exact: list[set[int]]) -> tuple[float, float]:
    """The median milliseconds of a query, and the share of the exact ten that is found."""
    milliseconds, found = [], 0
    for query, expected in zip(queries, exact, strict=True):
        begin = time.perf_counter()
        got = search(query)
        milliseconds.append(1000 * (time.perf_counter() - begin))
        found += len(expected.intersection(map(int, got)))
    return statistics.median(milliseconds), found / (PEER_K * len(exact))


@figure(
    "recall_100k_beside_indexes",
    "the median recall of 10 of 100,000 by vector alone, over the fastest of usearch, hnswlib and faiss",
    unit="times",
    target=None,
    at_most=True,
    peer="usearch, hnswlib, faiss (HNSW, M 16, 128 and 192), sqlite-vec, one thread each",
    limit="1: what is found is also read from the log, with its text and all signals",
)
def recall_100k_beside_indexes() -> Result:
    from stratakv.engram import Engram

    embedder = Vectors()
    vectors = embedder.embed([str(number) for number in range(PEER_ROWS)]).astype(np.float32)
    queries = embedder.embed([str(10_000_000 + 7919 * number) for number in range(SPREAD)]).astype(np.float32)
    exact = [set(map(int, np.argpartition(-(vectors @ query), PEER_K)[:PEER_K])) for query in queries]
    found = {}
    for name, make in PEERS.items():
        try:
            found[name] = timed(make(vectors), queries, exact)
        except ModuleNotFoundError as missing:
            raise NotMeasurableHereError(
                f"{missing}: install usearch, hnswlib, faiss-cpu, sqlite-vec, apsw"
            ) from None
    with (
        tempfile.TemporaryDirectory() as scratch,
        Engram.open(scratch, embedder=embedder, durable=False) as memory,
    ):
        for first in range(0, PEER_ROWS, BATCH):
            memory.remember_many([str(number) for number in range(first, first + BATCH)], user="ana")
        memory.optimize(user="ana")

        def search(number: int) -> list[int]:
            hits = memory.recall(str(number), user="ana", k=PEER_K, weights=NEAREST)
            return [int(hit.text) for hit in hits]

        ours = timed(search, [10_000_000 + 7919 * number for number in range(SPREAD)], exact)
    fastest = min(found[name][0] for name in ("usearch", "hnswlib", "faiss HNSW"))
    details = {name: {"ms": round(ms, 3), "recall": round(share, 4)} for name, (ms, share) in found.items()}
    details["ours"] = {"ms": round(ours[0], 3), "recall": round(ours[1], 4)}
    return Result([ours[0] / fastest], details)
