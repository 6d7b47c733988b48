"""Everything that the fence should hold, as one value: what the tables are compared with and made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni.daemon.fence import elements, ruleset
from cni.daemon.fence.model import FenceBridge, FenceEdge, FenceNode, FencePort, RemoteMember
from cni.daemon.fence.policy_book import NONE, PolicyRules
from cni.daemon.fence.rules import Chain, edge_chain, network_chains
from cni.host.nft_elements import Element


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything that the fence should hold: the node, its bridges and ports, remote members and edge peers, and the
    rules of network policies."""

    node: FenceNode
    bridges: tuple[FenceBridge, ...] = ()
    ports: tuple[FencePort, ...] = ()
    remotes: tuple[RemoteMember, ...] = ()
    edges: tuple[FenceEdge, ...] = ()
    policies: PolicyRules = NONE

    def local(self) -> DesiredState:
        """Without what other nodes and agents publish: the part that isolation on this node depends on."""
        return replace(self, remotes=(), edges=())

    def networks(self) -> list[str]:
        """The networks that have members, on this node or elsewhere, sorted by name."""
        of_all = [*(port.network for port in self.ports), *(remote.network for remote in self.remotes)]
        return sorted({network for network in of_all if network is not None})

    def chains(self) -> list[Chain]:
        """Every desired chain."""
        ours = [*ruleset.chains(self.node), *(c for name in self.networks() for c in network_chains(name))]
        return [*ours, *(edge_chain(edge) for edge in self.edges), *self.policies.chains]

    def elements(self) -> list[Element]:
        """Every desired element."""
        desired = elements.of_node(self.node)
        for bridge in self.bridges:
            desired += elements.of_bridge(bridge)
        for port in self.ports:
            desired += elements.of_port(port)
        for remote in self.remotes:
            desired += elements.of_remote(remote.network, remote.addresses)
        for edge in self.edges:
            desired += elements.of_edge(edge)
        for one in self.policies.sets:
            desired += one.elements()
        return desired
