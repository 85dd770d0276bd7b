"""`stratakv bench gpu`: whether the kernels are right on a GPU, and how far they are from what it can do."""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli.errors import CommandError
from stratakv.cli.output import Output, table

if TYPE_CHECKING:
    import torch

    from stratakv.cli.gpu_figures import Figure
    from stratakv.cli.gpu_work import Sizes

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench gpu`."""
    parser.add_argument(
        "--report",
        default="stratakv-gpu.json",
        metavar="FILE",
        help="JSON file of the figures and their samples (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="write the figures as JSON"
    )
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace, out: Output) -> int:
    """Measures on the first GPU; without one says so, which is no failure."""
    import torch

    from stratakv.cli.gpu_work import Sizes

    if not torch.cuda.is_available():
        out.result("no GPU: PyTorch finds no CUDA device here, so there is nothing to measure")
        if out.json_mode:
            out.json({"device": None, "figures": []})
        return 0
    return measure_on(torch.device("cuda", 0), Sizes(), Path(args.report), out)


def measure_on(device: torch.device, sizes: Sizes, report: Path, out: Output) -> int:
    """Measures, tells each figure as it comes, and keeps all of them in a file."""
    from stratakv.cli.gpu_figures import IncorrectError, measure

    start, figures = time.time(), []
    try:
        for figure in measure(device, sizes):
            figures.append(figure)
            out.note(f"{figure.name}: {figure.median:.4g} {figure.unit}")
    except IncorrectError as error:
        raise CommandError(f"a kernel is wrong on {device}", str(error)) from None
    described = _environment(device) | {"seconds": time.time() - start, "figures": [*map(_entry, figures)]}
    report.write_text(json.dumps(described, indent=1) + "\n")
    if out.json_mode:
        out.json(described)
    for line in table(["FIGURE", "MEDIAN", "SPREAD", "OF"], _rows(figures), right=(1,)):
        out.result(line)
    out.result(f"{described['device']}, torch {described['torch']}; samples in {report}")
    return 0


def _rows(figures: list[Figure]) -> list[list[str]]:
    medians = {figure.name: figure.median for figure in figures}
    return [
        [
            figure.name,
            f"{figure.median:.4g} {figure.unit}",
            f"{min(figure.samples):.4g} to {max(figure.samples):.4g}",
            f"{figure.median / medians[figure.baseline]:.1%} of {figure.baseline}" if figure.baseline else "",
        ]
        for figure in figures
    ]


def _entry(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "median": figure.median,
        "samples": figure.samples,
        "baseline": figure.baseline or None,
    }


def _environment(device: torch.device) -> dict[str, Any]:
    import torch

    import stratakv

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "stratakv": stratakv.__version__,
        "system": platform.platform(),
    }
