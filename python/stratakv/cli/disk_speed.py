"""How fast the store writes and reads pages in a folder, through one of its I/O back ends.

A page table far larger than the store's RAM is written, then read back in order and at random.
Between, the file system is asked to forget the files, so that the disk is measured and not the
page cache; a system that cannot be asked so reads from its cache, and the figures say so by
being too good.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

__all__ = ["measure"]

RAM_BYTES = 8 << 20
# 4 KV heads x 128 dims x 64 tokens x 2 bytes x (keys, values): 128 KiB a page, a common size.
HEADS, DIM, PAGE_TOKENS = 4, 128, 64
NUM_PAGES = 512
APPEND_TOKENS = 1024
SEQUENTIAL_TOKENS = 1024
RANDOM_READS = 128
SEED = 7


def measure(folder: str, io: str) -> dict[str, float]:
    """Bytes per second of `write`, `sequential_read`, `random_read`; `random_bytes` per random read."""
    import torch

    from stratakv._native import KvCache, Store

    page_bytes = HEADS * DIM * PAGE_TOKENS * 2 * 2
    num_tokens = NUM_PAGES * PAGE_TOKENS
    store = Store(folder, ram_bytes=RAM_BYTES, io=io)
    try:
        cache = KvCache(store, num_layers=1, page_tokens=PAGE_TOKENS)
        generator = torch.Generator().manual_seed(SEED)
        piece = torch.randn(1, HEADS, APPEND_TOKENS, DIM, generator=generator).to(torch.bfloat16)
        start = time.perf_counter()
        for _ in range(num_tokens // APPEND_TOKENS):
            cache.append(0, piece, piece)
        store.flush()
        write = NUM_PAGES * page_bytes / (time.perf_counter() - start)
        _forget(folder)
        keys, values = (torch.empty(1, HEADS, SEQUENTIAL_TOKENS, DIM, dtype=torch.bfloat16) for _ in range(2))
        start = time.perf_counter()
        for position in range(0, num_tokens, SEQUENTIAL_TOKENS):
            cache.gather(0, position, position + SEQUENTIAL_TOKENS, keys, values)
        sequential = NUM_PAGES * page_bytes / (time.perf_counter() - start)
        _forget(folder)
        keys, values = (torch.empty(1, HEADS, PAGE_TOKENS, DIM, dtype=torch.bfloat16) for _ in range(2))
        pages = random.Random(SEED).sample(range(NUM_PAGES), RANDOM_READS)  # noqa: S311  not a secret
        start = time.perf_counter()
        for page in pages:
            cache.gather(0, page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS, keys, values)
        scattered = RANDOM_READS * page_bytes / (time.perf_counter() - start)
        cache.close()
    finally:
        store.close()
    return {
        "write": write,
        "sequential_read": sequential,
        "random_read": scattered,
        "random_bytes": page_bytes,
    }


def _forget(folder: str) -> None:
    """Asks the system to drop the folder's files from its page cache, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in Path(folder).rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
