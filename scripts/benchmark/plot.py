"""The scaling curves as an SVG that reads in light and dark."""

from __future__ import annotations

import math
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 60, 48, 40, 130


def svg(result: dict[str, Any]) -> str:
    """ADD's median over the number of attachments, both axes logarithmic."""
    steps = result["steps"]
    curves = {name: values["p50"] for name, values in result["curves"].items()}
    highest, lowest = max(map(max, curves.values())), min(map(min, curves.values()))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(step / steps[0]) / math.log(steps[-1] / steps[0])

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * math.log(value / lowest) / math.log(highest / lowest)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        "<style>text,.axis{fill:#222}.axis{stroke:#888;fill:none}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
        f'<text x="{LEFT}" y="20" font-size="14">ADD, median in ms, by attached containers</text>',
        f'<path class="axis" d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
    ]
    parts += [
        f'<text x="{x(step):.0f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>' for step in steps
    ]
    for value in (lowest, math.sqrt(lowest * highest), highest):
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.1f}</text>')
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values, strict=False))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        end = f'x="{x(steps[len(values) - 1]) + 8:.0f}" y="{y(values[-1]) + 4:.0f}"'
        parts.append(f'<text {end} style="fill:{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
