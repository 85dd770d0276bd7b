"""`stratakv ask` over a text of 32K tokens: how much memory it takes, and what resuming saves."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from benches.harness import Result, figure
from benches.texts import write_text

TOKENS = 32 << 10
RAM = 256 << 20
RESUMES = 5
QUESTION = "What is this text about?"


def ask(text: Path, directory: Path, question: str) -> dict[str, Any]:
    """One `stratakv ask` in a process of its own."""
    command = [sys.executable, "-m", "stratakv", "ask", str(text), question, "--ram", str(RAM), "--json"]
    command += ["--directory", str(directory), "--max-new-tokens", "8", "--dtype", "float32"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


@cache
def runs() -> dict[str, Any]:
    """One prefill of the long text, several resumes, and the same command over next to nothing."""
    from stratakv.cli.models import find_model, load

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tokenizer = load(find_model(None), "float32").tokenizer
        write_text(place / "long.txt", tokenizer, TOKENS)
        (place / "short.txt").write_text("Nothing.")
        short = ask(place / "short.txt", place / "short-sessions", QUESTION)
        first = ask(place / "long.txt", place / "sessions", QUESTION)
        again = [ask(place / "long.txt", place / "sessions", f"{QUESTION} ({n})") for n in range(RESUMES)]
    return {"short": short, "first": first, "again": again}


@figure(
    "ask_32k_rss_over_allowance",
    "peak resident memory of `ask --ram 256MiB` on 32K tokens",
    unit="of (model + limit) and 15 %",
    target=1.0,
    at_most=True,
    peer="the same command on a text of two tokens, which is what the model takes",
    limit="the limit counts all pages; what is above it is the activations of one chunk",
)
def ask_32k_rss_over_allowance() -> Result:
    measured = runs()
    model, peak = measured["short"]["peak_rss_bytes"], measured["first"]["peak_rss_bytes"]
    return Result(
        [peak / (1.15 * (model + RAM))],
        {"model_mib": model >> 20, "peak_mib": peak >> 20, "limit_mib": RAM >> 20, "tokens": TOKENS},
    )


@figure(
    "resume_32k_speedup",
    "the first new token of a resumed session of 32K tokens, over prefilling it",
    unit="times",
    target=50,
    peer="the same command's prefill of the same text, the directory empty",
    limit="reading summaries, 4 % of the pages",
)
def resume_32k_speedup() -> Result:
    measured = runs()
    prefill = measured["first"]["seconds"]["first_token"]
    resumed = [one["seconds"]["first_token"] for one in measured["again"]]
    reused = min(one["tokens"]["reused"] for one in measured["again"])
    assert reused >= measured["first"]["tokens"]["context"] - 1, f"only {reused} tokens were reused"
    return Result(
        [prefill / seconds for seconds in resumed],
        {"prefill_s": round(prefill, 2), "resume_s": [round(seconds, 3) for seconds in resumed]},
    )
