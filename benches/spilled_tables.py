"""Steps of a model with tables of n-grams in RAM or in files: prints one JSON line, for `bench_tables.py`.

python -m benches.spilled_tables WORK SHARE DIRECTORY

WORK is `train` or `decode`. SHARE is the part of the files that may be in RAM, the system's cache of them
included: a memory group of the system holds the process to that. 0 keeps tables in RAM, without a limit.
DIRECTORY is where the files are.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benches.texts import prose

# 16 tables of them in each of two layers, 64 numbers a row: 1 GiB, and three times that with Adam's moments.
ROWS = 131_072
VOCAB_SIZE = 8192
# So many are not measured, then so many are.
UNLIMITED_STEPS = 2
STEPS = {"train": (1, 4), "decode": (30, 150)}


class MemoryLimit:
    """This process's memory group, of the system's first version or second."""

    def __init__(self) -> None:
        groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        self._second = "memory" not in groups
        root = Path("/sys/fs/cgroup") if self._second else Path("/sys/fs/cgroup/memory")
        inside = root / groups.get("memory", groups.get("", "/")).strip("/")
        self._parent = inside if inside.is_dir() else root
        self._group = self._parent / f"stratakv-bench-{os.getpid()}"

    def enter(self) -> None:
        """Moves this process into a group of its own, whose memory is counted from here on."""
        self._group.mkdir()
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def set(self, size: int) -> None:
        """Bytes that the process and the cache of its files may take; what is above goes."""
        name = "memory.max" if self._second else "memory.limit_in_bytes"
        (self._group / name).write_text(str(size))

    def leave(self) -> None:
        """Back to where it was."""
        (self._parent / "cgroup.procs").write_text(str(os.getpid()))
        self._group.rmdir()


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
    return int(line.split()[1]) << 10


def table_bytes() -> int:
    """Of the tables' files that this process has mapped."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "stratakv-table-" in line]
    ends = [[int(number, 16) for number in line.split()[0].split("-")] for line in lines]
    return sum(end - start for start, end in ends)


def trained(ids: Tensor, vocabulary: Tensor, tables: Path | None) -> Iterator[Callable[[], object]]:
    """Updates, one at a time."""
    from stratakv.train import TrainConfig, Trainer

    config = TrainConfig(steps=10**6, batch=4, length=256, eval_every=0, sparse_tables=True)
    trainer = Trainer(model_of(vocabulary, tables), ids, config)
    yield from itertools.repeat(trainer.advance)


def decoded(ids: Tensor, vocabulary: Tensor, tables: Path | None) -> Iterator[Callable[[], object]]:
    """Tokens of the text, one at a time."""
    from stratakv.hf import StrataForCausalLM
    from stratakv.nn import map_tables

    model = StrataForCausalLM.from_strata_lm(model_of(vocabulary, None)).eval()
    if tables is not None:
        map_tables(model, tables)
    cache = None

    @torch.inference_mode()
    def step(token: int) -> None:
        nonlocal cache
        cache = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values

    for token in ids.tolist():
        yield lambda token=token: step(token)


def model_of(vocabulary: Tensor, tables: Path | None) -> Any:
    """A model of SmolLM2-135M's shape, of the same values each time."""
    from stratakv.nn import MemoryConfig, StrataLM, TransformerConfig

    memory = MemoryConfig(
        layers=(1, 14), compressed_size=int(vocabulary.max()) + 1, table_sizes=(ROWS, ROWS), pad_id=0
    )
    config = TransformerConfig(
        vocab_size=len(vocabulary), hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, memory=memory
    )
    torch.manual_seed(0)
    return StrataLM(config, vocabulary, tables)


def main() -> None:
    work, share, directory = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])

    from stratakv.hf.tokenizer import compressed_vocabulary, learn_tokenizer

    texts = list(prose())
    tokenizer = learn_tokenizer(texts, VOCAB_SIZE)
    ids = torch.tensor([id for text in texts for id in tokenizer(text)["input_ids"]], dtype=torch.int32)
    vocabulary = compressed_vocabulary(tokenizer)
    limit = MemoryLimit()
    if share:
        limit.enter()
    steps = {"train": trained, "decode": decoded}[work](ids, vocabulary, directory if share else None)
    for step in itertools.islice(steps, UNLIMITED_STEPS):
        step()
    if share:
        limit.set(anonymous_bytes() + int(share * table_bytes()))
    unmeasured, count = STEPS[work]
    seconds = []
    for step in itertools.islice(steps, unmeasured + count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    report = {"seconds": seconds[unmeasured:], "table_mib": table_bytes() >> 20}
    if share:
        limit.leave()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
