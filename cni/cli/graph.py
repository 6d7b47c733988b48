"""`zlayer-cni graph`: this node, its tunnels and services as a picture: DOT for Graphviz, or SVG."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from html import escape
from typing import Any

from cni.cli import table
from cni.cli.ask import ask
from cni.cli.peers import way

WIDTH, BOX, LINE = 1000, 250, 17  # pixels
COLOURS = {"direct": "#2b8a3e", "learned": "#1971c2", "silent": "#c92a2a", "no device": "#868e96"}


def run(options: argparse.Namespace) -> int:
    """Print the picture; raises NoDaemon, Refused."""
    found = ask(options.run_dir, "graph")
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        found = table.escape_control(found)
        sys.stdout.write(as_svg(found) if options.svg else as_dot(found))
    return 0


def _own(found: dict[str, Any]) -> list[str]:
    node = found["node"]
    head = [f"{node['name']} (node {node['node_id']})", ", ".join(node["addresses"])]
    return head + [f"{each['service']} ({each['mode']}) {', '.join(each['subnets'])}" for each in node["services"]]


def _other(peer: dict[str, Any]) -> list[str]:
    name = peer["name"] or peer["public_key"][:10]
    of = [f"for service {peer['service']}"] if peer["service"] else []
    allowed = peer["allowed_ips"]
    more = [f"and {len(allowed) - 8} more"] if len(allowed) > 8 else []
    return [name, peer["endpoint"] or "(it calls)", *of, *allowed[:8], *more]


def as_dot(found: dict[str, Any]) -> str:
    """The picture in Graphviz' DOT language."""

    def label(lines: Sequence[str]) -> str:
        return "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)

    text = [
        "graph overlay {",
        '  layout="circo"; node [shape="box", style="rounded"];',
        f'  own [label="{label(_own(found))}"];',
    ]
    for n, peer in enumerate(found["peers"]):
        text.append(f'  p{n} [label="{label(_other(peer))}"];')
        text.append(f'  own -- p{n} [label="{way(peer)}", color="{COLOURS[way(peer)]}"];')
    return "\n".join([*text, "}"]) + "\n"


def as_svg(found: dict[str, Any]) -> str:
    """The picture as SVG: this node in the middle, its peers around it."""
    boxes = [_own(found), *(_other(peer) for peer in found["peers"])]
    tallest = max(len(lines) for lines in boxes) * LINE + 20
    radius = max(320, int(len(found["peers"]) * max(BOX, tallest) * 1.2 / (2 * math.pi)))
    side = 2 * radius + BOX + tallest
    middle = side / 2
    lines, drawn = [], [_box(boxes[0], middle, middle)]
    for n, peer in enumerate(found["peers"]):
        angle = 2 * math.pi * n / len(found["peers"]) - math.pi / 2
        x, y = middle + radius * math.cos(angle), middle + radius * math.sin(angle)
        colour = COLOURS[way(peer)]
        lines.append(
            f'<line x1="{middle:.0f}" y1="{middle:.0f}" x2="{x:.0f}" y2="{y:.0f}" stroke="{colour}" stroke-width="2"/>'
        )
        drawn.append(_box(boxes[n + 1], x, y))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side:.0f} {side:.0f}" width="{WIDTH}"'
    style = 'font-family="sans-serif" font-size="12"'
    return "\n".join([f"{head} {style}>", *lines, *drawn, "</svg>"]) + "\n"


def _box(lines: Sequence[str], x: float, y: float) -> str:
    height = len(lines) * LINE + 12
    left, top = x - BOX / 2, y - height / 2
    parts = [
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX}" height="{height}" rx="8" fill="#fff" stroke="#343a40"/>'
    ]
    for n, line in enumerate(lines):
        weight = ' font-weight="bold"' if n == 0 else ""
        parts.append(
            f'<text x="{x:.0f}" y="{top + 18 + n * LINE:.0f}" text-anchor="middle"{weight}>{escape(line)}</text>'
        )
    return "\n".join(parts)
