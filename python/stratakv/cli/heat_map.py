"""A page that shows where each word of an answer came from: words down, the documents across.

One file without scripts, fonts or anything to fetch.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from stratakv.cli.sources import Source, Trace

__all__ = ["page", "write_page"]

COLUMNS_MAX = 240
CELL = 4
ROW = 18
LABELS = 150
FAINTEST = 0.03
EXCERPT_LINES_MAX = 12
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1160px; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { font: 11px ui-monospace, monospace; fill: currentColor; }
pre { background: #8881; padding: .6rem; overflow-x: auto; } small { opacity: .7; }
:root { color-scheme: light dark; }
"""


def write_page(path: str, trace: Trace, words: Sequence[str], question: str, count: int) -> None:
    """Writes the page, readable by its owner alone.

    Raises:
        OSError: it can't be written.
    """
    file = Path(path)
    file.touch(mode=0o600)
    file.write_text(page(trace, words, question, count), encoding="utf-8")


def page(trace: Trace, words: Sequence[str], question: str, count: int) -> str:
    """The page.

    Args:
        trace: where the steps looked, one row for each word.
        words: the answer's tokens as text.
        question: what was asked.
        count: sources to name, at most.
    """
    answer = html.escape("".join(words).strip())
    parts = [
        f"<h1>{html.escape(question)}</h1><p>{answer}</p>",
        f"<h2>Where each word came from</h2>{_heat_map(trace, words)}",
        "<p><small>Down: the answer, a row for each token. Across: the text, from its beginning to its end. "
        "The darker, the more of the attention that fetched the token.</small></p>",
        "<h2>Read most</h2>",
        *(_excerpt(trace, source) for source in trace.sources(count)),
    ]
    head = f"<meta charset=utf-8><title>{html.escape(question)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _heat_map(trace: Trace, words: Sequence[str]) -> str:
    """An SVG: the rows of the trace over at most COLUMNS_MAX columns."""
    blocks = min((len(row) for row in trace.rows), default=0)
    if blocks == 0:
        return "<p>The text is too short for a picture.</p>"
    per_column = -(-blocks // COLUMNS_MAX)
    columns = -(-blocks // per_column)
    width, height = LABELS + columns * CELL, (len(trace.rows) + 1) * ROW
    cells = [_files(trace, per_column, height)]
    for index, (row, word) in enumerate(zip(trace.rows, words, strict=False)):
        top = (index + 1) * ROW
        label = html.escape(word.strip() or repr(word)[1:-1])
        cells.append(f'<text x="{LABELS - 6}" y="{top + 12}" text-anchor="end">{label}</text>')
        summed = [float(row[start : start + per_column].sum()) for start in range(0, blocks, per_column)]
        most = max(summed)
        for column, value in enumerate(summed):
            # Cubes of shares: their root brings back what the eye can compare.
            strength = (value / most) ** (1 / 3) if most > 0 else 0.0
            if strength > FAINTEST:
                lines = trace.lines_of(column * per_column)
                title = html.escape(str(lines)) if lines else ""
                cells.append(
                    f'<rect x="{LABELS + column * CELL}" y="{top}" width="{CELL}" height="{ROW - 2}" '
                    f'fill="#0a6" fill-opacity="{strength:.2f}"><title>{title}</title></rect>'
                )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="heat map">{"".join(cells)}</svg>'


def _files(trace: Trace, per_column: int, height: int) -> str:
    """A line where each file begins, with its name as far as there is room."""
    marks, free, known = [], 0.0, None
    for column in range(-(-len(trace.rows[0]) // per_column)):
        lines = trace.lines_of(column * per_column)
        if lines is None or lines.name == known:
            continue
        known, x = lines.name, LABELS + column * CELL
        marks.append(
            f'<line x1="{x}" x2="{x}" y1="0" y2="{height}" stroke="currentColor" stroke-opacity=".2"/>'
        )
        if x >= free:
            name = Path(known).name
            marks.append(f'<text x="{x + 2}" y="11">{html.escape(name)}</text>')
            free = x + 2 + 7 * len(name)
    return "".join(marks)


def _excerpt(trace: Trace, source: Source) -> str:
    lines = source.lines
    text = next(file.text for file in trace.document.files if file.name == lines.name)
    own = text.split("\n")[lines.first - 1 : lines.last][:EXCERPT_LINES_MAX]
    title = f"<b>{html.escape(str(lines))}</b> <small>{100 * source.weight:.0f} %</small>"
    return f"<p>{title}</p><pre>{html.escape(chr(10).join(own))}</pre>"
