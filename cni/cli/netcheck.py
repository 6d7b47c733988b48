"""`zlayer-cni netcheck`: what NATs and firewalls do with this node's datagrams.

Exit code 0, 1 if servers were asked and none answered, or 3 without a daemon.
"""

from __future__ import annotations

import sys

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json

YES_OR_NO = {True: "yes", False: "no", None: "not tried"}


def run(run_dir: str, as_json: bool) -> int:
    """Print what was found; raises NoDaemon, Refused."""
    found = ask(run_dir, "netcheck", answers.Netcheck)
    if as_json:
        print_json(found)
    else:
        sys.stdout.write(as_text(table.escape_control(found)))
    return 1 if found.udp is False else 0


def as_text(found: answers.Netcheck) -> str:
    """A block for each version of IP, and a line for each server."""
    udp = {True: "gets out", False: "no server answers: blocked, or all of them are down", None: "not tried"}[found.udp]
    lines = [f"UDP from port {found.port}: {udp}"]
    for family in found.families:
        lines += [f"IPv{family.family}: {_kind(family)}", f"  addresses: {', '.join(family.addresses) or 'none'}"]
        if family.public:
            lines += [
                f"  seen from: {', '.join(family.public)}",
                f"  mapping: {family.mapping}; filtering: {family.filtering}",
                f"  port kept: {YES_OR_NO[family.port_kept]}; hairpin: {YES_OR_NO[family.hairpin]}",
            ]
    lines.append(f"port mapping: {found.port_mapping}")
    text = "\n".join(lines) + "\n"
    if found.servers:
        text += table.render(
            ("SERVER", "ADDRESS", "ROUND TRIP", "SEEN FROM"), [_row(server) for server in found.servers]
        )
    if found.relays:
        text += table.render(("RELAY", "ADDRESS THERE", "ROUND TRIP"), [_relay(relay) for relay in found.relays])
    return text + "".join(f"note: {note}\n" for note in found.notes)


def _kind(family: answers.NatFamily) -> str:
    return family.kind or "no server answered"


def _relay(relay: answers.RelayInUse) -> tuple[object, ...]:
    reached = relay.fault or (f"{relay.round_trip_ms} ms" if relay.round_trip_ms is not None else "-")
    return relay.relay, relay.relayed or "-", reached


def _row(server: answers.StunServer) -> tuple[object, ...]:
    reached = f"{server.round_trip_ms} ms" if server.round_trip_ms is not None and not server.fault else server.fault
    return server.server, server.endpoint or "-", reached, server.seen_from or "-"
