"""CHECK: is the attachment still what ADD made? Pure; the kernel's answers come in as values.

"Contains", not "equals": a later plugin of the chain may have added routes and addresses, or changed the MTU and the
MAC (conformance C2). Returns what is wrong, the gravest first; an empty list is a good attachment.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cni.daemon.books.records import Attachment
from cni.host.links import RTN_UNICAST, Link
from cni.host.ports import Inside, Sought
from cni.spec.types import Result


@dataclass(frozen=True)
class Seen:
    """What the kernel holds: the host end, the bridge and its addresses, the container's end, the namespace's id."""

    host: Link | None
    bridge: Link | None
    gateways: frozenset[str]
    inside: Inside
    netns: tuple[int, int]
    forwarding: dict[int, bool]
    unfenced: tuple[str, ...] = ()


def sought(attachment: Attachment, previous: Result, sandbox: str) -> Sought:
    """What to look for in the container's namespace."""
    addresses = [held.address for held in attachment.addresses] + _promised(attachment, previous, sandbox)
    return Sought(
        frozenset(ipaddress.ip_interface(each) for each in addresses),
        frozenset((ipaddress.ip_network(each.dst), ipaddress.ip_address(each.via)) for each in attachment.routes),
    )


def complaints(attachment: Attachment, previous: Result, sandbox: str, seen: Seen) -> list[str]:
    """What differs from the record, and from the result the runtime kept."""
    if attachment.state != "live":
        return ["the attachment was never finished"]
    if seen.netns != attachment.netns:
        return [f"{sandbox} is not the network namespace that was attached"]
    found = [*_node_side(attachment, seen), *_container_side(attachment, previous, sandbox, seen)]
    found += _against_result(attachment, previous, sandbox)
    return [*found, *(f"the fence is not whole: {what}" for what in seen.unfenced)]


def _node_side(attachment: Attachment, seen: Seen) -> list[str]:
    host, bridge = seen.host, seen.bridge
    if host is None:
        return [f"the host interface {attachment.host_veth} is missing"]
    found = []
    if not host.up:
        found.append(f"the host interface {attachment.host_veth} is down")
    if bridge is None:
        return [*found, f"the bridge {attachment.bridge} is missing"]
    if host.master != bridge.index:
        found.append(f"the host interface {attachment.host_veth} is not on the bridge {attachment.bridge}")
    if not bridge.up:
        found.append(f"the bridge {attachment.bridge} is down")
    for held in attachment.addresses:
        gateway = ipaddress.ip_address(held.gateway)
        if held.gateway not in seen.gateways:
            found.append(f"the bridge {attachment.bridge} lacks the gateway address {held.gateway}")
        if not seen.forwarding.get(gateway.version, True):
            found.append(f"the node does not forward IPv{gateway.version}")
    return found


def _container_side(attachment: Attachment, previous: Result, sandbox: str, seen: Seen) -> list[str]:
    link = seen.inside.link
    if link is None:
        return [f"the interface {attachment.ifname} is missing"]
    found = []
    if not link.up:
        found.append(f"the interface {attachment.ifname} is down")
    if seen.host is not None and link.peer != seen.host.index:
        found.append(f"the interface {attachment.ifname} is not the peer of {attachment.host_veth}")
    # A later plugin that changes the MAC says so in the result, which then has the word.
    said = {previous.interfaces[n].mac.lower() for n in _mine(attachment, previous, sandbox)} - {""}
    macs = said or {attachment.mac}
    if link.mac not in macs:
        found.append(f"the interface {attachment.ifname} has MAC {link.mac}, not {' or '.join(sorted(macs))}")
    there = {str(address) for address in seen.inside.addresses}
    expected = dict.fromkeys([h.address for h in attachment.addresses] + _promised(attachment, previous, sandbox))
    lost = [f"the address {address} is missing" for address in expected if address not in there]
    found += unread(attachment.ifname, "addresses", seen.inside) or lost
    return found + (unread(attachment.ifname, "routes", seen.inside) or _routes(attachment, seen, link))


def unread(ifname: str, what: str, inside: Inside) -> list[str]:
    """The complaint about an interface of which not everything was read: what is missing cannot be told then."""
    bound = inside.bound(what)
    return (
        [f"the interface {ifname} has more than {bound} {what}, and not all that ADD gave it is among those read"]
        if bound
        else []
    )


def _routes(attachment: Attachment, seen: Seen, link: Link) -> list[str]:
    found = []
    for route in attachment.routes:
        dst = ipaddress.ip_network(route.dst)
        same = [r for r in seen.inside.routes if r.dst == dst and r.oif == link.index and r.type == RTN_UNICAST]
        if not any(r.gateway == ipaddress.ip_address(route.via) for r in same):
            found.append(f"the route to {route.dst} by {route.via} is missing")
    return found


def _mine(attachment: Attachment, previous: Result, sandbox: str) -> set[int]:
    """Where the result has the container's end."""
    return {n for n, i in enumerate(previous.interfaces) if i.name == attachment.ifname and i.sandbox == sandbox}


def _promised(attachment: Attachment, previous: Result, sandbox: str) -> list[str]:
    """The addresses that the result gives to the container's end, in the kernel's spelling."""
    mine = _mine(attachment, previous, sandbox)
    return [str(ipaddress.ip_interface(ip.address)) for ip in previous.ips if ip.interface in mine]


def _against_result(attachment: Attachment, previous: Result, sandbox: str) -> list[str]:
    """What the result that the runtime kept says of this interface must be this attachment's."""
    mine = _mine(attachment, previous, sandbox)
    if previous.interfaces and not mine:
        return [f"prevResult has no interface {attachment.ifname} in {sandbox}"]
    host = {interface.name for interface in previous.interfaces if not interface.sandbox}
    if previous.interfaces and not {attachment.bridge, attachment.host_veth} <= host:
        lost = sorted({attachment.bridge, attachment.host_veth} - host)
        return [f"prevResult has no host interface {', '.join(lost)}"]
    said = {ip.address for ip in previous.ips if ip.interface is None or ip.interface in mine}
    return [f"prevResult lacks the address {h.address}" for h in attachment.addresses if h.address not in said]
