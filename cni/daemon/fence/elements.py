"""The set elements of the node, of a bridge, of a port, of a remote member and of an edge peer."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

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
from cni.host.nft_elements import Change, Element


def change(take: Iterable[Element] = (), add: Iterable[Element] = ()) -> Change:
    """One transaction that deletes elements of the fence's tables, present or not, and then adds others."""
    return Change(TABLE, tuple(take), tuple(add))


def of_node(node: FenceNode) -> list[Element]:
    """The node's own addresses, its tunnels, the CIDRs behind them, and the host's connected networks."""
    four, six = versions(node.addresses)
    return [
        *(Element("inet", "node4", str(address)) for address in four),
        *(Element("inet", "node6", str(address)) for address in six),
        *(Element("inet", "tunnels", quoted(device)) for device in node.tunnels),
        *(Element("inet", f"far{ip_network(cidr).version}", cidr) for cidr in node.far),
        *(Element("inet", f"connected{ip_network(cidr).version}", cidr) for cidr in node.connected),
    ]


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
    device = quoted(port.bridge or port.name)
    return [*_on_bridge(port), *_routed(port, device)]


def of_remote(network: str | None, addresses: Iterable[str]) -> list[Element]:
    """Members of a network on other nodes."""
    ours = sorted(set(addresses))
    four, six = versions(ours)
    closed = [] if network is None else [
        *(Element("inet", "closed4", str(address)) for address in four),
        *(Element("inet", "closed6", str(address)) for address in six),
    ]  # fmt: skip
    return _members(network, ours) + closed


def of_edge(edge: FenceEdge) -> list[Element]:
    """An edge peer. Its own chain decides what it may reach; only replies reach it."""
    v = ip_address(edge.address).version
    return [
        *(Element("inet", f"{stem}{v}", edge.address, f"goto {chain_of(edge.network)}") for stem in ("net", "edge")),
        Element("inet", f"closed{v}", edge.address),
        Element("inet", f"edges{v}", edge.address),
    ]


def _on_bridge(port: FencePort) -> list[Element]:
    if port.bridge is None:
        return []
    four, six = versions(port.addresses)
    name, chain, mac = quoted(port.name), chain_of(port.network), port.mac
    six = [*six, link_local(mac)]
    number = int(mac.replace(":", ""), 16)
    items = [Element("bridge", "macs", f"{name} . {mac}")]
    items += [Element("bridge", "src4", f"{name} . {mac} . {address}") for address in four]
    items += [Element("bridge", "src6", f"{name} . {mac} . {address}") for address in six]
    items += [Element("bridge", "target6", f"{name} . {raw(int(address), 16)}") for address in six]
    # A link-layer address option: its type (1 source, 2 target), its length in units of 8, the MAC (RFC 4861, 4.6.1).
    items += [Element("bridge", "option6", f"{name} . {raw(kind << 56 | 1 << 48 | number, 8)}") for kind in (1, 2)]
    items += [
        Element("bridge", f"{chain}_p", name),
        Element("bridge", "net", name, f"goto {chain}"),
        Element("bridge", "ports", name),
        Element("bridge", "loops", f"{name} . {name}"),
        Element("inet", "neighbours", f"{quoted(port.bridge)} . {mac}"),
    ]
    return items


def _routed(port: FencePort, device: str) -> list[Element]:
    four, six = versions(port.addresses)
    local = [*six, link_local(port.mac)]
    items = [] if port.bridge else [Element("inet", "inside", device)]
    items += [Element("inet", "home4", f"{device} . {address}") for address in four]
    items += [Element("inet", "home6", f"{device} . {address}") for address in local]
    if port.network is None:
        items += [Element("inet", "open4", f"{device} . {address}") for address in four]
        items += [Element("inet", "open6", f"{device} . {address}") for address in local]
    items += [Element("inet", "same4", f"{address} . {address}") for address in four]
    items += [Element("inet", "same6", f"{address} . {address}") for address in six]
    return items + _members(port.network, port.addresses)


def _members(network: str | None, addresses: Iterable[str]) -> list[Element]:
    four, six = versions(addresses)
    chain = chain_of(network)
    items = [Element("inet", f"{chain}_m4", str(address)) for address in four]
    items += [Element("inet", f"{chain}_m6", str(address)) for address in six]
    items += [Element("inet", "net4", str(address), f"goto {chain}") for address in four]
    items += [Element("inet", "net6", str(address), f"goto {chain}") for address in six]
    return items
