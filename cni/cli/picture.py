"""A node and its tunnels as SVG: boxes that fit their text, a legend, and colours for a dark background too. Pure.

A browser chooses the font, so the width of a text is not known here; each letter counts as wide as the widest of a
monospaced font. The boxes stand in rows: the node on the left, its peers beside it, one below the other, in as many
columns as make the picture about as high as wide.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

LETTER, LINE, PAD, GAP = 7.3, 17, 10, 26  # pixels: a letter of 12 px, a line, the edge of a box, between boxes
LEGEND = {
    "direct": "answers at a configured endpoint",
    "learned": "answers from another endpoint",
    "silent": "no handshake for 180 s",
    "no device": "not on the device",
}
STYLE = """\
svg { background: #ffffff; font: 12px ui-monospace, monospace }
text { fill: #212529 } .box { fill: #f8f9fa; stroke: #343a40 } .head { font-weight: bold }
.line { stroke-width: 2; fill: none } .direct { stroke: #2b8a3e } .learned { stroke: #1971c2 }
.silent { stroke: #c92a2a; stroke-dasharray: 6 4 } .no-device { stroke: #868e96; stroke-dasharray: 2 4 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181b } text { fill: #e9ecef } .box { fill: #24272b; stroke: #adb5bd }
  .direct { stroke: #51cf66 } .learned { stroke: #4dabf7 } .silent { stroke: #ff8787 } .no-device { stroke: #868e96 }
}"""


class Spoke(NamedTuple):
    """A peer: the lines of its box, and how it is reached (a key of LEGEND)."""

    lines: tuple[str, ...]
    way: str


class Box(NamedTuple):
    """A box at its place."""

    lines: Sequence[str]
    left: float
    top: float
    width: float
    height: float


def drawn(own: Sequence[str], spokes: Sequence[Spoke]) -> str:
    """The picture. It ends with a line break."""
    centre = _sized(own)
    columns = _columns([_sized(spoke.lines) for spoke in spokes])
    placed, x = [], centre.width + 3 * GAP
    for column in columns:
        y = float(GAP)
        for box in column:
            placed.append(box._replace(left=x, top=y))
            y += box.height + GAP
        x += max(box.width for box in column) + 3 * GAP
    bottom = max((box.top + box.height for box in placed), default=0.0)
    height = max(bottom, centre.height + GAP)
    middle = centre._replace(left=GAP, top=max(GAP, (height - centre.height) / 2))
    lines = [_line(middle, box, spoke.way) for box, spoke in zip(placed, spokes, strict=True)]
    shown = [way for way in LEGEND if any(spoke.way == way for spoke in spokes)]
    legend, wide = _legend(shown, height + 2 * GAP)
    width, height = max(x, wide, centre.width + 2 * GAP), height + 2 * GAP + LINE * (len(shown) + 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *lines, *map(_drawn, [middle, *placed]), *legend, "</svg>", ""])


def width_of(text: str) -> float:
    """Pixels that a line needs at most. East Asian wide characters count twice."""
    return sum(LETTER * (2 if unicodedata.east_asian_width(letter) in "WF" else 1) for letter in text)


def _sized(lines: Sequence[str]) -> Box:
    return Box(lines, 0, 0, max(map(width_of, lines)) + 2 * PAD, len(lines) * LINE + PAD)


def _columns(boxes: Sequence[Box]) -> list[list[Box]]:
    """The boxes in columns of about equal height; as many as make the whole about square."""
    if not boxes:
        return []
    area = sum((box.height + GAP) * (box.width + 3 * GAP) for box in boxes)
    most = max(math.sqrt(area), max(box.height for box in boxes) + GAP)
    columns: list[list[Box]] = [[]]
    high = 0.0
    for box in boxes:
        if columns[-1] and high + box.height + GAP > most:
            columns.append([])
            high = 0.0
        columns[-1].append(box)
        high += box.height + GAP
    return columns


def _line(own: Box, other: Box, way: str) -> str:
    """From the right edge of the node to the left edge of a peer, behind all boxes."""
    x1, y1 = own.left + own.width, own.top + own.height / 2
    x2, y2 = other.left, other.top + other.height / 2
    half = (x1 + x2) / 2
    path = f"M{x1:.0f} {y1:.0f} C{half:.0f} {y1:.0f} {half:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    return f'<path class="line {way.replace(" ", "-")}" d="{path}"/>'


def _drawn(box: Box) -> str:
    parts = [
        f'<rect class="box" x="{box.left:.0f}" y="{box.top:.0f}" width="{box.width:.0f}" height="{box.height:.0f}"'
        ' rx="8"/>'
    ]
    for n, line in enumerate(box.lines):
        kind = ' class="head"' if n == 0 else ""
        x, y = box.left + PAD, box.top + LINE * (n + 1)
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}"{kind}>{escape(line)}</text>')
    return "\n".join(parts)


def _legend(ways: Sequence[str], top: float) -> tuple[list[str], float]:
    parts = []
    for n, way in enumerate(ways):
        y = top + n * LINE
        parts.append(f'<path class="line {way.replace(" ", "-")}" d="M{GAP} {y:.0f} H{GAP + 40}"/>')
        parts.append(f'<text x="{GAP + 50}" y="{y + 4:.0f}">{way}: {LEGEND[way]}</text>')
    return parts, max((width_of(f"{way}: {LEGEND[way]}") for way in ways), default=0) + 2 * GAP + 50
