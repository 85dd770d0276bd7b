"""The cold tier beside fio on the same file system, and the time to open a large index."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benches.harness import Result, figure

ROOT = Path(__file__).parent.parent
ROUNDS = 5
# Writes vary twofold from one run to the next, fio's as well as ours: their median needs more of them.
WRITE_ROUNDS = 15
DEPTHS = (1, 4, 8, 16, 32)
FIO_BYTES = "1536m"
SETTLE_SECONDS = 1.0


def store_figures(what: str, directory: Path) -> float:
    """One sample of the compiled benchmark `store-figures`."""
    command = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "stratakv-bench"]
    command += ["--bin", "store-figures", "--", what, str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["sample"])


def fio(rw: str, directory: Path, depth: int) -> float:
    """Bytes/s of one fio run: io_uring, direct, 1 MiB, as every figure here states."""
    if shutil.which("fio") is None:
        raise SystemExit("these figures are measured beside fio: install it (apt-get install fio)")
    done = subprocess.run(
        ["fio", "--name=peer", f"--filename={directory / 'fio.bin'}", f"--size={FIO_BYTES}", "--bs=1m",
         f"--rw={rw}", "--direct=1", "--ioengine=io_uring", f"--iodepth={depth}", "--end_fsync=1",
         "--output-format=json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kind = "read" if rw == "read" else "write"
    job = json.loads(done.stdout)["jobs"][0]
    # The final sync belongs to the write: bytes over the whole job, as in the store's own sample.
    seconds = max(job[kind]["runtime"], job["job_runtime"]) / 1e3
    return float(job[kind]["io_bytes"]) / seconds


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the file system that the sessions of this checkout would be on."""
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as directory:
        yield Path(directory)


def settle() -> None:
    """Lets the disk finish what was deleted: discarding gigabytes slows whoever writes next."""
    os.sync()
    time.sleep(SETTLE_SECONDS)


def best_depth(rw: str, directory: Path) -> int:
    return max(DEPTHS, key=lambda depth: fio(rw, directory, depth))


@figure(
    "cold_read_over_fio",
    "reading a session's pages, cold, beside fio",
    unit="ratio",
    target=0.85,
    peer="fio, io_uring, direct, 1 MiB blocks, best of five depths",
    limit="1: the device's sequential rate as fio reaches it",
)
def cold_read_over_fio() -> Result:
    with scratch() as directory:
        fio("write", directory, 16)
        store_figures("write", directory / "store")
        depth = best_depth("read", directory)
        pairs = [
            (store_figures("read", directory / "store"), fio("read", directory, depth)) for _ in range(ROUNDS)
        ]
    return Result([ours / peer for ours, peer in pairs], rates(pairs, depth))


@figure(
    "write_over_fio",
    "sealing a session's pages and making them durable, beside fio",
    unit="ratio",
    target=0.7,
    peer="fio writing a new file, io_uring, direct, 1 MiB blocks, best of five depths, synced at the end",
    limit="1: the device's sequential rate as fio reaches it",
)
def write_over_fio() -> Result:
    pairs = []
    with scratch() as directory:
        depth = best_depth("write", directory)
        overwriting = fio("write", directory, depth)
        for _ in range(WRITE_ROUNDS):
            target = directory / "store"
            # The store writes new files, so its peer does: writing over old blocks is another thing.
            (directory / "fio.bin").unlink()
            settle()
            ours = store_figures("write", target)
            shutil.rmtree(target)
            settle()
            pairs.append((ours, fio("write", directory, depth)))
    details = rates(pairs, depth) | {"fio_over_its_own_file_gb_per_s": round(overwriting / 1e9, 3)}
    return Result([ours / peer for ours, peer in pairs], details)


def rates(pairs: list[tuple[float, float]], depth: int) -> dict[str, object]:
    return {
        "store_gb_per_s": [round(ours / 1e9, 3) for ours, _ in pairs],
        "fio_gb_per_s": [round(peer / 1e9, 3) for _, peer in pairs],
        "fio_depth": depth,
    }


@figure(
    "open_100k_pages_ms",
    "opening a directory of 100,000 pages",
    unit="ms",
    target=100,
    at_most=True,
    peer="none",
    limit="3.2 MB of tables of contents and 100,000 insertions: about 10 ms",
)
def open_100k_pages_ms() -> Result:
    with scratch() as directory:
        target = directory / "store"
        store_figures("open", target)  # makes the directory
        samples = [store_figures("open", target) for _ in range(ROUNDS)]
    return Result(samples)
