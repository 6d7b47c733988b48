"""The rules of an attachment: its routes, when a second ADD is refused, and what CHECK compares. The daemon and the
plugin in front of ZLayer's daemon use the same rules. Pure: the state of the kernel is passed in as values.

CHECK requires "contains", not "equals": a later plugin of the chain may have added routes and addresses, or changed the
MTU and the MAC.
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
    """The routes to set, as (destination, gateway): a default route for each address family, then the requested
    routes, one for each destination.

    `addresses`: (address, gateway) pairs; `asked`: (destination, gateway) pairs, the gateway may be "". A requested
    route of a family without an address is left out unless it has its own gateway.
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
    """Whether a recorded attachment is complete and in the namespace that a second ADD names. Only then the second ADD
    is an error.

    `has_host_end` and `has_inside` query the kernel; each is called only while the answer still depends on it.
    """
    return state == "live" and same_netns and has_host_end() and has_inside()


def already_attached(key: tuple[str, str, str]) -> InterfaceExists:
    """The error of a second ADD of the same (network, container, interface)."""
    network, container, ifname = key
    return InterfaceExists(
        f"CNI_IFNAME: {ifname} is already attached to network {network}", f"container {container}; DEL it first"
    )


def name_in_use(ifname: str, sandbox: str) -> InterfaceExists:
    """The error if the container has an interface of that name which zlayer-cni did not create."""
    return InterfaceExists(
        f"CNI_IFNAME: {ifname} already exists in {sandbox}", "the existing interface was not touched"
    )


def attach_failed(ifname: str, service: str, error: OSError) -> AttachFailed:
    """The error if the kernel refuses a step of an ADD."""
    return AttachFailed(f"cannot attach {ifname} to {service}: {error}")


# --- CHECK ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """What ADD created: the interface's name and MAC, (address, gateway) and (destination, gateway) pairs, the host
    end, and the names of the interfaces without a sandbox that the result must have."""

    ifname: str
    sandbox: str
    mac: str
    addresses: Pairs
    routes: Pairs
    host_veth: str
    host_names: frozenset[str] = frozenset()


def not_the_same(state: str, sandbox: str, same_netns: bool) -> list[str]:
    """Differences that make every further comparison pointless; empty if the comparison can go on."""
    if state != "live":
        return ["the attachment was never finished"]
    return [] if same_netns else [f"{sandbox} is not the network namespace that was attached"]


def sought(expected: Expected, previous: Result) -> Sought:
    """The addresses and routes to look for in the container's namespace."""
    addresses = [address for address, _ in expected.addresses] + _promised(expected, previous)
    return Sought(
        frozenset(ipaddress.ip_interface(address) for address in addresses),
        frozenset((ipaddress.ip_network(dst), ipaddress.ip_address(via)) for dst, via in expected.routes),
    )


def bridge_side(bridge: Link, expected: Expected, gateways: frozenset[str]) -> list[str]:
    """Differences at the bridge: it is down, or a gateway address is missing."""
    differences = [] if bridge.up else [f"the bridge {bridge.name} is down"]
    missing = [gateway for _, gateway in expected.addresses if gateway not in gateways]
    return differences + [f"the bridge {bridge.name} lacks the gateway address {gateway}" for gateway in missing]


def container_side(expected: Expected, previous: Result, inside: ContainerView, host: Link | None) -> list[str]:
    """Differences at the container's end of the veth."""
    link, ifname = inside.link, expected.ifname
    if link is None:
        return [f"the interface {ifname} is missing"]
    differences = []
    if not link.up:
        differences.append(f"the interface {ifname} is down")
    if host is not None and link.peer != host.index:
        differences.append(f"the interface {ifname} is not the peer of {expected.host_veth}")
    # A later plugin that changes the MAC reports it in the result, so the MAC of the result takes precedence.
    macs = {previous.interfaces[n].mac.lower() for n in _mine(expected, previous)} - {""} or {expected.mac}
    if link.mac not in macs:
        differences.append(f"the interface {ifname} has MAC {link.mac}, not {' or '.join(sorted(macs))}")
    present = {str(address) for address in inside.addresses}
    promised = dict.fromkeys([*(address for address, _ in expected.addresses), *_promised(expected, previous)])
    missing = [f"the address {address} is missing" for address in promised if address not in present]
    differences += _unread(ifname, "addresses", inside) or missing
    return differences + (_unread(ifname, "routes", inside) or _lost_routes(expected, inside, link))


def against_result(expected: Expected, previous: Result) -> list[str]:
    """Differences between the attachment and its interface in the result that the runtime kept (prevResult)."""
    mine = _mine(expected, previous)
    if previous.interfaces and not mine:
        return [f"prevResult has no interface {expected.ifname} in {expected.sandbox}"]
    host = {interface.name for interface in previous.interfaces if not interface.sandbox}
    if previous.interfaces and not expected.host_names <= host:
        return [f"prevResult has no host interface {', '.join(sorted(expected.host_names - host))}"]
    reported = {ip.address for ip in previous.ips if ip.interface is None or ip.interface in mine}
    return [f"prevResult lacks the address {address}" for address, _ in expected.addresses if address not in reported]


def _unread(ifname: str, what: str, inside: ContainerView) -> list[str]:
    """The difference to report if not all of `what` was read: the missing entries cannot be listed then."""
    bound = inside.bound(what)
    if not bound:
        return []
    return [f"the interface {ifname} has more than {bound} {what}, and not all that ADD gave it is among those read"]


def _lost_routes(expected: Expected, inside: ContainerView, link: Link) -> list[str]:
    present = {(r.dst, r.gateway) for r in inside.routes if r.oif == link.index and r.type == RTN_UNICAST}
    return [
        f"the route to {dst} by {via} is missing"
        for dst, via in expected.routes
        if (ipaddress.ip_network(dst), ipaddress.ip_address(via)) not in present
    ]


def _mine(expected: Expected, previous: Result) -> set[int]:
    """The indices of the container's end in the interfaces of the result."""
    end = (expected.ifname, expected.sandbox)
    return {n for n, interface in enumerate(previous.interfaces) if (interface.name, interface.sandbox) == end}


def _promised(expected: Expected, previous: Result) -> list[str]:
    """The addresses that the result assigns to the container's end, in the kernel's notation."""
    mine = _mine(expected, previous)
    return [str(ipaddress.ip_interface(ip.address)) for ip in previous.ips if ip.interface in mine]
