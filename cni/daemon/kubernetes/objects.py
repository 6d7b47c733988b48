"""Pods and Namespaces, reduced to what this node needs of them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlencode

import msgspec

from cni.daemon.model.kubernetes import ClusterPolicy, NamedPort, Namespace, Pod, Texts

T = TypeVar("T")
MIRROR = "kubernetes.io/config.mirror"
ANNOTATIONS = "com.zlayer."  # the beginning of the annotations that are kept


@dataclass(frozen=True)
class Resource(Generic[T]):
    """What is followed: the path of the objects' list, a selector by field, and how an object is read from its JSON,
    which raises ValueError (msgspec.ValidationError is one) for an object that is of no use."""

    name: str  # the plural, for messages
    path: str
    read: Callable[[bytes | msgspec.Raw], T]
    field_selector: str = ""

    def query(self, **words: str) -> str:
        """The path with a query for the objects that are followed."""
        selected = {"fieldSelector": self.field_selector} if self.field_selector else {}
        return f"{self.path}?{urlencode(selected | words)}"


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str = ""
    labels: Texts | None = None
    annotations: Texts | None = None

    @property
    def ours(self) -> Texts:
        """The annotations of this product."""
        return {key: text for key, text in (self.annotations or {}).items() if key.startswith(ANNOTATIONS)}


class _Namespace(msgspec.Struct):
    metadata: _Metadata


class _Port(msgspec.Struct, rename="camel"):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class _Container(msgspec.Struct, rename="camel"):
    ports: tuple[_Port, ...] | None = None
    restart_policy: str = ""


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    host_network: bool = False
    containers: tuple[_Container, ...] | None = None
    init_containers: tuple[_Container, ...] | None = None


class _Address(msgspec.Struct):
    ip: str = ""


class _PodStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    pod_ips: tuple[_Address, ...] | None = msgspec.field(default=None, name="podIPs")


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _Policy(msgspec.Struct):
    metadata: _Metadata
    spec: msgspec.Raw = msgspec.Raw(b"{}")


_read_policy = msgspec.json.Decoder(_Policy).decode
_read_namespace = msgspec.json.Decoder(_Namespace).decode
_read_pod = msgspec.json.Decoder(_Pod).decode


def namespace_of(raw: bytes | msgspec.Raw) -> Namespace:
    """The Namespace of a JSON object. Raises ValueError."""
    metadata = _read_namespace(raw).metadata
    return Namespace(metadata.name, metadata.labels or {}, metadata.ours)


def pod_of(raw: bytes | msgspec.Raw) -> Pod:
    """The Pod of a JSON object. Raises ValueError."""
    pod = _read_pod(raw)
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    sidecars = [each for each in spec.init_containers or () if each.restart_policy == "Always"]
    ports = [port for container in (*(spec.containers or ()), *sidecars) for port in container.ports or ()]
    has_ended = status.phase in ("Succeeded", "Failed")
    return Pod(
        namespace=metadata.namespace,
        name=metadata.name,
        # The kubelet calls a static pod by the uid of its file; the API server has a mirror of it with another one.
        uid=(metadata.annotations or {}).get(MIRROR) or metadata.uid,
        labels=metadata.labels or {},
        annotations=metadata.ours,
        node=spec.node_name,
        ips=() if has_ended else tuple(address.ip for address in status.pod_ips or () if address.ip),
        ports=tuple(NamedPort(port.name, port.protocol, port.container_port) for port in ports if port.name),
        host_network=spec.host_network,
    )


def policy_of(raw: bytes | msgspec.Raw) -> ClusterPolicy:
    """The NetworkPolicy of a JSON object. Raises ValueError."""
    found = _read_policy(raw)
    return ClusterPolicy(found.metadata.namespace, found.metadata.name, bytes(found.spec).decode())


NETWORK_POLICIES = Resource("networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies", policy_of)
NAMESPACES = Resource("namespaces", "/api/v1/namespaces", namespace_of)
PODS = Resource("pods", "/api/v1/pods", pod_of)
