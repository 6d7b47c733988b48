"""The set elements of the node, of a bridge, of a port, of a remote member and of an edge peer."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

from cni.daemon.fence.model import (
    TABLE,
    FenceBridge,
    FenceEdge,
    FenceNode,
    FencePort,
    chain_of,
    link_local,
    quoted,
    raw,
    versions,
)
from cni.daemon.model import macs
from cni.host.nft_elements import Change, Element
from cni.openings import Opening


def change(take: Iterable[Element] = (), add: Iterable[Element] = ()) -> Change:
    """One transaction that deletes elements of the fence's tables, present or not, and then adds others."""
    return Change(TABLE, tuple(take), tuple(add))


def joined(*changes: Change) -> Change:
    """The changes as one: all deletions come first."""
    return change((e for part in changes for e in part.take), (e for part in changes for e in part.add))


def of_node(node: FenceNode) -> list[Element]:
    """The node's own addresses, its tunnels, the CIDRs behind them, and the host's connected networks."""
    four, six = _spelled(node.addresses)
    return [
        *(Element("inet", "node4", address) for address in four),
        *(Element("inet", "node6", address) for address in six),
        *(Element("inet", "tunnels", quoted(device)) for device in node.tunnels),
        *(Element("inet", f"far{ip_network(cidr).version}", cidr) for cidr in node.far),
        *(Element("inet", f"connected{ip_network(cidr).version}", cidr) for cidr in node.connected),
        *of_openings(node),
    ]


def of_openings(node: FenceNode) -> list[Element]:
    """What the settings open: destinations, by port or as a whole, and senders."""
    return [
        *(_of_opening(opening) for opening in node.reach),
        *(Element("inet", f"from{ip_network(cidr).version}", cidr) for cidr in node.senders),
        *_ends(node),
    ]


def _ends(node: FenceNode) -> list[Element]:
    """The single addresses of the overlay that are listed, or to which what is listed leads: those of containers."""
    ranges = [ip_network(cidr) for cidr in node.clusters]
    listed = {opening.address for opening in node.reach}
    listed |= {str(net.network_address) for net in map(ip_network, node.senders) if net.prefixlen == net.max_prefixlen}
    inside = sorted(address for address in listed if any(ip_address(address) in net for net in ranges))
    four, six = versions(inside)
    return [
        *(Element("bridge", "ends4", str(address)) for address in four),
        *(Element(family, "ends6", str(address)) for family in ("bridge", "inet") for address in six),
        *(Element("bridge", "asked6", raw(int(address), 16)) for address in six),
    ]


def change_of_openings(before: FenceNode, after: FenceNode) -> Change:
    """What changes the elements of `before` to those of `after`. An opening CIDR that grows or splits is another."""
    old, new = of_openings(before), of_openings(after)
    return change(take=(e for e in old if e not in new), add=(e for e in new if e not in old))


def _of_opening(opening: Opening) -> Element:
    v = ip_address(opening.address).version
    if not opening.port:
        return Element("inet", f"reach{v}", opening.address)
    return Element("inet", f"{opening.protocol}{v}", f"{opening.address} . {raw(opening.port, 2)}")


def of_bridge(bridge: FenceBridge) -> list[Element]:
    """A bridge of the overlay."""
    name = quoted(bridge.name)
    items = [
        Element("bridge", "bridges", name),
        Element("inet", "inside", name),
        Element("inet", "loops", f"{name} . {name}"),
    ]
    return items + ([Element("bridge", "gateways", bridge.mac)] if bridge.mac else [])


def of_port(port: FencePort) -> list[Element]:
    """A port: its identity on its bridge, and what its addresses may reach when routed."""
    four, six = _spelled(port.addresses)
    local = [*six, str(link_local(port.mac))]
    return [*_on_bridge(port, four, local), *_routed(port, four, six, local), *of_port_policy(port)]


def of_port_policy(port: FencePort) -> list[Element]:
    """What leads a port's packets to the chains of the policies that isolate it."""
    policy = port.policy
    if policy is None:
        return []
    name, (four, six) = quoted(port.name), _spelled(port.addresses)
    items = []
    for stem, chain in (("in", policy.ingress), ("out", policy.egress)):
        if chain:
            items += [Element("inet", f"pol_{stem}4", address, f"jump {chain}") for address in four]
            items += [Element("inet", f"pol_{stem}6", address, f"jump {chain}") for address in six]
    if port.bridge is None:
        return items
    items.append(Element("bridge", "pol_host", name, macs.of_bridge(port.bridge)))
    if policy:
        items += [Element("bridge", "pol_ports", name), Element("bridge", "pol_macs", port.mac)]
    items += [Element("bridge", "pol_into", name)] if policy.ingress else []
    items += [Element("bridge", "pol_from", name)] if policy.egress else []
    return items


def of_remote(network: str | None, addresses: Iterable[str]) -> list[Element]:
    """Members of a network on other nodes."""
    ours = sorted(set(addresses))
    four, six = _spelled(ours)
    closed = [] if network is None else [
        *(Element("inet", "closed4", address) for address in four),
        *(Element("inet", "closed6", address) for address in six),
    ]  # fmt: skip
    return _members(network, four, six) + closed


def of_edge(edge: FenceEdge) -> list[Element]:
    """An edge peer. Its own chain decides what it may reach; only replies reach it."""
    v = ip_address(edge.address).version
    return [
        *(Element("inet", f"{stem}{v}", edge.address, f"goto {chain_of(edge.network)}") for stem in ("net", "edge")),
        Element("inet", f"closed{v}", edge.address),
        Element("inet", f"edges{v}", edge.address),
    ]


def _spelled(addresses: Iterable[str]) -> tuple[list[str], list[str]]:
    """IPv4 and IPv6 addresses, as `str` spells them."""
    four, six = versions(addresses)
    return list(map(str, four)), list(map(str, six))


def _on_bridge(port: FencePort, four: list[str], six: list[str]) -> list[Element]:
    """`six` includes the link-local address."""
    if port.bridge is None:
        return []
    name, chain, mac = quoted(port.name), chain_of(port.network), port.mac
    digits = mac.replace(":", "")
    items = [Element("bridge", "macs", f"{name} . {mac}")]
    items += [Element("bridge", "src4", f"{name} . {mac} . {address}") for address in four]
    items += [Element("bridge", "src6", f"{name} . {mac} . {address}") for address in six]
    items += [Element("bridge", "target6", f"{name} . {raw(int(IPv6Address(address)), 16)}") for address in six]
    # A link-layer address option: its type (1 source, 2 target), its length in units of 8, the MAC (RFC 4861, 4.6.1).
    items += [Element("bridge", "option6", f"{name} . 0x0{kind}01{digits}") for kind in (1, 2)]
    items += [
        Element("bridge", f"{chain}_p", name),
        Element("bridge", "net", name, f"goto {chain}"),
        Element("bridge", "ports", name),
        Element("bridge", "loops", f"{name} . {name}"),
        Element("inet", "neighbours", f"{quoted(port.bridge)} . {mac}"),
    ]
    return items


def _routed(port: FencePort, four: list[str], six: list[str], local: list[str]) -> list[Element]:
    """`local`: `six` with the link-local address."""
    device = quoted(port.bridge or port.name)
    items = [] if port.bridge else [Element("inet", "inside", device)]
    items += [Element("inet", "home4", f"{device} . {address}") for address in four]
    items += [Element("inet", "home6", f"{device} . {address}") for address in local]
    if port.network is None:
        items += [Element("inet", "open4", f"{device} . {address}") for address in four]
        items += [Element("inet", "open6", f"{device} . {address}") for address in local]
    items += [Element("inet", "same4", f"{address} . {address}") for address in four]
    items += [Element("inet", "same6", f"{address} . {address}") for address in six]
    return items + _members(port.network, four, six)


def _members(network: str | None, four: list[str], six: list[str]) -> list[Element]:
    chain = chain_of(network)
    verdict = f"goto {chain}"
    items = [Element("inet", f"{chain}_m4", address) for address in four]
    items += [Element("inet", f"{chain}_m6", address) for address in six]
    items += [Element("inet", "net4", address, verdict) for address in four]
    items += [Element("inet", "net6", address, verdict) for address in six]
    return items
