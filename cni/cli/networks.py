"""`zlayer-cni networks`: isolation networks, their members, and packets that the fence dropped. Exit code 0, or 3
without a daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import msgspec

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json
from cni.cli.attachments import is_asked

FLAT = "(flat mesh)"


def run(options: argparse.Namespace) -> int:
    """Print the networks that are asked for; raises NoDaemon, Refused."""
    networks = _asked(ask(options.run_dir, "networks", answers.Networks), options.network, options.service)
    if options.json:
        print_json(networks)
    else:
        width = 0 if options.output_form == "wide" else None
        sys.stdout.write(as_text(table.escape_control(networks), width))
    return 0


def _asked(networks: answers.Networks, network: str | None, service: str | None) -> answers.Networks:
    """The networks that the filters let through, with the members of the service; the drops of those networks."""
    if network is None and service is None:
        return networks
    chosen = [
        msgspec.structs.replace(each, members=[m for m in each.members if service in (None, m.service)])
        for each in networks.networks
        if is_asked(network, each.isolation_network)
    ]
    chosen = [each for each in chosen if service is None or each.members]
    names = {each.isolation_network for each in chosen}
    drops = [drop for drop in networks.drops if drop.of_a_network and drop.isolation_network in names]
    return msgspec.structs.replace(networks, networks=chosen, drops=drops)


def name_of(network: str | None) -> str:
    """A network's name for display; the empty name is shown in quotes."""
    return FLAT if network is None else network or '""'


def as_text(of_node: answers.Networks, width: int | None = None) -> str:
    """Members by network, then the rules that dropped packets."""
    text = "" if of_node.fence.in_force else f"the fence is NOT IN FORCE: {of_node.fence.trouble}\n\n"
    rows: list[tuple[object, ...]] = []
    ids = table.short_ids(member.container_id for network in of_node.networks for member in network.members)
    for network in of_node.networks:
        name = name_of(network.isolation_network)
        rows += [_member(name, ids, member) for member in network.members]
        rows += [(name, "(another node)", "-", address, "-", "-") for address in network.remote_members]
        if not network.members and not network.remote_members:
            rows.append((name, "-", "-", "-", "-", "-"))
    text += table.render(("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "SERVICE", "POD"), rows, width)
    dropped = [_drop(drop) for drop in of_node.drops if drop.packets]
    if not dropped:
        return text + "\nnothing was dropped\n"
    return text + "\n" + table.render(("DROPPED PACKETS", "BYTES", "RULE", "WHERE"), dropped, width)


def _member(name: str, ids: Mapping[str, str], member: answers.Member) -> tuple[object, ...]:
    return (
        name,
        ids[member.container_id],
        member.interface,
        ", ".join(member.addresses),
        member.service,
        member.pod or "-",
    )


def _drop(drop: answers.Drop) -> tuple[object, ...]:
    where = f"from {name_of(drop.isolation_network)}" if drop.of_a_network else drop.chain
    return (drop.packets, drop.bytes, drop.rule, f"{drop.family} {where}")
