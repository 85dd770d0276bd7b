"""The README's table of figures, made from `results/figures.json` so that no number is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benches.harness import FIGURES_FILE

README = Path(__file__).parent.parent / "README.md"
PART = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)


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


def write() -> None:
    """Puts the table into the README."""
    README.write_text(PART.sub(lambda match: match[1] + render() + match[2], README.read_text()))


def is_current() -> bool:
    """Whether the README shows the last measured figures."""
    match = PART.search(README.read_text())
    return match is not None and match[0] == f"<!-- figures -->\n{render()}<!-- /figures -->"
