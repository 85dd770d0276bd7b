"""Predicts a session's last tokens again, in a process of its own; prints one JSON line.

python -m benches.long_text DIRECTORY NAME RAM BUDGET

With all of the session before them, read as decoding reads it; and with the session's first tokens, which
every reading keeps, and the last of the 4K before each part alone, dense. Mean nats per token of each part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PART = 512
PARTS = 4
BEFORE = 4096
SINKS = 16
# Tokens of one forward pass; each selects as if it came alone.
PIECE = 16


def nats(logits_TV: Tensor, said_T: Tensor) -> Tensor:
    """The loss of each token (T)."""
    return torch.nn.functional.cross_entropy(logits_TV.float(), said_T, reduction="none")


def with_all(forward: Callable[[list[int]], Tensor], ids: list[int]) -> list[float]:
    """The mean loss of each part, where `forward` continues what stands before them."""
    first = len(ids) - PARTS * PART
    losses = []
    for start in range(first, len(ids), PIECE):
        logits_TV = forward(ids[start - 1 : start - 1 + PIECE])
        losses.append(nats(logits_TV, torch.tensor(ids[start : start + PIECE])))
    means: list[float] = torch.cat(losses).view(PARTS, PART).mean(1).tolist()
    return means


def with_little(forward: Callable[[list[int]], Tensor], ids: list[int]) -> list[float]:
    """The same, where `forward` begins anew."""
    losses = []
    for start in range(len(ids) - PARTS * PART, len(ids), PART):
        given = ids[:SINKS] + ids[start - BEFORE + SINKS : start + PART - 1]
        losses.append(float(nats(forward(given)[-PART:], torch.tensor(ids[start : start + PART])).mean()))
    return losses


@torch.inference_mode()
def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    ram, budget = map(int, sys.argv[3:5])

    from stratakv.cli.models import find_model, give_large_blocks_back, load
    from stratakv.cli.output import Output
    from stratakv.cli.storage import open_selecting, saved_ids
    from stratakv.hf.library import cache_kwargs

    give_large_blocks_back()
    out = Output(json_mode=True)
    model = load(find_model(None)).model
    ids = list(saved_ids(str(directory), name, ram=ram))

    def logits(given: list[int], **options: Any) -> Tensor:
        logits_TV: Tensor = model(input_ids=torch.tensor([given]), **options).logits[0]
        return logits_TV

    with open_selecting(model, str(directory), budget=budget, out=out, ram=ram, name=name) as cache:
        cache.match(ids)
        with cache.fork() as fork:
            fork.crop(len(ids) - PARTS * PART - 1 - fork.get_seq_length())
            long = with_all(partial(logits, use_cache=True, **cache_kwargs(fork)), ids)
    short = with_little(partial(logits, use_cache=False), ids)
    print(json.dumps({"tokens": len(ids), "nats": long, "nats_4k": short}))


if __name__ == "__main__":
    main()
