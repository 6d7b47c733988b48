"""Which policies isolate which ports of this node, and the chains and sets that follow. No I/O.

A chain is made for each set of policies that isolates a port here, and a set for each selector that those policies
name. Chains stay while the daemon knows their policies, so that a pod that comes and goes changes elements alone;
`tidy` forgets those that no port uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cni.daemon.fence import policy_chains
from cni.daemon.fence.model import FenceNode, PortPolicy, raw
from cni.daemon.fence.policy_chains import Signature
from cni.daemon.fence.rules import Chain
from cni.daemon.policy.model import Pod, PodPeer, Policy
from cni.daemon.policy.table import PolicyTable, PortName
from cni.host.nft_elements import Element

_FAMILIES = (("4", "ipv4_addr"), ("6", "ipv6_addr"))


@dataclass(frozen=True, slots=True)
class PolicySet:
    """One set of the table `inet`: its name, its type, and its keys in nft text."""

    name: str
    of: str
    keys: frozenset[str]

    def elements(self) -> list[Element]:
        """The set's elements."""
        return [Element("inet", self.name, key) for key in self.keys]


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """The chains and sets of the policies that isolate ports of this node."""

    chains: tuple[Chain, ...] = ()
    sets: tuple[PolicySet, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chains)

    def declared(self) -> list[tuple[str, str, str, str]]:
        """The sets and maps as rows of `rules.SETS`; none while no port is isolated."""
        return [*policy_chains.MAPS, *(("inet", "set", s.name, f"type {s.of}") for s in self.sets)] if self else []


NONE = PolicyRules()


class PolicyBook:
    """One thread at a time; the lock of `FenceTables` ensures that."""

    def __init__(self) -> None:
        self.table = PolicyTable()
        self._signatures: dict[str, Signature] = {}
        self._chains: tuple[FenceNode | None, tuple[Chain, ...]] = (None, ())

    def port_policy(self, pod: Pod | None) -> PortPolicy:
        """The chains that judge a pod's flows; those of unknown pods for None."""
        if pod is None:
            return PortPolicy(policy_chains.UNKNOWN, policy_chains.UNKNOWN)
        ingress = Signature("ingress", tuple(p.key for p in self.table.selecting(pod, "ingress")))
        egress = Signature("egress", tuple(p.key for p in self.table.selecting(pod, "egress")))
        for signature in (ingress, egress):
            if signature.chain and signature.chain not in self._signatures:
                self._signatures[signature.chain] = signature
                self._changed()
        return PortPolicy(ingress.chain, egress.chain)

    def set_policies(self, policies: Iterable[Policy]) -> None:
        """Replaces all policies. The chains of every port are to be asked for again."""
        self.table.set_policies(policies)
        known = self.table.policies.keys()
        self._signatures = {name: s for name, s in self._signatures.items() if known >= set(s.policies)}
        self._changed()

    def tidy(self, used: Iterable[PortPolicy | None]) -> None:
        """Forgets the chains that none of these uses."""
        names = {name for policy in used if policy is not None for name in (policy.ingress, policy.egress)}
        kept = {name: s for name, s in self._signatures.items() if name in names}
        if len(kept) != len(self._signatures):
            self._signatures = kept
            self._changed()

    def _changed(self) -> None:
        used = {key for signature in self._signatures.values() for key in signature.policies}
        self.table.keep(self.table.policies[key] for key in used)
        self._chains = (None, ())

    def rules(self, node: FenceNode) -> PolicyRules:
        """The chains and sets. Sets that are unchanged are the same objects as before."""
        known, chains = self._chains
        if known is None or known.clusters != node.clusters:
            chains = (
                *policy_chains.base_chains(node),
                *(self._chain(self._signatures[name]) for name in sorted(self._signatures)),
            )
            self._chains = (node, chains)
        return PolicyRules(chains, self._current_sets())

    def _chain(self, signature: Signature) -> Chain:
        return policy_chains.chain(signature, (self.table.policies[key] for key in signature.policies))

    def _current_sets(self) -> tuple[PolicySet, ...]:
        sets: list[PolicySet] = []
        for peer in self.table.kept_peers():
            sets += peer.derived(_of_peer)
        for name in self.table.kept_names():
            sets += name.derived(_of_name)
        return tuple(sets)


def _of_peer(peer: PodPeer, members: frozenset[str]) -> list[PolicySet]:
    return [
        PolicySet(policy_chains.set_of_peer(peer, v), of, frozenset(a for a in members if (":" in a) == (v == "6")))
        for v, of in _FAMILIES
    ]


def _of_name(port: PortName, items: frozenset[tuple[str, int]]) -> list[PolicySet]:
    keys = {
        v: frozenset(f"{a} . {raw(number, 2)}" for a, number in items if (":" in a) == (v == "6")) for v, _ in _FAMILIES
    }
    return [PolicySet(policy_chains.set_of_name(*port, v), f"{of} . inet_service", keys[v]) for v, of in _FAMILIES]
