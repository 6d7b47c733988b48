"""`zlayer-cni graph`: this node, its tunnels and services as a picture: DOT for Graphviz, or SVG."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from html import escape

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json
from cni.cli.peers import way

WIDTH, BOX, LINE = 1000, 250, 17  # pixels
COLOURS = {"direct": "#2b8a3e", "learned": "#1971c2", "silent": "#c92a2a", "no device": "#868e96"}


def run(options: argparse.Namespace) -> int:
    """Print the picture; raises NoDaemon, Refused."""
    graph = ask(options.run_dir, "graph", answers.Graph)
    if options.json:
        print_json(graph)
    else:
        graph = table.escape_control(graph)
        sys.stdout.write(as_svg(graph) if options.svg else as_dot(graph))
    return 0


def _own(node: answers.GraphNode) -> list[str]:
    head = [f"{node.name} (node {node.node_id})", ", ".join(node.addresses)]
    return head + [f"{service.service} ({service.mode}) {', '.join(service.subnets)}" for service in node.services]


def _other(peer: answers.Peer) -> list[str]:
    name = peer.name or peer.public_key[:10]
    of = [f"for service {peer.service}"] if peer.service else []
    allowed = peer.allowed_ips
    more = [f"and {len(allowed) - 8} more"] if len(allowed) > 8 else []
    return [name, peer.endpoint or "(it calls)", *of, *allowed[:8], *more]


def as_dot(graph: answers.Graph) -> str:
    """The picture in Graphviz' DOT language."""

    def label(lines: Sequence[str]) -> str:
        return "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)

    text = [
        "graph overlay {",
        '  layout="circo"; node [shape="box", style="rounded"];',
        f'  own [label="{label(_own(graph.node))}"];',
    ]
    for n, peer in enumerate(graph.peers):
        text.append(f'  p{n} [label="{label(_other(peer))}"];')
        text.append(f'  own -- p{n} [label="{way(peer)}", color="{COLOURS[way(peer)]}"];')
    return "\n".join([*text, "}"]) + "\n"


def as_svg(graph: answers.Graph) -> str:
    """The picture as SVG: this node in the middle, its peers around it."""
    boxes = [_own(graph.node), *(_other(peer) for peer in graph.peers)]
    tallest = max(len(lines) for lines in boxes) * LINE + 20
    radius = max(320, int(len(graph.peers) * max(BOX, tallest) * 1.2 / (2 * math.pi)))
    side = 2 * radius + BOX + tallest
    middle = side / 2
    lines, drawn = [], [_box(boxes[0], middle, middle)]
    for n, peer in enumerate(graph.peers):
        angle = 2 * math.pi * n / len(graph.peers) - math.pi / 2
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
