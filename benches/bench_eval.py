"""What is found in texts longer than the model was trained on, by `stratakv eval`.

Set-up: prose (An Anarchist FAQ, which Debian packages), 20 texts of each length, each with one fact at a
depth of its own, "The special magic number for CITY is NNNNN."; read, asked and answered with one budget.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.harness import NotMeasurableHereError, Result, figure

BOOK = Path("/usr/share/doc/anarchism/html")
BUDGET = 2048


def evaluate(length: str, *options: str) -> dict[str, Any]:
    """The report of one run, in a process of its own."""
    if not BOOK.is_dir():
        raise NotMeasurableHereError("this figure reads a book: install it (apt-get install anarchism)")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "stratakv",
            "eval",
            "--lengths",
            length,
            "--text",
            str(BOOK),
            "--json",
        ]
        command += ["--budget", str(BUDGET), "--ram", "4GiB", "--directory", scratch, *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def needles(length: str) -> Result:
    """The share of the facts found."""
    report = evaluate(length, "--tasks", "needle")
    found = sorted(report["results"], key=lambda one: one["depth"])
    (summary,) = report["summary"]
    details = {
        "found": "".join("+" if one["score"] == 1 else "-" for one in found),
        "depths": [found[0]["depth"], found[-1]["depth"]],
        "budget": BUDGET,
        "read_tokens": round(sum(one["read_tokens"] for one in found) / len(found)),
        "dtype": report["settings"]["dtype"],
        "prefill_seconds": round(sum(report["prefill_seconds"].values()), 1),
    }
    return Result([summary["score"]], details)


PEER = "itself at 4K, where it reads everything: needle_4k"


@figure(
    "needle_4k",
    "facts found in texts of 4K tokens, 20 depths",
    unit="of all",
    target=0.95,
    peer="none: read whole",
    limit="1",
)
def needle_4k() -> Result:
    return needles("4K")


@figure(
    "needle_16k",
    "facts found in texts of 16K tokens, twice the trained window, 20 depths",
    unit="of all",
    target=0.95,
    peer=PEER,
    limit="1",
)
def needle_16k() -> Result:
    return needles("16K")


@figure(
    "needle_64k",
    "facts found in texts of 64K tokens, eight times the trained window, 20 depths",
    unit="of all",
    target=0.95,
    peer=PEER,
    limit="1",
)
def needle_64k() -> Result:
    return needles("64K")
