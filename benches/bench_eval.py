"""What is found in texts longer than the model was trained on, by `stratakv eval`.

Set-up: prose (An Anarchist FAQ, which Debian packages), 20 texts of each length, each with one fact at a
depth of its own, "The special magic number for CITY is NNNNN."; read, asked and answered with one budget.
Texts share what comes before their facts, so 20 texts take about ten times the reading of one: hours at 256K
and 1M. `facts_*` puts 20 facts of different kinds, "The serial number of the red telescope is NNNNN.", into
one text, which is read once, and asks for each by itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.harness import NotMeasurableHereError, Result, figure

BOOK = Path("/usr/share/doc/anarchism/html")
BUDGET = 2048
RAM = "4GiB"


def evaluate(length: str, *options: str, keep: Path | None = None) -> dict[str, Any]:
    """The report of one run, in a process of its own; a run that was stopped is gone on with.

    With `keep` the text stays there as a session, and the report with it.
    """
    if not BOOK.is_dir():
        raise NotMeasurableHereError("this figure reads a book: install it (apt-get install anarchism)")
    asked = ["--lengths", length, "--text", str(BOOK), "--budget", str(BUDGET), *options]
    digest = hashlib.sha256(" ".join(asked).encode()).hexdigest()[:8]
    place = keep or Path(tempfile.gettempdir(), f"stratakv-eval-{digest}")
    command = [sys.executable, "-m", "stratakv", "eval", "--json", "--ram", RAM, *asked]
    command += ["--report", str(place / "report.json"), "--directory", str(place / "sessions")]
    place.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        [*command, *(["--keep"] if keep else [])], stdout=subprocess.PIPE, text=True, check=True
    )
    if keep is None:
        shutil.rmtree(place)
    return dict(json.loads(done.stdout))


def needles(length: str) -> Result:
    """The share of the facts found, each alone in its text."""
    return found_in(evaluate(length, "--tasks", "needle"))


def facts(length: str) -> Result:
    """The share of the facts found, all in one text."""
    return found_in(evaluate(length, "--tasks", "facts"))


def found_in(report: dict[str, Any]) -> Result:
    """The mean score of a report of one family and length."""
    found = sorted(report["results"], key=lambda one: one["depth"])
    (summary,) = report["summary"]
    details = {
        "found": "".join("+" if one["score"] == 1 else "-" for one in found),
        "depths": [found[0]["depth"], found[-1]["depth"]],
        "budget": BUDGET,
        "read_tokens": round(sum(one["read_tokens"] for one in found) / len(found)),
        "dtype": report["settings"]["dtype"],
        "prefill_seconds": round(sum(one["seconds"] for one in report["reading"].values()), 1),
        "question_seconds": round(statistics.median(one["seconds"]["question"] for one in found), 2),
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


FACTS_PEER = "itself at 4K, where it reads everything: facts_4k"


@figure(
    "facts_4k",
    "20 facts of different kinds in one text of 4K tokens, read whole",
    unit="of all",
    target=None,
    peer="none: read whole",
    limit="1",
)
def facts_4k() -> Result:
    return facts("4K")


@figure(
    "facts_16k",
    "20 facts of different kinds in one text of 16K tokens, twice the trained window",
    unit="of all",
    target=0.85,
    peer=FACTS_PEER,
    limit="1",
)
def facts_16k() -> Result:
    return facts("16K")


@figure(
    "facts_64k",
    "20 facts of different kinds in one text of 64K tokens, eight times the trained window",
    unit="of all",
    target=0.85,
    peer=FACTS_PEER,
    limit="1",
)
def facts_64k() -> Result:
    return facts("64K")
