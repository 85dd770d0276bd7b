"""Predicts a session's last tokens again, in a process of its own; prints one JSON line.

python -m benches.long_text DIRECTORY NAME RAM BUDGET

With all of the session before them, read as decoding reads it; and with the session's first tokens, which
every reading keeps, and the last of the 4K before each part alone, dense. Mean nats per token of each part.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

PART = 512
PARTS = 4
BEFORE = 4096
SINKS = 16


def with_little(model: nn.Module, ids: list[int]) -> list[float]:
    """The mean loss of each part, with the 4K before it alone."""
    losses = []
    for start in range(len(ids) - PARTS * PART, len(ids), PART):
        given = ids[:SINKS] + ids[start - BEFORE + SINKS : start + PART - 1]
        logits_TV = model(input_ids=torch.tensor([given]), use_cache=False).logits[0, -PART:].float()
        said_T = torch.tensor(ids[start : start + PART])
        losses.append(float(torch.nn.functional.cross_entropy(logits_TV, said_T)))
    return losses


@torch.inference_mode()
def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    ram, budget = map(int, sys.argv[3:5])

    from stratakv.cli.eval import losses_of
    from stratakv.cli.models import find_model, give_large_blocks_back, load
    from stratakv.cli.output import Output
    from stratakv.cli.storage import open_selecting, saved_ids

    give_large_blocks_back()
    out = Output(json_mode=True)
    model = load(find_model(None)).model
    ids = list(saved_ids(str(directory), name, ram=ram))

    with open_selecting(model, str(directory), budget=budget, out=out, ram=ram, name=name) as cache:
        cache.match(ids)
        with cache.fork() as fork:
            fork.crop(len(ids) - PARTS * PART - 1 - fork.get_seq_length())
            losses_T = losses_of(model, fork, ids[-PARTS * PART - 1 :])
    long, short = losses_T.view(PARTS, PART).mean(1).tolist(), with_little(model, ids)
    print(json.dumps({"tokens": len(ids), "nats": long, "nats_4k": short}))


if __name__ == "__main__":
    main()
