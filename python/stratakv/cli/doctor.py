"""`stratakv doctor`: what this machine has, and how fast it moves the bytes of a KV cache.

Figures are short measurements of a machine that may be busy: good enough to choose limits by,
not to publish. The disk is measured through the store itself, in a temporary folder beside the
sessions, which is removed whatever happens.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from stratakv import sizes
from stratakv.cli import options
from stratakv.cli.errors import explain
from stratakv.cli.output import Output, format_count

__all__ = ["configure", "run"]

FP8_CAPABILITY = (8, 9)  # torch._scaled_mm needs Ada, Hopper or later
MEMORY_BYTES = 256 << 20  # larger than the last-level cache of most machines
MEMORY_SECONDS = 0.5
GIB = 1 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `doctor`."""
    options.add_directory_option(parser, default=".")
    parser.add_argument("--no-measure", action="store_true", help="do not measure bandwidths")
    options.add_json_option(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Looks, measures, reports; fails only where the engine itself does not work."""
    directory = _existing(Path(args.directory))
    engine, problem = _engine(directory)
    report: dict[str, Any] = {
        "versions": _versions(),
        "cpu": {"cores": os.cpu_count(), "machine": platform.machine(), **engine},
        "memory": _memory(),
        "disk": {"directory": str(directory), "free_bytes": shutil.disk_usage(directory).free},
        "gpu": _gpu(),
        "bandwidth_bytes_per_second": {},
        "problem": problem,
    }
    if not args.no_measure:
        with out.busy("measuring memory and disk"):
            report["bandwidth_bytes_per_second"] = _bandwidths(
                directory, report, engine_works=problem is None
            )
    if out.json_mode:
        out.json(report)
    else:
        _tell(report, out)
    return 1 if problem else 0


def _existing(path: Path) -> Path:
    """The path or its nearest ancestor that exists: the file system that sessions would be on."""
    resolved = path.expanduser().resolve()
    return next(place for place in [resolved, *resolved.parents] if place.is_dir())


def _engine(directory: Path) -> tuple[dict[str, Any], str | None]:
    try:
        from stratakv import _native
    except ImportError as error:
        return {}, f"the engine does not load: {error}"
    return _native.doctor(str(directory)), None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("stratakv", "torch", "numpy", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "system": f"{platform.system()} {platform.release()}"}


def _memory() -> dict[str, int | None]:
    """Bytes of RAM, from the system's own tables; None where it has none that we can read."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return {"total_bytes": None, "available_bytes": None}
    return {"total_bytes": page * total, "available_bytes": _available_bytes()}


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _gpu() -> dict[str, Any] | None:
    import torch

    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        return {
            "name": torch.cuda.get_device_name(),
            "count": torch.cuda.device_count(),
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "capability": ".".join(map(str, capability)),
            "fp8": capability >= FP8_CAPABILITY,
        }
    if torch.backends.mps.is_available():
        return {"name": "Apple MPS", "count": 1, "memory_bytes": None, "capability": None, "fp8": False}
    return None


def _bandwidths(directory: Path, report: dict[str, Any], *, engine_works: bool) -> dict[str, Any]:
    measured: dict[str, Any] = _memory_read()
    if not engine_works:
        return measured
    from stratakv.cli.disk_speed import measure

    backends = ["mmap", "buffered"]
    if report["cpu"].get("direct_io"):
        backends.insert(0, "direct")
    for io in backends:
        try:
            with tempfile.TemporaryDirectory(prefix=".stratakv-doctor-", dir=_writable(directory)) as folder:
                measured[f"disk_{io}"] = measure(folder, io)
        except Exception as error:  # one back end that fails must not hide the others' figures
            measured[f"disk_{io}"] = {"problem": explain(error)[0]}
    return measured


def _writable(directory: Path) -> str | None:
    return str(directory) if os.access(directory, os.W_OK) else None


def _memory_read() -> dict[str, float]:
    """Bytes per second that one core and all cores read from memory, best of half a second."""
    import torch

    data = torch.ones(MEMORY_BYTES // 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _best_rate(data.sum)
        torch.set_num_threads(os.cpu_count() or 1)
        every = _best_rate(data.sum)
    finally:
        torch.set_num_threads(before)
    return {"memory_one_core": one, "memory_all_cores": every}


def _best_rate(read: Callable[[], object]) -> float:
    best, end = float("inf"), time.perf_counter() + MEMORY_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - start)
    return MEMORY_BYTES / best


def _tell(report: dict[str, Any], out: Output) -> None:
    cpu, gpu, memory = report["cpu"], report["gpu"], report["memory"]
    versions = report["versions"]
    line = _Line(out)
    line("system", f"{versions['system']}, {cpu['machine']}, Python {versions['python']}")
    line(
        "packages",
        ", ".join(
            f"{name} {versions[name] or 'not installed'}"
            for name in ("stratakv", "torch", "numpy", "transformers")
        ),
    )
    line(
        "processor",
        f"{cpu['cores']} cores, kernels use {cpu.get('simd', 'nothing: no engine')}, "
        f"{cpu.get('threads', '?')} threads",
    )
    line("memory", _of(memory["available_bytes"], memory["total_bytes"]))
    line("disk", f"{sizes.format_bytes(report['disk']['free_bytes'])} free at {report['disk']['directory']}")
    line("direct I/O", f"{_yes(cpu.get('direct_io'))}, io_uring: {_yes(cpu.get('io_uring'))}")
    line("GPU", _gpu_text(gpu))
    line(
        "FP8",
        "yes, in hardware" if gpu and gpu["fp8"] else "in software (hardware FP8 needs CUDA capability 8.9)",
    )
    _tell_bandwidths(report["bandwidth_bytes_per_second"], out)
    if report["problem"]:
        out.error(report["problem"], "reinstall stratakv, or build it: maturin develop --release")


def _tell_bandwidths(measured: dict[str, Any], out: Output) -> None:
    if not measured:
        return
    line = _Line(out)
    line(
        "read RAM",
        f"{_rate(measured['memory_one_core'])} one core, {_rate(measured['memory_all_cores'])} all cores",
    )
    for key, value in measured.items():
        if not key.startswith("disk_"):
            continue
        name = key.removeprefix("disk_")
        if "problem" in value:
            line(name, f"failed: {value['problem']}")
        else:
            line(
                name,
                f"read {_rate(value['sequential_read'])} in order, {_rate(value['random_read'])} random "
                f"({format_count(value['random_bytes'] >> 10)} KiB at a time), write {_rate(value['write'])}",
            )


class _Line:
    """Writes a labelled line of the report."""

    def __init__(self, out: Output) -> None:
        self.out = out

    def __call__(self, label: str, text: str) -> None:
        self.out.result(f"{self.out.style.dim(label.ljust(11))} {text}")


def _gpu_text(gpu: dict[str, Any] | None) -> str:
    if gpu is None:
        return "none; models run on the CPU"
    memory = f", {sizes.format_bytes(gpu['memory_bytes'])}" if gpu["memory_bytes"] else ""
    capability = f", capability {gpu['capability']}" if gpu["capability"] else ""
    return f"{gpu['count']} x {gpu['name']}{memory}{capability}"


def _of(available: int | None, total: int | None) -> str:
    if total is None:
        return "unknown"
    if available is None:
        return sizes.format_bytes(total)
    return f"{sizes.format_bytes(available)} available of {sizes.format_bytes(total)}"


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2f} GB/s"


def _yes(value: object) -> str:
    return "unknown" if value is None else "yes" if value else "no"
