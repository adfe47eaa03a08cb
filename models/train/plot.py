"""Shares between 0 and 1 against something, as an SVG of panels side by side: one line for each name.

Flow: calibrate | benchmarks > [plot] > docs
Never: a library for figures in the product's dependencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, MARGIN, KEY = 420, 320, 50, 190
LINE_HEIGHT = 18
COLOURS = ("#0b6", "#06c", "#c60", "#c06", "#666", "#a0a", "#099", "#990", "#333", "#f44")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what runs across, in words, its ticks from 0 up, and points (across, share) by name."""

    across: str
    ticks: Sequence[float]
    lines: Mapping[str, Points]


def draw(up: str, panels: Sequence[Panel]) -> str:
    """Draw panels that share what runs up, in words, and the names, at most ten."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    size = f'width="{len(panels) * WIDTH + KEY}" height="{HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 20}">{escape(up)}</text>',
    ]
    colours = dict(zip(names, COLOURS, strict=False))
    for at, panel in enumerate(panels):
        parts += draw_panel(at * WIDTH + MARGIN, panel, colours)
    for at, (name, colour) in enumerate(colours.items()):
        place = f'x="{len(panels) * WIDTH + 10}" y="{MARGIN + LINE_HEIGHT * at}"'
        parts.append(f'<text {place} fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def draw_panel(left: int, panel: Panel, colours: Mapping[str, str]) -> list[str]:
    """Draw axes, ticks and lines; `left` is where the axes meet, in pixels."""
    wide, high, bottom = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN, HEIGHT - MARGIN
    parts = [f'<path d="M{left} {MARGIN}V{bottom}h{wide}" fill="none" stroke="black"/>']
    for tick in panel.ticks:
        x = left + wide * tick / panel.ticks[-1]
        parts.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for share in SHARES:
        y = bottom - high * share
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{share:.0%}</text>')
    parts.append(
        f'<text x="{left + wide / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(panel.across)}</text>'
    )
    for name, points in panel.lines.items():
        path = " ".join(f"{left + wide * x / panel.ticks[-1]:.1f},{bottom - high * y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
    return parts
