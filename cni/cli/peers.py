"""`zlayer-cni peers`: every WireGuard peer of this node, and its state. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import argparse
import sys

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json

SHORT_KEY = 10  # characters of a key that are shown
HEAD = ("PEER", "KEY", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "PATH MTU", "WAY", "PATH", "ALLOWED IPS")


def run(options: argparse.Namespace) -> int:
    """Print the peers that are asked for; raises NoDaemon, Refused."""
    peers = [
        each
        for each in ask(options.run_dir, "peers", list[answers.Peer])
        if options.service in (None, each.service) and _is_node(options.node, each)
    ]
    if options.json:
        print_json(peers)
    else:
        width = 0 if options.output_form == "wide" else None
        sys.stdout.write(as_text(table.escape_control(peers), width))
    return 0


def _is_node(asked: str | None, peer: answers.Peer) -> bool:
    return asked is None or peer.name == asked or (len(asked) >= 4 and peer.public_key.startswith(asked))


def as_text(peers: list[answers.Peer], width: int | None = None) -> str:
    """A line for each peer; peers of a service with its own device carry its name."""
    if not peers:
        return "this node has no peers\n"
    return table.render(HEAD, [_row(peer) for peer in peers], width) + "".join(
        _why(peer) for peer in peers if peer.path
    )


def _why(peer: answers.Peer) -> str:
    return f"{peer.name or peer.public_key[:SHORT_KEY]}: {peer.path}: {peer.path_why}\n"


def _row(peer: answers.Peer) -> tuple[object, ...]:
    of = f" ({peer.service})" if peer.service else ""
    more = len(peer.allowed_ips) - 4
    return (
        (peer.name or "-") + of,
        peer.public_key[:SHORT_KEY],
        peer.endpoint or ", ".join(peer.configured_endpoints) or "(it calls)",
        _ago(peer.last_handshake_seconds_ago),
        _size(peer.rx_bytes),
        _size(peer.tx_bytes),
        _path_mtu(peer),
        way(peer),
        peer.path or "-",
        ", ".join(peer.allowed_ips[:4]) + (f" and {more} more" if more > 0 else ""),
    )


def _path_mtu(peer: answers.Peer) -> str:
    """The MTU of the path; `?` if it was not measured (a daemon before this version measures none)."""
    if not peer.path_mtu:
        return "-"
    return str(peer.path_mtu) if peer.path_mtu_measured else f"{peer.path_mtu}?"


def way(peer: answers.Peer) -> str:
    """How the peer is reached: at a configured endpoint, at another one (behind NAT, or moved), or not."""
    if not peer.on_device:
        return "no device"
    if not peer.alive:
        return "silent"
    return "direct" if peer.direct else "learned"


def _ago(since: float | None) -> str:
    if since is None:
        return "never"
    seconds = int(since)
    return f"{seconds} s ago" if seconds < 600 else f"{seconds // 60} min ago"


def _size(octets: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if octets >= size:
            return f"{octets / size:.1f} {unit}"
    return f"{octets} B"
