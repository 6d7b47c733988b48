"""The values of network policies: what `networking.k8s.io/v1` says, without the forms in which it may be written.

A policy selects pods of its own namespace. In each direction that a policy has rules for, the selected pods are
isolated: a flow is allowed if one rule of one policy that selects the pod allows it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal, TypeAlias

from cni.addresses import Network

Direction: TypeAlias = Literal["ingress", "egress"]
Protocol: TypeAlias = Literal["TCP", "UDP", "SCTP"]
Operator: TypeAlias = Literal["In", "NotIn", "Exists", "DoesNotExist"]
PolicyName: TypeAlias = tuple[str, str]
"""(namespace, name): identifies a policy."""

DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
NUMBERS: Mapping[str, int] = {"TCP": 6, "UDP": 17, "SCTP": 132}
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""The label that every namespace has, with its name as value."""


class UnheardLabels(dict[str, str]):
    """The known labels of a namespace that the API has not told the daemon yet. A key that is not here may exist."""


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One condition on labels. `values` is sorted, and empty for Exists and DoesNotExist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet the condition. NotIn accepts labels without the key."""
        if self.key not in labels and isinstance(labels, UnheardLabels):
            return False
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """Labels that meet every requirement; without a requirement, all labels. Equal if written in another order."""

    requirements: tuple[Requirement, ...] = ()

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether the selector selects something with these labels."""
        return all(requirement.accepts(labels) for requirement in self.requirements)


ALL = Selector()


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods that `pods` selects, in the namespace `namespace`, or in those that `namespaces` selects."""

    pods: Selector
    namespace: str = ""
    namespaces: Selector | None = None

    def accepts(self, pod: Pod, namespace_labels: Mapping[str, str]) -> bool:
        """Whether the peer is this pod, in a namespace with these labels."""
        if self.namespaces is None:
            return pod.namespace == self.namespace and self.pods.accepts(pod.labels)
        return self.namespaces.accepts(namespace_labels) and self.pods.accepts(pod.labels)


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """The addresses of `cidr` that are in none of `excepted`."""

    cidr: str
    excepted: tuple[str, ...] = ()

    def accepts(self, address: str) -> bool:
        """Whether the address is one of the block's."""
        return _is_in(address, self.cidr) and not any(_is_in(address, cidr) for cidr in self.excepted)


Peer: TypeAlias = PodPeer | BlockPeer


@dataclass(frozen=True, slots=True)
class PortMatch:
    """Ports of one protocol: those from `first` to `last`, or those that the destination pod calls `name`."""

    protocol: Protocol
    first: int = 1
    last: int = 65535
    name: str = ""

    def accepts(self, protocol: str, port: int, pod: Pod | None) -> bool:
        """Whether a flow of that protocol and destination port is meant; `pod` is its destination, if it is a pod."""
        if protocol != self.protocol:
            return False
        if self.name:
            return pod is not None and NamedPort(self.name, self.protocol, port) in pod.ports
        return self.is_any or self.first <= port <= self.last

    @property
    def is_any(self) -> bool:
        """Whether every port of the protocol is meant."""
        return not self.name and (self.first, self.last) == (1, 65535)


@dataclass(frozen=True, slots=True)
class Rule:
    """Flows that are allowed: with one of `peers`, to one of `ports`. None means any."""

    peers: tuple[Peer, ...] | None = None
    ports: tuple[PortMatch, ...] | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy. `ingress` and `egress` are None for a direction in which the policy isolates no pod."""

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None

    @property
    def key(self) -> PolicyName:
        """What identifies the policy."""
        return (self.namespace, self.name)

    @property
    def title(self) -> str:
        """How operators call the policy."""
        return f"{self.namespace}/{self.name}"

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """The rules of one direction; None if the policy isolates no pod in that direction."""
        return self.ingress if direction == "ingress" else self.egress

    def selects(self, pod: Pod, direction: Direction) -> bool:
        """Whether the policy isolates the pod in that direction."""
        return self.rules(direction) is not None and pod.namespace == self.namespace and self.pods.accepts(pod.labels)


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port of a pod that has a name; a pod may have the name more than once, for several protocols."""

    name: str
    protocol: str
    number: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, or an attachment where there is no Kubernetes: what selectors match, and its addresses."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    addresses: tuple[str, ...] = ()
    ports: frozenset[NamedPort] = frozenset()
    uid: str = ""

    @property
    def title(self) -> str:
        """How operators call the pod."""
        return f"{self.namespace}/{self.name}"


def sorted_policies(policies: Iterable[Policy]) -> list[Policy]:
    """Policies in the order in which chains and answers name them."""
    return sorted(policies, key=lambda policy: policy.key)


@functools.lru_cache(4096)
def _network(cidr: str) -> Network:
    return ip_network(cidr)


def _is_in(address: str, cidr: str) -> bool:
    return ip_address(address) in _network(cidr)
