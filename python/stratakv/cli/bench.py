"""`stratakv bench`: decode speed of the tiered cache beside transformers' own, side by side.

Both caches hold the same context; rounds alternate between them, so that whatever else the
machine does hits both. The greedy tokens must be the same, or the bench fails.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from stratakv.cli import bench_gpu, options
from stratakv.cli.errors import CommandError
from stratakv.cli.models import LoadedModel, find_model, load
from stratakv.cli.output import Output, format_count, table
from stratakv.cli.storage import open_cache

if TYPE_CHECKING:
    import torch

    from stratakv.cli.engine import Driver, Interrupt

__all__ = ["configure", "run"]

WARM_UP_TOKENS = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench`, and of `bench gpu`."""
    subjects = parser.add_subparsers(dest="subject", metavar="gpu", help="measure this machine's GPU instead")
    summary = "whether the kernels are right on this GPU, and how far they are from what it can do"
    bench_gpu.configure(
        subjects.add_parser("gpu", help=summary, description=summary[0].upper() + summary[1:] + ".")
    )
    parser.add_argument(
        "--context",
        type=options.positive,
        default=4096,
        metavar="N",
        help="tokens in the caches (default: 4096)",
    )
    parser.add_argument(
        "--tokens", type=options.positive, default=16, metavar="N", help="tokens per round (default: 16)"
    )
    parser.add_argument("--rounds", type=options.positive, default=5, metavar="N", help="rounds (default: 5)")
    options.add_tier_options(parser, ram="1GiB")
    options.add_model_options(parser)
    options.add_progress_option(parser)
    options.add_json_option(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Fills both caches, times decoding in alternating rounds, reports medians and spread."""
    if args.subject == "gpu":
        return bench_gpu.run(args, out)
    from stratakv.cli.engine import Driver, Interrupt, StoppedError
    from stratakv.hf.library import DynamicCache

    loaded = load(find_model(args.model), args.dtype, out=out)
    ids = _context(loaded, args.context)
    with (
        Interrupt() as interrupt,
        tempfile.TemporaryDirectory(prefix="stratakv-bench-") as directory,
        open_cache(loaded.model, directory, ram=args.ram, disk_limit=args.disk_limit) as tiered,
    ):
        caches = {"DynamicCache": DynamicCache(config=loaded.model.config), "TieredCache": tiered}
        common: dict[str, Any] = {
            "interrupt": interrupt,
            "out": out,
            "chunk": args.chunk,
            "show": args.progress,
        }
        sides = [Side(name, Driver(loaded, cache, **common)) for name, cache in caches.items()]
        try:
            _measure(sides, ids, args, interrupt)
        except StoppedError:
            raise KeyboardInterrupt from None
        return _report(loaded, sides, len(ids), args, out)


def _measure(sides: list[Side], ids: list[int], args: argparse.Namespace, interrupt: Interrupt) -> None:
    for side in sides:
        side.fill(ids)
    for side in sides:
        side.decode(WARM_UP_TOKENS)
    for _ in range(args.rounds):
        for side in sides:
            if interrupt.requested:
                raise KeyboardInterrupt
            side.rounds.append(side.decode(args.tokens))


class Side:
    """One cache under test: fills, decodes, and remembers its speeds and tokens."""

    def __init__(self, name: str, driver: Driver) -> None:
        self.name = name
        self.driver = driver
        self.tokens: list[int] = []
        self.rounds: list[float] = []
        self.prefill_rate = 0.0
        self.logits_V: torch.Tensor

    def fill(self, ids: list[int]) -> None:
        """Prefills the context."""
        read = self.driver.prefill(ids, label=self.name)
        self.prefill_rate = read.tokens / read.seconds
        self.logits_V = read.logits_V

    def decode(self, count: int) -> float:
        """Greedy tokens, end-of-text included; tokens per second."""
        start = time.perf_counter()
        for _ in range(count):
            self.tokens.append(int(self.logits_V.argmax()))
            self.logits_V = self.driver.step(self.tokens[-1:])
        return count / (time.perf_counter() - start)


def _context(loaded: LoadedModel, length: int) -> list[int]:
    from stratakv.cli.prompts import encode
    from stratakv.cli.texts import standard_library_text

    paragraphs, _ = standard_library_text(length + 2000, lambda text: len(encode(loaded.tokenizer, text)))
    ids = encode(loaded.tokenizer, "\n\n".join(paragraphs))[:length]
    if len(ids) < length:
        raise CommandError(f"the text has only {len(ids)} tokens", f"give --context {len(ids)} or less")
    return ids


def _report(
    loaded: LoadedModel, sides: list[Side], context: int, args: argparse.Namespace, out: Output
) -> int:
    baseline, tiered = sides
    same = baseline.tokens == tiered.tokens
    ratios = [mine / theirs for mine, theirs in zip(tiered.rounds, baseline.rounds, strict=True)]
    report = {
        "model": loaded.name,
        "dtype": loaded.dtype,
        "context_tokens": context,
        "rounds": args.rounds,
        "tokens_per_round": args.tokens,
        "same_tokens": same,
        "ratio": statistics.median(ratios),
        **{
            side.name: {
                "decode_tokens_per_second": _spread(side.rounds),
                "prefill_tokens_per_second": side.prefill_rate,
            }
            for side in sides
        },
    }
    if out.json_mode:
        out.json(report)
    else:
        _tell(report, sides, ratios, out)
    if not same:
        out.error("the two caches gave different tokens")
    return 0 if same else 1


def _tell(report: dict[str, Any], sides: list[Side], ratios: list[float], out: Output) -> None:
    out.result(
        f"{report['model']}, {report['dtype']}, {format_count(report['context_tokens'])} tokens of context, "
        f"{report['rounds']} alternating rounds of {report['tokens_per_round']} tokens"
    )
    rows = [
        [
            side.name,
            f"{statistics.median(side.rounds):.1f}",
            f"{min(side.rounds):.1f} to {max(side.rounds):.1f}",
            f"{side.prefill_rate:,.0f}",
        ]
        for side in sides
    ]
    lines = table(["CACHE", "DECODE TOK/S", "SPREAD", "PREFILL TOK/S"], rows, right=(1, 2, 3))
    out.result(out.style.bold(lines[0]))
    for line in lines[1:]:
        out.result(line)
    out.result(f"ratio {report['ratio']:.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")


def _spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
