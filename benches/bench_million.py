"""A text of a million tokens: what is found in it, what it takes to read, to resume and to go on with.

Set-up: `facts_1m` of `bench_eval.py`. The text is read once, in an hour and more on 2 cores, and kept in
`stratakv-million` in the system's temporary directory (24 GB), which the other figures use again and whoever
measured them removes. A reading that was stopped goes on.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.bench_eval import BUDGET, FACTS_PEER, evaluate, found_in
from benches.harness import Result, figure

RAM = 4 << 30
# Tokens that are decoded before a session counts as warm, those that count then, and those that are cold.
WARM_UP = 96
STEPS = 64
COLD = 16


@functools.cache
def kept(length: str) -> tuple[Path, dict[str, Any]]:
    """The directory of a text that was read, and the report about it."""
    place = Path(tempfile.gettempdir(), "stratakv-million", length)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    return place, evaluate(length, "--tasks", "facts", keep=place)


def with_session(module: str, length: str, *options: int) -> dict[str, Any]:
    """What a module tells, in a process of its own, of that text's session."""
    place, _ = kept(length)
    (session,) = (place / "sessions" / "sessions").glob("*.session")
    settings = map(str, (place / "sessions", session.stem, RAM, BUDGET, *options))
    command = [sys.executable, "-m", module, *settings]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


@functools.cache
def resumed(length: str, *, cold: bool = False) -> dict[str, Any]:
    """What resuming that text's session takes, and tokens after it."""
    return with_session("benches.long_session", length, WARM_UP + STEPS, int(cold))


def read_rate(length: str) -> float:
    """Tokens per second of the reading."""
    (reading,) = kept(length)[1]["reading"].values()
    return float(reading["tokens"] / reading["seconds"])


@figure(
    "facts_1m",
    "20 facts of different kinds in one text of 1M tokens, 128 times the trained window",
    unit="of all",
    target=0.85,
    peer=FACTS_PEER,
    limit="1",
    takes_hours=True,
)
def facts_1m() -> Result:
    return found_in(kept("1M")[1])


@figure(
    "ppl_1m_over_4k",
    "perplexity of a book's last 2,048 tokens with 1M tokens before them over that with 4K before them",
    unit="times",
    target=1.0,
    at_most=True,
    peer="the same model and tokens, dense, 4,096 tokens before each 512 of them",
    limit="what the far past tells of a text's next words: 1 where it tells nothing",
    takes_hours=True,
)
def ppl_1m_over_4k() -> Result:
    found = with_session("benches.long_text", "1M")
    long, short = found["nats"], found["nats_4k"]
    samples = [math.exp(one - other) for one, other in zip(long, short, strict=True)]
    details = {
        "ppl_1m": round(math.exp(statistics.mean(long)), 3),
        "ppl_4k": round(math.exp(statistics.mean(short)), 3),
        "tokens": found["tokens"],
    }
    return Result(samples, details)


@figure(
    "rss_1m_over_allowance",
    "peak resident memory of reading 1M tokens and answering, `--ram 4GiB`",
    unit="of (model + limit) and 15 %",
    target=1.0,
    at_most=True,
    peer="the same command on 1K tokens, which is what the model takes",
    limit="the limit counts all pages; above it are summaries and the activations of one chunk",
    takes_hours=True,
)
def rss_1m_over_allowance() -> Result:
    model = evaluate("1K", "--tasks", "perplexity")["peak_memory_bytes"]
    peak = kept("1M")[1]["peak_memory_bytes"]
    return Result([peak / (1.15 * (model + RAM))], {"model_mib": model >> 20, "peak_mib": peak >> 20})


@figure(
    "disk_1m_bits",
    "bits on disk per key or value of 1M tokens",
    unit="bits",
    target=16 * 1.03,
    at_most=True,
    peer="bfloat16: 16",
    limit="16",
    takes_hours=True,
)
def disk_1m_bits() -> Result:
    from stratakv.cli.models import find_model, load

    place, _ = kept("1M")
    config = load(find_model(None)).model.config
    head = config.hidden_size // config.num_attention_heads
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * head * resumed("1M")["tokens"]
    used = sum(path.stat().st_size for path in (place / "sessions").rglob("*") if path.is_file())
    return Result([8 * used / values], {"gib": round(used / (1 << 30), 2)})


@figure(
    "prefill_1m_over_16k",
    "tokens per second of reading 1M tokens over those of reading 16K",
    unit="times",
    target=0.8,
    peer="the same command on 16K tokens",
    limit="1",
    takes_hours=True,
)
def prefill_1m_over_16k() -> Result:
    rates = read_rate("1M"), read_rate("16K")
    details = {"tokens_per_s": round(rates[0], 1), "tokens_per_s_16k": round(rates[1], 1)}
    return Result([rates[0] / rates[1]], details)


def decode_ratio(*, cold: bool) -> Result:
    """Tokens per second after resuming 1M tokens, over those of 16K that are in RAM."""
    part = slice(0, COLD) if cold else slice(WARM_UP, None)
    seconds = statistics.median(resumed("16K")["seconds"][WARM_UP:])
    samples = [seconds / one for one in resumed("1M", cold=cold)["seconds"][part]]
    ours = seconds / statistics.median(samples)
    return Result(
        samples, {"ms_per_token": round(1000 * ours, 1), "ms_per_token_16k": round(1000 * seconds, 1)}
    )


@figure(
    "decode_1m_over_16k",
    "tokens per second of decoding after 1M tokens over those after 16K, the first 96 tokens left out",
    unit="times",
    target=0.7,
    peer="the same after 16K tokens",
    limit="1: both read 2,048 tokens a step",
    takes_hours=True,
)
def decode_1m_over_16k() -> Result:
    return decode_ratio(cold=False)


@figure(
    "decode_1m_cold_over_16k",
    "the same, the first 16 tokens after resuming, nothing of the files in the system's cache",
    unit="times",
    target=0.3,
    peer="the same after 16K tokens, warm",
    limit="1 at most; reading 2,048 tokens of every layer from disk takes longer",
    takes_hours=True,
)
def decode_1m_cold_over_16k() -> Result:
    return decode_ratio(cold=True)


def resume_seconds(*, cold: bool) -> Result:
    found = resumed("1M", cold=cold)
    return Result([found["first"]], {"tokens": found["tokens"], "peak_mib": found["peak_rss_bytes"] >> 20})


@figure(
    "resume_1m_s",
    "a session of 1M tokens resumed to its next token, the model loaded",
    unit="s",
    target=3,
    at_most=True,
    peer="reading the text again: prefill_1m_over_16k",
    limit="reading summaries: 0.9 GB",
    takes_hours=True,
)
def resume_1m_s() -> Result:
    return resume_seconds(cold=False)


@figure(
    "resume_1m_cold_s",
    "the same, nothing of the files in the system's cache",
    unit="s",
    target=10,
    at_most=True,
    peer="reading the text again: prefill_1m_over_16k",
    limit="reading summaries from disk: 0.9 GB",
    takes_hours=True,
)
def resume_1m_cold_s() -> Result:
    return resume_seconds(cold=True)
