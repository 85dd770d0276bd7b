"""The README's tables, made from `results/figures.json` so that no number is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benches.harness import FIGURES_FILE

README = Path(__file__).parent.parent / "README.md"
PEERS = ("decode_8k_vs_llamacpp", "decode_32k_vs_llamacpp", "decode_128k_vs_llamacpp")


def render() -> str:
    """The table, with what it was measured on below."""
    entries = json.loads(FIGURES_FILE.read_text())
    lines = ["| figure | measured | spread | asked | beside |", "|---|---:|---:|---:|---|"]
    for key, entry in entries.items():
        low, high = entry["spread"]
        asked = entry["target"] + ("" if entry["holds"] else " (**missed**)")
        measured = f"{entry['value']:.3g} {entry['unit']}"
        title = f"{entry['title']} (`{key}`)"
        lines.append(f"| {title} | {measured} | {low:.3g} to {high:.3g} | {asked} | {entry['peer']} |")
    made = sorted({(entry["hardware"], entry["versions"]) for entry in entries.values()})
    return (
        "\n".join(lines) + "\n\n" + "\n".join(f"Measured on {where}; {what}." for where, what in made) + "\n"
    )


def render_peers() -> str:
    """Tokens per second of each peer, and how many times that ours are; then the bytes of the caches."""
    entries = json.loads(FIGURES_FILE.read_text())
    measured = [entries[key]["details"] for key in PEERS if key in entries]
    names = ["ours", *(measured[0]["ratios"] if measured else [])]
    heads = [f"{one['context'] >> 10}K, tokens/s | cache, MiB" for one in measured]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * (2 * len(heads))]
    for name in names:
        cells = [name]
        for one in measured:
            ratio = f" (ours {one['ratios'][name]:.3g} times)" if name in one["ratios"] else ""
            cells += [f"{one['tokens_per_s'][name]:.3g}{ratio}", f"{one['cache_mib'][name]:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


PARTS = {"figures": render, "peers": render_peers}


def part(name: str) -> re.Pattern[str]:
    """Where the README has a part."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def write() -> None:
    """Puts the tables into the README."""
    text = README.read_text()
    for name, make in PARTS.items():
        made = make()
        text = part(name).sub(lambda match, made=made: match[1] + made + match[2], text)
    README.write_text(text)


def is_current() -> bool:
    """Whether the README shows the last measured figures."""
    text = README.read_text()
    return all(f"<!-- {name} -->\n{make()}<!-- /{name} -->" in text for name, make in PARTS.items())
