"""The picture of both sides of detection, as SVG without a library: how soon, and how often wrongly."""

import math
import statistics
from html import escape
from typing import Any

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 90, 40, 60, 70
FONT = 'font-family="sans-serif" font-size="13" aria-label="Time to notice a death against false deaths"'
FIRST_S, LAST_S = 0.1, 100.0
COLOURS = ("#0a7d34", "#555555", "#b3261e")


def draw(seen: dict[str, dict[str, Any]]) -> str:
    """One point for each contender: median time from kill -9 to DEAD, and disturbances taken for a death."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="28" font-size="16">A death noticed soon, and nothing else taken for one</text>',
    ]
    for seconds in (0.1, 1, 10, 100):
        x = _x(seconds)
        parts.append(f'<line x1="{x:.0f}" y1="{TOP}" x2="{x:.0f}" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 20, f"{seconds:g} s", "middle"))
    for percent in (0, 50, 100):
        y = _y(percent)
        parts.append(f'<line x1="{LEFT}" y1="{y:.0f}" x2="{WIDTH - RIGHT}" y2="{y:.0f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{percent} %", "end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 22, "from kill -9 of a raylet to DEAD in the GCS (median)", "middle"))
    parts.append(
        f'<text transform="translate(24 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "disturbances taken for a death</text>"
    )
    heights: list[float] = []  # of the words so far: who is beside another gets a line of its own
    for (name, found), colour in zip(seen.items(), COLOURS, strict=False):
        if found["kill"]["dead_s"] and found["disturbed"]:
            parts += _point(name, found, colour, heights)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _point(name: str, found: dict[str, Any], colour: str, heights: list[float]) -> list[str]:
    median_s = statistics.median(found["kill"]["dead_s"])
    died, of = sum(died for _, _, died in found["disturbed"]), len(found["disturbed"])
    x, y = _x(median_s), _y(100 * died / of)
    side, anchor = (12, "start") if x < WIDTH / 2 else (-12, "end")
    text = f"{name}: {median_s:.2f} s, {died} of {of}"
    up = y > TOP + 60
    height = y - 10 if up else y + 22
    while any(abs(height - other) < 16 for other in heights):
        height += -17 if up else 17
    heights.append(height)
    return [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{colour}"/>',
        _text(x + side, height, text, anchor, colour),
    ]


def _x(seconds: float) -> float:
    share = math.log(max(seconds, FIRST_S) / FIRST_S) / math.log(LAST_S / FIRST_S)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(percent: float) -> float:
    return HEIGHT - BOTTOM - percent / 100 * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222222") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
