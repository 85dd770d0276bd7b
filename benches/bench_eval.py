"""What is found in texts longer than the model was trained on, by `stratakv eval`.

Set-up: prose (An Anarchist FAQ, which Debian packages), 20 texts of each length, each with one fact at a
depth of its own, "The special magic number for CITY is NNNNN."; read, asked and answered with one budget.
Texts share what comes before their facts, so 20 texts take about ten times the reading of one: hours at 256K
and 1M.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.harness import NotMeasurableHereError, Result, figure

BOOK = Path("/usr/share/doc/anarchism/html")
BUDGET = 2048


def evaluate(length: str, *options: str) -> dict[str, Any]:
    """The report of one run, in a process of its own; a run that was stopped is gone on with."""
    if not BOOK.is_dir():
        raise NotMeasurableHereError("this figure reads a book: install it (apt-get install anarchism)")
    asked = ["--lengths", length, "--text", str(BOOK), "--budget", str(BUDGET), *options]
    digest = hashlib.sha256(" ".join(asked).encode()).hexdigest()[:8]
    kept = Path(tempfile.gettempdir(), f"stratakv-eval-{digest}")
    command = [sys.executable, "-m", "stratakv", "eval", "--json", "--ram", "4GiB", *asked]
    command += ["--report", str(kept / "report.json"), "--directory", str(kept / "sessions")]
    kept.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(kept)
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


@figure(
    "needle_256k",
    "facts found in texts of 256K tokens, 32 times the trained window, 20 depths",
    unit="of all",
    target=0.95,
    peer=PEER,
    limit="1",
    takes_hours=True,
)
def needle_256k() -> Result:
    return needles("256K")


@figure(
    "needle_1m",
    "facts found in texts of 1M tokens, 128 times the trained window, 20 depths",
    unit="of all",
    target=0.95,
    peer=PEER,
    limit="1",
    takes_hours=True,
)
def needle_1m() -> Result:
    return needles("1M")
