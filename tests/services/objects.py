"""Services and their endpoint slices, as the API has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.mesh.fleet import Container

from .fake_api import FakeApi
from .kube_proxy import SERVICES, SLICES, name_of

PORT, TARGET = 80, 8080
PROTOCOLS = ("TCP", "UDP")


@dataclass(frozen=True)
class Service:
    """A dual-stack service with the containers behind it. `node_port`: 0 for none."""

    name: str
    number: int
    containers: tuple[Container, ...]
    node_port: int = 0
    local: bool = False  # externalTrafficPolicy
    affinity: bool = False
    load_balancer: bool = False

    def address(self, six: bool) -> str:
        """The ClusterIP."""
        return f"fd00:96::{self.number:x}" if six else f"10.96.0.{self.number}"

    def balanced(self, six: bool) -> str:
        """The load balancer's address."""
        return f"2001:db8:77::{self.number:x}" if six else f"203.0.113.{self.number}"


def publish(api: FakeApi, service: Service) -> None:
    """Make the service and its endpoints known."""
    addresses = [service.address(six) for six in (False, True)]
    ports = [
        {"name": p.lower(), "protocol": p, "port": PORT, "targetPort": TARGET, "nodePort": service.node_port or None}
        for p in PROTOCOLS
    ]
    spec: dict[str, Any] = {
        "type": "LoadBalancer" if service.load_balancer else "NodePort" if service.node_port else "ClusterIP",
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "ClientIP" if service.affinity else "None",
        "ports": [{key: value for key, value in port.items() if value is not None} for port in ports],
        "selector": {"app": service.name},
    }
    if service.affinity:
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": 10800}}
    if service.node_port:
        spec["externalTrafficPolicy"] = "Local" if service.local else "Cluster"
    balanced = [{"ip": service.balanced(six), "ipMode": "VIP"} for six in (False, True)]
    status = {"loadBalancer": {"ingress": balanced} if service.load_balancer else {}}
    api.put(SERVICES, {"metadata": {"name": service.name}, "spec": spec, "status": status})
    for six in (False, True):
        api.put(SLICES, _slice(service.name, service.containers, six))


def _slice(name: str, containers: Iterable[Container], six: bool) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{name}-{6 if six else 4}", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv6" if six else "IPv4",
        "endpoints": [
            {
                "addresses": [container.address6 if six else container.address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": name_of(container.node),
            }
            for container in containers
        ],
        "ports": [{"name": p.lower(), "protocol": p, "port": TARGET} for p in PROTOCOLS],
    }
