"""Loss curves as an SVG file, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 56, 16, 28, 40
# Told apart by dashes as well as by colour (Okabe and Ito's palette).
STYLES = (("#0072b2", ""), ("#d55e00", "6 3"), ("#009e73", "2 3"), ("#cc79a7", "8 3 2 3"), ("#444444", "1 4"))
NUM_TICKS = 5
POINTS_MAX = 400


def loss_plot(curves: Mapping[str, Sequence[tuple[float, float]]], title: str = "") -> str:
    """An SVG of curves of (step, loss).

    Args:
        curves: points by name, at least one in all.
        title: above the plot.

    Raises:
        ValueError: no points.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("a plot needs at least one point")
    steps, losses = [x for x, _ in points], [y for _, y in points]
    low, high = min(losses), max(losses)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    first, last = min(steps), max(*steps, min(steps) + 1)

    def x_of(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y_of(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#444444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in range(NUM_TICKS + 1):
        loss = low + (high - low) * tick / NUM_TICKS
        step = first + (last - first) * tick / NUM_TICKS
        y, x = y_of(loss), x_of(step)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{step:.0f}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">step; loss in nats per token</text>'
    )
    for index, (name, curve) in enumerate(curves.items()):
        color, dashes = STYLES[index % len(STYLES)]
        every = -(-len(curve) // POINTS_MAX) or 1
        line = " ".join(f"{x_of(step):.1f},{y_of(loss):.1f}" for step, loss in curve[::every])
        style = f'fill="none" stroke="{color}" stroke-width="1.5" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{line}" {style}/>')
        y = TOP + 14 + 16 * index
        parts.append(f'<line x1="{WIDTH - 170}" x2="{WIDTH - 140}" y1="{y - 4}" y2="{y - 4}" {style}/>')
        parts.append(f'<text x="{WIDTH - 134}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
