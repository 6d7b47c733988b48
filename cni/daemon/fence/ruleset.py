"""The fence: who reaches whom on this node, as nft texts and changes of elements, which host/nft.py carries out.

`base` is the whole of what is always there; loading it again changes no membership and opens nothing, for it is one
transaction. `admit` before a port's link comes up, `expel` after it is gone: what is not admitted is closed, so an
attach has no gap. All of it may be run twice. `compare` says what mends a kernel that is not as it should be.
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
REFILLED = ("node4", "node6", "tunnels", "far4", "far6", "connected4", "connected6")
"""The sets that `base` empties and fills."""
MARKER = "base_"
_ANY_EDGE = FenceEdge("", "0.0.0.0", ("0.0.0.0/0", "::/0"))


def base(node: FenceNode) -> str:
    """Both tables, their sets and chains, and the flat mesh. Idempotent, and no membership is lost by it."""
    lines = [f"add table {family} {TABLE}" for family in FAMILIES]
    lines += [f"add {kind} {family} {TABLE} {name} {{ {of}; }}" for family, kind, name, of in SETS]
    lines += _network_sets(None)
    lines += declare(chains(node))
    if not node.masquerade:
        lines += [f"add chain inet {TABLE} postrouting", f"delete chain inet {TABLE} postrouting"]
    for name in REFILLED:
        lines.append(f"flush set inet {TABLE} {name}")
    return "\n".join(lines) + "\n" + elements.change(add=elements.of_node(node)).text()


def chains(node: FenceNode) -> list[Chain]:
    """Every chain of `base`, flat mesh and markers included."""
    ours = [*network_chains(None), *bridge_chains(node), *inet_chains(node)]
    return [*ours, *_markers(ours)]


def _markers(ours: list[Chain]) -> list[Chain]:
    """An empty chain in each table, called after the text of every rule: a kernel tells rules back in other words than
    they were given in, so whether they are this version's, and for these CIDRs, is read from it."""
    text = "\n".join(declare([*ours, *network_chains(""), edge_chain(_ANY_EDGE)]))
    name = MARKER + hashlib.sha256(text.encode()).hexdigest()[:8]
    return [plain_chain(family, name) for family in FAMILIES]


def forget_marker(family: str, name: str) -> str:
    """Away with the marker of rules that are there no more. Idempotent."""
    return f"add chain {family} {TABLE} {name}\ndelete chain {family} {TABLE} {name}\n"


def create_network(network: str) -> str:
    """The chains and sets of a network that has members or will have. Idempotent; its drop counters start anew."""
    return "\n".join(_network_sets(network) + declare(network_chains(network))) + "\n"


def forget_network(network: str) -> str:
    """Away with the chains and sets of a network without members. Idempotent; refused (EBUSY) while it has any."""
    return forget_chain(chain_of(network))


def forget_chain(name: str) -> str:
    """`forget_network`, by the network's chain."""
    lines = _named_sets(name) + declare([Chain(family, name, "", ()) for family in FAMILIES])
    lines += [f"delete chain {family} {TABLE} {name}" for family in FAMILIES]
    lines += [f"delete set {family} {TABLE} {name}_{stem}" for family, stem, _ in NETWORK_SETS]
    return "\n".join(lines) + "\n"


def create_edge(edge: FenceEdge) -> str:
    """The chain of an edge peer. Idempotent; its drop counter starts anew."""
    return "\n".join(declare([edge_chain(edge)])) + "\n"


def open_bridge(bridge: FenceBridge) -> Change:
    """A bridge is ours: what comes from behind it is a container's. Before its first port. Idempotent."""
    return elements.change(add=elements.of_bridge(bridge))


def close_bridge(bridge: FenceBridge) -> Change:
    """The bridge is gone. Idempotent."""
    return elements.change(take=elements.of_bridge(bridge))


def add_port(port: FencePort) -> Change:
    """Let `port` speak as what it is and reach its network, which exists (create_network). Idempotent.

    Where an address or a port name leads changes hands in the same transaction, but the memberships of an earlier owner
    that was never expelled stay until `compare` finds them: expel first whoever may have been there.
    """
    ours = elements.of_port(port)
    return elements.change(take=(element for element in ours if element.verdict), add=ours)


def remove_port(port: FencePort) -> Change:
    """Everything of `port` ends, established flows included. Idempotent."""
    return elements.change(take=elements.of_port(port))


def uninstall() -> str:
    """Away with both tables; everything is open then, and nothing masqueraded. Idempotent."""
    lines = [f"{verb} table {family} {TABLE}" for family in FAMILIES for verb in ("add", "delete")]
    return "\n".join(lines) + "\n"


def _network_sets(network: str | None) -> list[str]:
    return _named_sets(chain_of(network))


def _named_sets(name: str) -> list[str]:
    return [f"add set {family} {TABLE} {name}_{stem} {{ type {of}; }}" for family, stem, of in NETWORK_SETS]
