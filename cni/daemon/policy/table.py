"""The policies, pods and namespaces that are known, and which addresses each selector in use selects.

Kept up to date pod by pod: a pod that comes or changes is compared with the selectors in use on this node, not with
every pod. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

from cni.daemon.policy.decide import Decision, End, Flow, may
from cni.daemon.policy.model import (
    DIRECTIONS,
    NAMESPACE_LABEL,
    Direction,
    Pod,
    PodPeer,
    Policy,
    PolicyName,
    UnheardLabels,
    sorted_policies,
)

PortName: TypeAlias = tuple[str, str]
"""(protocol, name) of a named port."""
AddressAndPort: TypeAlias = tuple[str, int]
K = TypeVar("K")
M = TypeVar("M")
T = TypeVar("T")


@dataclass(slots=True)
class Kept(Generic[K, M]):
    """A selector or a named port in use, and what it means now."""

    key: K
    members: frozenset[M]
    _derived: list[object] | None = None

    def derived(self, make: Callable[[K, frozenset[M]], Iterable[T]]) -> list[T]:
        """What `make` makes of key and members: the same objects until the members change."""
        if self._derived is None:
            self._derived = list(make(self.key, self.members))
        return cast("list[T]", self._derived)

    def change(self, take: frozenset[M], add: frozenset[M]) -> None:
        """Takes members out, then others in."""
        if take != add:
            self.members, self._derived = self.members - take | add, None

    def replace(self, members: frozenset[M]) -> None:
        """Replaces the members."""
        if members != self.members:
            self.members, self._derived = members, None


class PolicyTable:
    """What is known, and the members of the selectors in use."""

    def __init__(self) -> None:
        self._follows_cluster = False
        self._policies: dict[PolicyName, Policy] = {}
        self._policies_of: dict[str, list[Policy]] = {}  # by namespace
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._pods: dict[str, Pod] = {}
        self._pods_of: dict[str, dict[str, Pod]] = {}  # by namespace
        self._keys_of: dict[str, set[str]] = {}  # the pods of an address: two while one takes over an address
        self._peers: dict[PodPeer, Kept[PodPeer, str]] = {}
        self._names: dict[PortName, Kept[PortName, AddressAndPort]] = {}

    # --- what is known -----------------------------------------------------------------------------------------------

    def set_policies(self, policies: Iterable[Policy]) -> None:
        """Replaces all policies."""
        self._policies = {policy.key: policy for policy in policies}
        self._policies_of = {}
        for policy in sorted_policies(self._policies.values()):
            self._policies_of.setdefault(policy.namespace, []).append(policy)

    def follow_cluster(self) -> None:
        """From now on an API tells pods and namespaces: one of which it has not told may have any label."""
        self._follows_cluster = True

    def set_namespaces(self, namespaces: Mapping[str, Mapping[str, str]]) -> None:
        """Replaces the labels of all namespaces."""
        if self._namespaces != namespaces:
            self._namespaces = dict(namespaces)
            for peer, kept in self._peers.items():
                if peer.namespaces is not None:
                    kept.replace(self._selected(peer))

    def set_pods(self, pods: Mapping[str, Pod]) -> None:
        """Replaces all pods."""
        self._pods, self._pods_of, self._keys_of = {}, {}, {}
        for key, pod in pods.items():
            self._place(key, pod)
        for peer, kept in self._peers.items():
            kept.replace(self._selected(peer))
        for name, of_name in self._names.items():
            of_name.replace(self._with_port(name))

    def set_pod(self, key: str, pod: Pod) -> None:
        """Adds a pod, or replaces what is known of it."""
        before = self._pods.get(key)
        if before != pod:
            self._displace(key)
            self._place(key, pod)
            self._move(key, before, pod)

    def remove_pod(self, key: str) -> None:
        """Forgets a pod, known or not."""
        self._move(key, self._displace(key), None)

    def _place(self, key: str, pod: Pod) -> None:
        self._pods[key] = pod
        self._pods_of.setdefault(pod.namespace, {})[key] = pod
        for address in pod.addresses:
            self._keys_of.setdefault(address, set()).add(key)

    def _displace(self, key: str) -> Pod | None:
        pod = self._pods.pop(key, None)
        if pod is not None:
            del self._pods_of[pod.namespace][key]
            for address in pod.addresses:
                self._keys_of[address].discard(key)
                if not self._keys_of[address]:
                    del self._keys_of[address]
        return pod

    @property
    def policies(self) -> Mapping[PolicyName, Policy]:
        """All policies."""
        return self._policies

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """The labels of a namespace. Of one that is not listed the name alone is known; where a cluster tells the
        namespaces, it may have others, and no selector that denies a label accepts it."""
        if (labels := self._namespaces.get(namespace)) is not None:
            return labels
        only_name = {NAMESPACE_LABEL: namespace}
        return UnheardLabels(only_name) if self._follows_cluster else only_name

    # --- what follows from it ----------------------------------------------------------------------------------------

    def selecting(self, pod: Pod, direction: Direction) -> tuple[Policy, ...]:
        """The policies that isolate a pod in that direction, in their order."""
        of_namespace = self._policies_of.get(pod.namespace, ())
        return tuple(policy for policy in of_namespace if policy.selects(pod, direction))

    def decide(self, flow: Flow) -> Decision:
        """Whether a flow may be opened."""
        names = {end.pod.namespace for end in (flow.client, flow.server) if end.pod is not None}
        return may(flow, self._policies.values(), {name: self.labels_of(name) for name in names})

    def end(self, address: str) -> End:
        """The end of a flow with that address, with the pod that has it, if that is known."""
        return End(address, next((pod for pod in self._pods.values() if address in pod.addresses), None))

    def keep(self, policies: Iterable[Policy]) -> None:
        """Keeps the members of the selectors and named ports of these policies up to date, and of no others."""
        peers: dict[PodPeer, None] = {}
        names: dict[PortName, None] = {}
        for policy in policies:
            for rule in (rule for direction in DIRECTIONS for rule in policy.rules(direction) or ()):
                peers |= {peer: None for peer in rule.peers or () if isinstance(peer, PodPeer)}
                names |= {(port.protocol, port.name): None for port in rule.ports or () if port.name}
        self._peers = {peer: self._peers.get(peer) or Kept(peer, self._selected(peer)) for peer in peers}
        self._names = {name: self._names.get(name) or Kept(name, self._with_port(name)) for name in names}

    def kept_peers(self) -> Iterable[Kept[PodPeer, str]]:
        """The kept selectors, with the addresses that they select."""
        return self._peers.values()

    def kept_names(self) -> Iterable[Kept[PortName, AddressAndPort]]:
        """The kept named ports, with addresses and numbers."""
        return self._names.values()

    def _selected(self, peer: PodPeer) -> frozenset[str]:
        if peer.namespaces is None:
            names: Iterable[str] = (peer.namespace,)
        else:
            names = [name for name in self._pods_of if peer.namespaces.accepts(self.labels_of(name))]
        return frozenset(
            address
            for name in names
            for pod in self._pods_of.get(name, {}).values()
            if pod.addresses and peer.pods.accepts(pod.labels)
            for address in pod.addresses
        )

    def _with_port(self, name: PortName) -> frozenset[AddressAndPort]:
        return frozenset(item for pod in self._pods.values() for item in _numbers(pod, name))

    def _move(self, key: str, before: Pod | None, after: Pod | None) -> None:
        """Takes the addresses of `before` out of the members, and those of `after` in. What another pod with an address
        of `before` gives stays."""
        keys = {each for address in (before.addresses if before else ()) for each in self._keys_of.get(address, ())}
        present = [after, *(self._pods[other] for other in keys - {key})]
        for peer, kept in self._peers.items():
            kept.change(self._addresses(before, peer), _union(self._addresses(pod, peer) for pod in present))
        for name, of_name in self._names.items():
            of_name.change(_numbers(before, name), _union(_numbers(pod, name) for pod in present))

    def _addresses(self, pod: Pod | None, peer: PodPeer) -> frozenset[str]:
        if pod is None or not pod.addresses or not peer.accepts(pod, self.labels_of(pod.namespace)):
            return frozenset()
        return frozenset(pod.addresses)


def _numbers(pod: Pod | None, name: PortName) -> frozenset[AddressAndPort]:
    if pod is None or not pod.ports:
        return frozenset()
    numbers = [port.number for port in pod.ports if (port.protocol, port.name) == name]
    return frozenset((address, number) for address in pod.addresses for number in numbers)


def _union(parts: Iterable[frozenset[M]]) -> frozenset[M]:
    return frozenset[M]().union(*parts)
