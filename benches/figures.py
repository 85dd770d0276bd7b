"""Measures the published figures and writes `results/figures.json`.

python -m benches.figures              every figure that does not take hours, those of a file in one process
python -m benches.figures KEY ...      some of them
python -m benches.figures --list       their keys, targets and last values
python -m benches.figures --table      the README's table made anew
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

from benches import table
from benches.harness import FIGURES, FIGURES_FILE, Figure, NotMeasurableHereError, record

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))


def load() -> dict[str, Figure]:
    """Imports every module that registers figures."""
    for module in MODULES:
        importlib.import_module(f"benches.{module}")
    return FIGURES


def measure(key: str) -> bool:
    """Measures one figure in this process, records and prints it; whether it holds.

    A figure that this machine cannot measure is no failure, and what was recorded elsewhere stays.
    """
    start = time.perf_counter()
    one = FIGURES[key]
    try:
        result = one.measure()
    except NotMeasurableHereError as reason:
        print(f"{key}: not measurable here: {reason}", flush=True)
        return True
    entry = record(one, result, time.perf_counter() - start)
    low, high = entry["spread"]
    verdict = "holds" if entry["holds"] else "FALLS SHORT"
    asked = "no target" if one.target is None else f"asked {one.asked}: {verdict}"
    print(f"{key}: {entry['value']:.4g} {one.unit} ({low:.4g} to {high:.4g}), {asked}", flush=True)
    return bool(entry["holds"])


def measure_all(keys: list[str]) -> int:
    """Measures the figures of each module in a process of its own, so that none inherits another's memory.

    Figures of one module may share what takes long, such as one prefill.
    """
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(FIGURES[key].measure.__module__, []).append(key)
    failed, number = [], 0
    for group in groups.values():
        bar = "#" * number + "." * (len(keys) - number)
        titles = "; ".join(FIGURES[key].title for key in group)
        print(f"[{bar}] {number}/{len(keys)} {titles}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", "benches.figures", "--here", *group], check=False)
        number += len(group)
        if done.returncode:
            failed += group
    print(f"[{'#' * len(keys)}] {len(keys)}/{len(keys)}", file=sys.stderr)
    if failed:
        print("some of these fell short, or were not measured: " + ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def show() -> None:
    known = json.loads(FIGURES_FILE.read_text()) if FIGURES_FILE.exists() else {}
    for key, one in sorted(FIGURES.items()):
        last = f"{known[key]['value']:.4g} {one.unit}" if key in known else "not measured yet"
        print(f"{key:32} {one.asked:16} {last:20} {one.title}")


def main() -> int:
    parser = argparse.ArgumentParser(description="measure the published figures")
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument("--list", action="store_true", help="show the figures and their last values")
    parser.add_argument("--table", action="store_true", help="put the last values into the README")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    args = parser.parse_args()
    load()
    unknown = [key for key in args.keys if key not in FIGURES]
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}; there are {', '.join(sorted(FIGURES))}")
    if args.list:
        show()
        return 0
    if args.table:
        table.write()
        return 0
    keys = args.keys or [key for key, one in FIGURES.items() if not one.takes_hours]
    if args.here:
        missed = [key for key in keys if not measure(key)]
        return 1 if missed else 0
    return measure_all(keys)


if __name__ == "__main__":
    sys.exit(main())
