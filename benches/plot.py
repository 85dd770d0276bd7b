"""Draws docs/decode.svg from the recorded figures: tokens per second and bytes against context.

`python -m benches.plot`, after `make figures KEY="decode_8k_vs_llamacpp decode_32k_vs_llamacpp ..."`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benches.harness import FIGURES_FILE
from benches.table import PEERS

OURS = "StrataKV, budget 1024"
FILE = Path(__file__).parent.parent / "docs" / "decode.svg"


def series(details: list[dict[str, Any]], quantity: str) -> dict[str, list[tuple[int, float]]]:
    """(context, value) of every peer, ours last so that it is drawn on top."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in details:
        for name, value in one[quantity].items():
            found.setdefault(name, []).append((one["context"], value))
    found[OURS] = found.pop("ours")
    return found


def draw(details: list[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "stratakv"
    from matplotlib import pyplot as plt

    panels = {"tokens_per_s": "tokens per second", "cache_mib": "cache in RAM, MiB"}
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for axis, (quantity, label) in zip(axes, panels.items(), strict=True):
        for name, points in series(details, quantity).items():
            style = {"color": "black", "linewidth": 2.5} if name == OURS else {"linewidth": 1.2}
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, label=name, **style)
        contexts = [one["context"] for one in details]
        axis.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel=label)
        axis.set_xticks(contexts, [f"{context >> 10}K" for context in contexts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    known = json.loads(FIGURES_FILE.read_text())
    missing = [key for key in PEERS if key not in known]
    if missing:
        raise SystemExit(f"not measured yet: make figures KEY='{' '.join(missing)}'")
    draw([known[key]["details"] for key in PEERS], FILE)


if __name__ == "__main__":
    main()
