"""CHECK in front of a foreign daemon: is the attachment what ADD left? By kernel facts alone, for the daemon has no
question for it (contract 7.1), and may hang.

"Contains", not "equals": plugins that come later in the chain may have added to it (conformance C2). Pure: what the
kernel holds comes in as a value.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from cni.foreign.records import Record
from cni.host.links import RTN_UNICAST, Link
from cni.host.ports import Inside, Sought
from cni.spec.types import Result


@dataclass(frozen=True)
class Facts:
    """What the kernel holds: the namespace's identity, the holder, the host end and its bridge, the container's end."""

    netns: tuple[int, int]
    holder_alive: bool
    host: Link | None
    bridge: Link | None
    gateways: frozenset[str]
    inside: Inside


def faults(record: Record, previous: Result, sandbox: str, facts: Facts) -> list[str]:
    """What is wrong, the gravest first; nothing for a good attachment."""
    if record.state != "live":
        return ["the attachment was never finished"]
    if facts.netns != record.netns:
        return [f"{sandbox} is not the network namespace that was attached"]
    if facts.host is None or facts.host.index != record.host_index:
        return [f"the host interface {record.host_veth} is missing: did the overlay daemon end, or sweep it?"]
    mine = _places(record, previous, sandbox)
    inside = _container(record, facts, previous, mine)
    return [*_node(record, facts), *inside, *_result(record, previous, mine, sandbox)]


def sought(record: Record, previous: Result, sandbox: str) -> Sought:
    """What to look for in the container's namespace."""
    mine = _places(record, previous, sandbox)
    addresses = [address for address, _ in record.addresses] + _promised(previous, mine)
    return Sought(
        frozenset(ipaddress.ip_interface(each) for each in addresses),
        frozenset((ipaddress.ip_network(dst), ipaddress.ip_address(via)) for dst, via in record.routes),
    )


def _places(record: Record, previous: Result, sandbox: str) -> set[int]:
    """Where the result has the container's end."""
    return {n for n, i in enumerate(previous.interfaces) if (i.name, i.sandbox) == (record.ifname, sandbox)}


def _promised(previous: Result, mine: set[int]) -> list[str]:
    """The addresses that the result gives to the container's end, in the kernel's spelling."""
    return [str(ipaddress.ip_interface(ip.address)) for ip in previous.ips if ip.interface in mine]


def _unread(ifname: str, what: str, inside: Inside) -> list[str]:
    bound = inside.bound(what)
    return (
        [f"the interface {ifname} has more than {bound} {what}, and not all that ADD gave it is among those read"]
        if bound
        else []
    )


def _node(record: Record, facts: Facts) -> Iterator[str]:
    if not facts.holder_alive:
        yield f"the holder process {record.pid} is gone: the daemon will remove the interface at its next attach"
    if facts.host is not None and not facts.host.up:
        yield f"the host interface {record.host_veth} is down"
    if facts.bridge is None:
        yield f"the host interface {record.host_veth} is on no bridge"
        return
    if facts.bridge.name != record.bridge:
        yield f"the host interface {record.host_veth} is on {facts.bridge.name}, not on {record.bridge}"
    if not facts.bridge.up:
        yield f"the bridge {facts.bridge.name} is down"
    for _, gateway in record.addresses:
        if gateway not in facts.gateways:
            yield f"the bridge {facts.bridge.name} lacks the gateway address {gateway}"


def _container(record: Record, facts: Facts, previous: Result, mine: set[int]) -> Iterator[str]:
    link = facts.inside.link
    if link is None:
        yield f"the interface {record.ifname} is missing"
        return
    if not link.up:
        yield f"the interface {record.ifname} is down"
    if facts.host is not None and link.peer != facts.host.index:
        yield f"the interface {record.ifname} is not the peer of {record.host_veth}"
    # A later plugin that changes the MAC says so in the result, which then has the word.
    macs = {previous.interfaces[n].mac.lower() for n in mine} - {""} or {record.mac}
    if link.mac not in macs:
        yield f"the interface {record.ifname} has MAC {link.mac}, not {' or '.join(sorted(macs))}"
    there = {str(address) for address in facts.inside.addresses}
    expected = dict.fromkeys([*(address for address, _ in record.addresses), *_promised(previous, mine)])
    lost = [f"the address {address} is missing" for address in expected if address not in there]
    yield from _unread(record.ifname, "addresses", facts.inside) or lost
    yield from _unread(record.ifname, "routes", facts.inside) or _lost_routes(record, facts, link)


def _lost_routes(record: Record, facts: Facts, link: Link) -> list[str]:
    routes = {(r.dst, str(r.gateway)) for r in facts.inside.routes if r.oif == link.index and r.type == RTN_UNICAST}
    missing = [(dst, via) for dst, via in record.routes if (ipaddress.ip_network(dst), via) not in routes]
    return [f"the route to {dst} by {via} is missing" for dst, via in missing]


def _result(record: Record, previous: Result, mine: set[int], sandbox: str) -> Iterator[str]:
    """What the runtime kept of the result must speak of this interface (at the places `mine`) and its addresses."""
    if previous.interfaces and not mine:
        yield f"prevResult has no interface {record.ifname} in {sandbox}"
        return
    said = {ip.address for ip in previous.ips if ip.interface in mine or not previous.interfaces}
    yield from (f"prevResult lacks the address {address}" for address, _ in record.addresses if address not in said)
