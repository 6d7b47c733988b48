"""`zlayer-cni graph`: this node, its tunnels and services as a picture: DOT for Graphviz, or SVG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json
from cni.cli.peers import way

COLOURS = {"direct": "#2b8a3e", "learned": "#1971c2", "silent": "#c92a2a", "no device": "#868e96"}


def run(options: argparse.Namespace) -> int:
    """Print the picture; raises NoDaemon, Refused."""
    graph = ask(options.run_dir, "graph", answers.Graph)
    if options.json:
        print_json(graph)
    else:
        graph = table.escape_control(graph)
        sys.stdout.write(_as_svg(graph) if options.svg else as_dot(graph))
    return 0


def _as_svg(graph: answers.Graph) -> str:
    from cni.cli import picture

    peers = [picture.Spoke(tuple(_other(peer)), way(peer)) for peer in graph.peers]
    return picture.drawn(_own(graph.node), peers)


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
