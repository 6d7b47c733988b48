"""The policies, pods and namespaces that are known, and which addresses each selector in use selects.

Kept up to date pod by pod: a pod that comes or changes is compared with the selectors in use on this node, not with
every pod. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from cni.daemon.policy.decide import Decision, End, Flow, may
from cni.daemon.policy.model import (
    DIRECTIONS,
    NAMESPACE_LABEL,
    Direction,
    Pod,
    PodPeer,
    Policy,
    PolicyName,
    sorted_policies,
)

PortName: TypeAlias = tuple[str, str]
"""(protocol, name) of a named port."""
AddressAndPort: TypeAlias = tuple[str, int]


class PolicyTable:
    """What is known, and the members of the selectors in use."""

    def __init__(self) -> None:
        self._policies: dict[PolicyName, Policy] = {}
        self._of_namespace: dict[str, list[Policy]] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._pods: dict[str, Pod] = {}
        self._members: dict[PodPeer, frozenset[str]] = {}
        self._named: dict[PortName, frozenset[AddressAndPort]] = {}

    # --- what is known -----------------------------------------------------------------------------------------------

    def set_policies(self, policies: Iterable[Policy]) -> None:
        """Replaces all policies."""
        self._policies = {policy.key: policy for policy in policies}
        self._of_namespace = {}
        for policy in sorted_policies(self._policies.values()):
            self._of_namespace.setdefault(policy.namespace, []).append(policy)

    def set_namespaces(self, namespaces: Mapping[str, Mapping[str, str]]) -> None:
        """Replaces the labels of all namespaces. A namespace that is not listed has the label of its name alone."""
        if self._namespaces != namespaces:
            self._namespaces = dict(namespaces)
            self._members = {
                peer: members if peer.namespaces is None else self._selected(peer)
                for peer, members in self._members.items()
            }

    def set_pods(self, pods: Mapping[str, Pod]) -> None:
        """Replaces all pods."""
        self._pods = dict(pods)
        self._members = {peer: self._selected(peer) for peer in self._members}
        self._named = {name: self._with_port(name) for name in self._named}

    def set_pod(self, key: str, pod: Pod) -> None:
        """Adds a pod, or replaces what is known of it."""
        before = self._pods.get(key)
        if before != pod:
            self._pods[key] = pod
            self._move(before, pod)

    def remove_pod(self, key: str) -> None:
        """Forgets a pod, known or not."""
        self._move(self._pods.pop(key, None), None)

    @property
    def policies(self) -> Mapping[PolicyName, Policy]:
        """All policies."""
        return self._policies

    @property
    def pods(self) -> Mapping[str, Pod]:
        """All pods."""
        return self._pods

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """The labels of a namespace."""
        return self._namespaces.get(namespace, {NAMESPACE_LABEL: namespace})

    # --- what follows from it ----------------------------------------------------------------------------------------

    def selecting(self, pod: Pod, direction: Direction) -> tuple[Policy, ...]:
        """The policies that isolate a pod in that direction, in their order."""
        of_namespace = self._of_namespace.get(pod.namespace, ())
        return tuple(policy for policy in of_namespace if policy.selects(pod, direction))

    def decide(self, flow: Flow) -> Decision:
        """Whether a flow may be opened."""
        names = {end.pod.namespace for end in (flow.client, flow.server) if end.pod is not None}
        return may(flow, self._policies.values(), {name: self.labels_of(name) for name in names})

    def end(self, address: str, pod: Pod | None = None) -> End:
        """The end of a flow with that address. `pod`: the pod that has it, if that is known already."""
        return End(address, pod or next((pod for pod in self._pods.values() if address in pod.addresses), None))

    def keep(self, policies: Iterable[Policy]) -> None:
        """Keeps the members of the selectors and named ports of these policies up to date, and of no others."""
        peers: set[PodPeer] = set()
        names: set[PortName] = set()
        for policy in policies:
            for rule in (rule for direction in DIRECTIONS for rule in policy.rules(direction) or ()):
                peers.update(peer for peer in rule.peers or () if isinstance(peer, PodPeer))
                names.update((port.protocol, port.name) for port in rule.ports or () if port.name)
        self._members = {peer: self._kept(peer) for peer in peers}
        self._named = {name: self._named[name] if name in self._named else self._with_port(name) for name in names}

    def kept_peers(self) -> Iterable[tuple[PodPeer, frozenset[str]]]:
        """The kept selectors with the addresses that they select: the same object while these are unchanged."""
        return self._members.items()

    def kept_names(self) -> Iterable[tuple[PortName, frozenset[AddressAndPort]]]:
        """The kept named ports with addresses and numbers: the same object while these are unchanged."""
        return self._named.items()

    def _kept(self, peer: PodPeer) -> frozenset[str]:
        return self._members[peer] if peer in self._members else self._selected(peer)

    def _selected(self, peer: PodPeer) -> frozenset[str]:
        return frozenset(
            address
            for pod in self._pods.values()
            if pod.addresses and peer.accepts(pod, self.labels_of(pod.namespace))
            for address in pod.addresses
        )

    def _with_port(self, name: PortName) -> frozenset[AddressAndPort]:
        return frozenset(item for pod in self._pods.values() for item in _numbers(pod, name))

    def _move(self, before: Pod | None, after: Pod | None) -> None:
        """Takes the addresses of `before` out of the members, and those of `after` in."""
        for peer, members in self._members.items():
            old, new = self._addresses(before, peer), self._addresses(after, peer)
            if old != new:
                self._members[peer] = members - old | new
        for name, items in self._named.items():
            had, has = _numbers(before, name), _numbers(after, name)
            if had != has:
                self._named[name] = items - had | has

    def _addresses(self, pod: Pod | None, peer: PodPeer) -> frozenset[str]:
        if pod is None or not peer.accepts(pod, self.labels_of(pod.namespace)):
            return frozenset()
        return frozenset(pod.addresses)


def _numbers(pod: Pod | None, name: PortName) -> frozenset[AddressAndPort]:
    if pod is None or not pod.ports:
        return frozenset()
    numbers = [port.number for port in pod.ports if (port.protocol, port.name) == name]
    return frozenset((address, number) for address in pod.addresses for number in numbers)
