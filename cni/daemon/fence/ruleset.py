"""The fence's ruleset, as nft text and changes of elements, which host/nft.py carries out.

`base` is everything that is always there; loading it again changes no membership and opens nothing, since it is one
transaction. `add_port` runs before a port's link comes up, `remove_port` after the port is gone: a port that was not
added is closed, so an attach leaves no gap. All of these are idempotent. `compare` says how to repair a kernel whose
tables differ.
"""

from __future__ import annotations

import hashlib

from cni.daemon.fence import elements
from cni.daemon.fence.bridge import bridge_chains
from cni.daemon.fence.inet import inet_chains
from cni.daemon.fence.model import TABLE, FenceBridge, FenceEdge, FenceNode, FencePort, chain_of
from cni.daemon.fence.rules import NETWORK_SETS, SETS, Chain, declare, edge_chain, network_chains, plain_chain
from cni.host.nft_elements import Change

FAMILIES = ("bridge", "inet")
REFILLED = (
    *("node4", "node6", "tunnels", "far4", "far6", "connected4", "connected6"),
    *(f"{name}{v}" for name in ("reach", "tcp", "udp", "sctp", "from") for v in (4, 6)),
    *("ends4", "ends6", "asked6"),
)
"""The sets that `base` flushes and fills."""
MARKER = "base_"
_ANY_EDGE = FenceEdge("", "0.0.0.0", ("0.0.0.0/0", "::/0"))


def base(node: FenceNode) -> str:
    """Both tables, their sets and chains, and the flat mesh. Idempotent; it keeps every membership."""
    lines = [f"add table {family} {TABLE}" for family in FAMILIES]
    lines += [f"add {kind} {family} {TABLE} {name} {{ {of}; }}" for family, kind, name, of in SETS]
    lines += _network_sets(None)
    lines += declare(chains(node))
    if not node.masquerade:
        lines += [f"add chain inet {TABLE} postrouting", f"delete chain inet {TABLE} postrouting"]
    lines += [f"flush set {family} {TABLE} {name}" for family, _, name, _ in SETS if name in REFILLED]
    return "\n".join(lines) + "\n" + elements.change(add=elements.of_node(node)).text()


def chains(node: FenceNode) -> list[Chain]:
    """Every chain of `base`, including the flat mesh and the markers."""
    ours = [*network_chains(None), *bridge_chains(node), *inet_chains(node)]
    return [*ours, *_markers(ours)]


def _markers(ours: list[Chain]) -> list[Chain]:
    """An empty chain in each table, named after a hash of all rule text. The kernel lists rules in other words than
    they were loaded in, so the marker shows whether the rules are this version's, and for these CIDRs.
    """
    text = "\n".join(declare([*ours, *network_chains(""), edge_chain(_ANY_EDGE)]))
    name = MARKER + hashlib.sha256(text.encode()).hexdigest()[:8]
    return [plain_chain(family, name) for family in FAMILIES]


def forget_marker(family: str, name: str) -> str:
    """Deletes the marker of rules that no longer exist. Idempotent."""
    return f"add chain {family} {TABLE} {name}\ndelete chain {family} {TABLE} {name}\n"


def create_network(network: str) -> str:
    """Creates the chains and sets of a network. Idempotent; its drop counters are reset."""
    return "\n".join(_network_sets(network) + declare(network_chains(network))) + "\n"


def forget_network(network: str) -> str:
    """Deletes the chains and sets of a network without members. Idempotent; refused (EBUSY) while it has members."""
    return forget_chain(chain_of(network))


def forget_chain(name: str) -> str:
    """`forget_network`, by the name of the network's chain."""
    lines = _named_sets(name) + declare([Chain(family, name, "", ()) for family in FAMILIES])
    lines += [f"delete chain {family} {TABLE} {name}" for family in FAMILIES]
    lines += [f"delete set {family} {TABLE} {name}_{stem}" for family, stem, _ in NETWORK_SETS]
    return "\n".join(lines) + "\n"


def create_edge(edge: FenceEdge) -> str:
    """Creates the chain of an edge peer. Idempotent; its drop counter is reset."""
    return "\n".join(declare([edge_chain(edge)])) + "\n"


def open_bridge(bridge: FenceBridge) -> Change:
    """Adds a bridge of the overlay: packets from it count as a container's. Runs before its first port. Idempotent."""
    return elements.change(add=elements.of_bridge(bridge))


def close_bridge(bridge: FenceBridge) -> Change:
    """Removes a bridge that is gone. Idempotent."""
    return elements.change(take=elements.of_bridge(bridge))


def add_port(port: FencePort) -> Change:
    """Adds `port` with its identity and its network, which exists (create_network). Idempotent.

    Map entries of an address or a port name move to the new owner in the same transaction. The set memberships of an
    earlier owner that was not removed stay until `compare` finds them: call `remove_port` for an earlier owner first.
    """
    ours = elements.of_port(port)
    return elements.change(take=(element for element in ours if element.verdict), add=ours)


def remove_port(port: FencePort) -> Change:
    """Removes all elements of `port`; its established flows end too. Idempotent."""
    return elements.change(take=elements.of_port(port))


def uninstall() -> str:
    """Deletes both tables; then everything is open, and nothing is masqueraded. Idempotent."""
    lines = [f"{verb} table {family} {TABLE}" for family in FAMILIES for verb in ("add", "delete")]
    return "\n".join(lines) + "\n"


def _network_sets(network: str | None) -> list[str]:
    return _named_sets(chain_of(network))


def _named_sets(name: str) -> list[str]:
    return [f"add set {family} {TABLE} {name}_{stem} {{ type {of}; }}" for family, stem, of in NETWORK_SETS]
