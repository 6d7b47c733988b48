"""What an attachment is promised, when it stands, and whether it is still what ADD made: the same for the daemon and in
front of a foreign one. Pure; what the kernel holds comes in as values.

CHECK asks for "contains", not "equals": a later plugin of the chain may have added routes and addresses, or changed the
MTU and the MAC (conformance C2).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cni.errors import AttachFailed, InterfaceExists
from cni.host.links import RTN_UNICAST, Link
from cni.host.ports import ContainerView, Sought
from cni.netconf.types import Result

DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
Pairs = tuple[tuple[str, str], ...]

# --- ADD ------------------------------------------------------------------------------------------------------------


def planned_routes(addresses: Iterable[tuple[str, str]], asked: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(destination, gateway): a default route for each family there is, then what was asked for, one for each
    destination.

    `addresses`: each with its gateway; `asked`: destinations, with a gateway or "". A route of a family without an
    address is left out unless it has a gateway of its own.
    """
    gateways = {ipaddress.ip_address(gateway).version: gateway for _, gateway in reversed(list(addresses))}
    plan = {DEFAULT_ROUTES[version]: gateway for version, gateway in sorted(gateways.items())}
    for text, own in asked:
        dst = ipaddress.ip_network(text)
        via = own or gateways.get(dst.version, "")
        if via:
            plan[str(dst)] = str(ipaddress.ip_address(via))
    return list(plan.items())


def stands(state: str, same_netns: bool, has_host_end: Callable[[], bool], has_inside: Callable[[], bool]) -> bool:
    """Whether a recorded attachment is whole, in the namespace that a second ADD names: only then is that an error.

    The kernel is asked only for what the answer still depends on.
    """
    return state == "live" and same_netns and has_host_end() and has_inside()


def already_attached(key: tuple[str, str, str]) -> InterfaceExists:
    """The refusal of a second ADD of (network, container, interface)."""
    network, container, ifname = key
    return InterfaceExists(
        f"CNI_IFNAME: {ifname} is already attached to network {network}", f"container {container}; DEL it first"
    )


def name_in_use(ifname: str, sandbox: str) -> InterfaceExists:
    """The refusal where the container has an interface of that name that is not ours."""
    return InterfaceExists(
        f"CNI_IFNAME: {ifname} already exists in {sandbox}", "the existing interface was not touched"
    )


def attach_failed(ifname: str, service: str, error: OSError) -> AttachFailed:
    """The kernel refused a step of an ADD."""
    return AttachFailed(f"cannot attach {ifname} to {service}: {error}")


# --- CHECK ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """What ADD made: the interface's name and MAC, (address, gateway) and (destination, gateway) pairs, the host end,
    and the names without a sandbox that the result must have."""

    ifname: str
    sandbox: str
    mac: str
    addresses: Pairs
    routes: Pairs
    host_veth: str
    host_names: frozenset[str] = frozenset()


def not_the_same(state: str, sandbox: str, same_netns: bool) -> list[str]:
    """Why nothing else needs to be looked at."""
    if state != "live":
        return ["the attachment was never finished"]
    return [] if same_netns else [f"{sandbox} is not the network namespace that was attached"]


def sought(expected: Expected, previous: Result) -> Sought:
    """What to look for in the container's namespace."""
    addresses = [address for address, _ in expected.addresses] + _promised(expected, previous)
    return Sought(
        frozenset(ipaddress.ip_interface(each) for each in addresses),
        frozenset((ipaddress.ip_network(dst), ipaddress.ip_address(via)) for dst, via in expected.routes),
    )


def bridge_side(bridge: Link, expected: Expected, gateways: frozenset[str]) -> list[str]:
    """What the bridge lacks: to be up, and the gateways' addresses."""
    found = [] if bridge.up else [f"the bridge {bridge.name} is down"]
    lost = [gateway for _, gateway in expected.addresses if gateway not in gateways]
    return found + [f"the bridge {bridge.name} lacks the gateway address {gateway}" for gateway in lost]


def container_side(expected: Expected, previous: Result, inside: ContainerView, host: Link | None) -> list[str]:
    """What differs at the container's end."""
    link, ifname = inside.link, expected.ifname
    if link is None:
        return [f"the interface {ifname} is missing"]
    found = []
    if not link.up:
        found.append(f"the interface {ifname} is down")
    if host is not None and link.peer != host.index:
        found.append(f"the interface {ifname} is not the peer of {expected.host_veth}")
    # A later plugin that changes the MAC says so in the result, which then has the word.
    macs = {previous.interfaces[n].mac.lower() for n in _mine(expected, previous)} - {""} or {expected.mac}
    if link.mac not in macs:
        found.append(f"the interface {ifname} has MAC {link.mac}, not {' or '.join(sorted(macs))}")
    there = {str(address) for address in inside.addresses}
    wanted = dict.fromkeys([*(address for address, _ in expected.addresses), *_promised(expected, previous)])
    lost = [f"the address {address} is missing" for address in wanted if address not in there]
    found += _unread(ifname, "addresses", inside) or lost
    return found + (_unread(ifname, "routes", inside) or _lost_routes(expected, inside, link))


def against_result(expected: Expected, previous: Result) -> list[str]:
    """What the result that the runtime kept says of this interface must be this attachment's."""
    mine = _mine(expected, previous)
    if previous.interfaces and not mine:
        return [f"prevResult has no interface {expected.ifname} in {expected.sandbox}"]
    host = {interface.name for interface in previous.interfaces if not interface.sandbox}
    if previous.interfaces and not expected.host_names <= host:
        return [f"prevResult has no host interface {', '.join(sorted(expected.host_names - host))}"]
    said = {ip.address for ip in previous.ips if ip.interface is None or ip.interface in mine}
    return [f"prevResult lacks the address {address}" for address, _ in expected.addresses if address not in said]


def _unread(ifname: str, what: str, inside: ContainerView) -> list[str]:
    """The complaint about an interface of which not everything was read: what is missing cannot be told then."""
    bound = inside.bound(what)
    if not bound:
        return []
    return [f"the interface {ifname} has more than {bound} {what}, and not all that ADD gave it is among those read"]


def _lost_routes(expected: Expected, inside: ContainerView, link: Link) -> list[str]:
    there = {(r.dst, r.gateway) for r in inside.routes if r.oif == link.index and r.type == RTN_UNICAST}
    return [
        f"the route to {dst} by {via} is missing"
        for dst, via in expected.routes
        if (ipaddress.ip_network(dst), ipaddress.ip_address(via)) not in there
    ]


def _mine(expected: Expected, previous: Result) -> set[int]:
    """Where the result has the container's end."""
    place = (expected.ifname, expected.sandbox)
    return {n for n, each in enumerate(previous.interfaces) if (each.name, each.sandbox) == place}


def _promised(expected: Expected, previous: Result) -> list[str]:
    """The addresses that the result gives to the container's end, in the kernel's spelling."""
    mine = _mine(expected, previous)
    return [str(ipaddress.ip_interface(ip.address)) for ip in previous.ips if ip.interface in mine]
