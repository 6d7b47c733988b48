"""The rules of an attachment: its routes, when a second ADD is refused, and what CHECK compares. The daemon and the
plugin in front of ZLayer's daemon use the same rules. Pure: the state of the kernel is passed in as values.

CHECK requires "contains", not "equals": a later plugin of the chain may have added routes and addresses, or changed the
MTU and the MAC.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cni.errors import AttachFailed, InterfaceExists, InvalidConfig
from cni.host.links import RTN_UNICAST, Address, Link, Network, RoutePattern
from cni.host.ports import ContainerView, Sought
from cni.netconf.types import Result, Route

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


def refuse_other_gateways(addresses: Iterable[tuple[str, str]], routes: Iterable[tuple[str, str]]) -> None:
    """Raises InvalidConfig for a route of a routed attachment by anything but its own gateways: the container's
    addresses have no subnet, so there is no other neighbour. `addresses`: (address, gateway) pairs; `routes`:
    (destination, gateway) pairs."""
    gateways = {str(ipaddress.ip_address(gateway)) for _, gateway in addresses}
    for dst, via in routes:
        if via not in gateways:
            raise InvalidConfig(
                f"routes: {dst}: the gateway {via} is no neighbour of a container whose attach is 'routed'",
                f"leave the gateway out, or name {' or '.join(sorted(gateways))}",
            )


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
    end, and the names of the interfaces without a sandbox that the result must have. `gateway_mac`: the MAC with which
    the container knows its gateways, if ADD set that."""

    ifname: str
    sandbox: str
    mac: str
    addresses: Pairs
    routes: Pairs
    host_veth: str
    host_names: frozenset[str] = frozenset()
    gateway_mac: str = ""


def not_the_same(state: str, sandbox: str, same_netns: bool) -> list[str]:
    """Differences that make every further comparison pointless; empty if the comparison can go on."""
    if state != "live":
        return ["the attachment was never finished"]
    return [] if same_netns else [f"{sandbox} is not the network namespace that was attached"]


def sought(expected: Expected, previous: Result) -> Sought:
    """The addresses and routes to look for in the container's namespace."""
    return Sought(
        frozenset(ipaddress.ip_interface(address) for address in _addresses(expected, previous)),
        frozenset(_made_routes(expected)),
        frozenset(_reported_routes(expected, previous)),
        frozenset(_gateways(expected)),
        frozenset(_neighbours(expected)),
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
    missing = [
        f"the address {address} is missing" for address in _addresses(expected, previous) if address not in present
    ]
    differences += _unread(ifname, "addresses", inside) or missing
    differences += _unread(ifname, "routes", inside) or _lost_routes(expected, previous, inside, link)
    # A missing address, or an interface that is down, reaches no gateway either: that is reported already.
    own = {address.ip for address in inside.addresses} if link.up else set()
    gateways = _gateways(expected).items()
    differences += [text for pair, text in gateways if pair[0] in own and pair not in inside.gateways]
    # The kernel forgets an interface's neighbours when its MAC changes; the gateway is then asked for, as on a bridge.
    near = _neighbours(expected).items() if link.up and link.mac == expected.mac else ()
    return differences + [text for pair, text in near if pair not in inside.neighbours]


def against_result(expected: Expected, previous: Result, host_macs: Mapping[str, str]) -> list[str]:
    """Differences between the attachment and its interfaces in the result that the runtime kept (prevResult).
    `host_macs`: the MACs of the host's interfaces that ADD created, by name."""
    mine = _mine(expected, previous)
    if previous.interfaces and not mine:
        return [f"prevResult has no interface {expected.ifname} in {expected.sandbox}"]
    host = {interface.name for interface in previous.interfaces if not interface.sandbox}
    if previous.interfaces and not expected.host_names <= host:
        return [f"prevResult has no host interface {', '.join(sorted(expected.host_names - host))}"]
    differences = [
        f"prevResult has the MAC {interface.mac} for {interface.name}, which has {host_macs[interface.name]}"
        for interface in previous.interfaces
        if not interface.sandbox
        and interface.mac
        and interface.mac.lower() != host_macs.get(interface.name, interface.mac.lower())
    ]
    reported = {ip.address: ip.gateway for ip in previous.ips if ip.interface is None or ip.interface in mine}
    for address, gateway in expected.addresses:
        if address not in reported:
            differences.append(f"prevResult lacks the address {address}")
        elif reported[address] and ipaddress.ip_address(reported[address]) != ipaddress.ip_address(gateway):
            differences.append(f"prevResult has the gateway {reported[address]} for {address}, not {gateway}")
    return differences


def _unread(ifname: str, what: str, inside: ContainerView) -> list[str]:
    """The difference to report if not all of `what` was read: the missing entries cannot be listed then."""
    bound = inside.bound(what)
    if not bound:
        return []
    return [f"the interface {ifname} has more than {bound} {what}, and not all that ADD gave it is among those read"]


def _lost_routes(expected: Expected, previous: Result, inside: ContainerView, link: Link) -> list[str]:
    present = {(r.dst, r.gateway) for r in inside.routes if r.oif == link.index and r.type == RTN_UNICAST}
    lost = [text for route, text in _made_routes(expected).items() if route not in present]
    reported = _reported_routes(expected, previous)
    return lost + [text for pattern, text in reported.items() if pattern not in inside.patterns]


def _mine(expected: Expected, previous: Result) -> set[int]:
    """The indices of the container's end in the interfaces of the result."""
    end = (expected.ifname, expected.sandbox)
    return {n for n, interface in enumerate(previous.interfaces) if (interface.name, interface.sandbox) == end}


def _addresses(expected: Expected, previous: Result) -> list[str]:
    """The addresses that ADD gave to the container's end, and those that the result assigns to it, in the kernel's
    notation."""
    mine = _mine(expected, previous)
    reported = [str(ipaddress.ip_interface(ip.address)) for ip in previous.ips if ip.interface in mine]
    return list(dict.fromkeys([*(address for address, _ in expected.addresses), *reported]))


def _made_routes(expected: Expected) -> dict[tuple[Network, Address], str]:
    """The routes that ADD made, each with the difference to report if it is missing."""
    return {
        (ipaddress.ip_network(dst), ipaddress.ip_address(via)): f"the route to {dst} by {via} is missing"
        for dst, via in expected.routes
    }


def _gateways(expected: Expected) -> dict[tuple[Address, Address], str]:
    """(own address, gateway) pairs, each with the difference to report if the interface does not reach the gateway."""
    return {
        (ipaddress.ip_interface(address).ip, ipaddress.ip_address(gateway)): f"the interface {expected.ifname} has no "
        f"route to its gateway {gateway}"
        for address, gateway in expected.addresses
    }


def _neighbours(expected: Expected) -> dict[tuple[Address, str], str]:
    """(gateway, MAC) pairs that the container's neighbour table must hold, each with the difference to report."""
    mac, ifname = expected.gateway_mac, expected.ifname
    if not mac:
        return {}
    return {
        (ipaddress.ip_address(gateway), mac): f"the interface {ifname} has no neighbour entry of its gateway {gateway}"
        for _, gateway in expected.addresses
    }


def _reported_routes(expected: Expected, previous: Result) -> dict[RoutePattern, str]:
    """The routes of the result besides those that ADD made, each with the difference to report if it is missing."""
    made = _made_routes(expected)
    patterns = {}
    for route in previous.routes:
        pattern = _pattern(route)
        plain = pattern == RoutePattern(pattern.dst, pattern.gateway)
        if not plain or pattern.gateway is None or (pattern.dst, pattern.gateway) not in made:
            patterns[pattern] = f"prevResult has the route {_text(route)}, which the container lacks"
    return patterns


def _pattern(route: Route) -> RoutePattern:
    """A route of a result as one to look for. Table 0 is "not given", as in the kernel."""
    return RoutePattern(
        ipaddress.ip_interface(route.dst).network,
        ipaddress.ip_address(route.gw) if route.gw else None,
        priority=route.priority,
        mtu=route.mtu,
        advmss=route.advmss,
        table=route.table or None,
        scope=route.scope,
    )


def _text(route: Route) -> str:
    """A route of a result in the words of `ip route`."""
    words = [route.dst, *(["via", route.gw] if route.gw else [])]
    for name in ("mtu", "advmss", "priority", "table", "scope"):
        value = getattr(route, name)
        words += [name, str(value)] if value else []
    return " ".join(words)
