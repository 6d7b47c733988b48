"""Pods and Namespaces of Kubernetes, reduced to what a node needs of them."""

from __future__ import annotations

import msgspec

Texts = dict[str, str]


class Namespace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Namespace: its labels, and its annotations of this product."""

    name: str
    labels: Texts = {}
    annotations: Texts = {}


class ClusterPolicy(msgspec.Struct, frozen=True):
    """A NetworkPolicy; `spec` is its JSON."""

    namespace: str
    name: str
    spec: str


class NamedPort(msgspec.Struct, frozen=True):
    """A port of a container that has a name."""

    name: str
    protocol: str
    port: int


class Pod(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Pod: its labels, its annotations of this product, its addresses and named ports. A Pod whose containers have
    ended has no addresses: they may be another Pod's by now."""

    namespace: str
    name: str
    uid: str
    labels: Texts = {}
    annotations: Texts = {}
    node: str = ""
    ips: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    host_network: bool = False
