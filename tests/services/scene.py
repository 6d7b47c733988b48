"""Two nodes, their containers, a kube-proxy on each, and a host outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Container, Node, arrives, run

from .fake_api import FakeApi
from .kube_proxy import KubeProxy, name_of
from .listeners import Listeners
from .objects import TARGET, Service, publish

UNDERLAY6 = "2001:db8:51::"
OUTSIDE4, OUTSIDE6 = "198.51.100.254", f"{UNDERLAY6}254"
NETWORKS = ("flat", "red")
RANGE6 = "fd00:200::/48"
NODE_PORT = 30000
# Each service's containers.
SERVICES = {
    "self": "web",
    "same": "web2",
    "other": "db",
    "far": "far",
    "all": "web2 db far",
    "sticky": "db far",
    "none": "",
    "local": "web far",
    "here": "web",
    "away": "far",
}
EXPOSED = ("local", "here", "away")  # by a node port, and by a load balancer's address


class Scene:
    """Containers by name: `flat-web` and `flat-web2` are on one bridge of node 1, `flat-db` on another one there, and
    `flat-far` is on node 2; those of the isolation network `red` likewise. Services by name: `flat-same` leads to
    `flat-web2`, and so on.
    """

    def __init__(self, mode: str, attach: str, isolation: dict[str, list[str]], by_list: bool) -> None:
        self.mode, self.attach, self.isolation, self.by_list = mode, attach, isolation, by_list
        self.fleet = Clustered("s")
        self.containers: dict[str, Container] = {}
        self.services: dict[str, Service] = {}
        self.proxies: list[KubeProxy] = []
        self.listeners = Listeners()
        self.nodes: tuple[Node, ...] = ()

    def build(self) -> None:
        """Everything, until all rules are loaded and the nodes reach one another."""
        self.nodes = tuple(self._node(n) for n in (1, 2))
        run("ip", "-n", self.fleet.underlay, "address", "add", f"{OUTSIDE6}/64", "dev", "under0", "nodad")
        for node in self.nodes:
            run("ip", "-n", node.name, "address", "add", f"{host(node, True)}/64", "dev", "eth0", "nodad")
            run("ip", "-n", node.name, "route", "add", "default", "via", OUTSIDE6)
        self.api = FakeApi(f"/run/netns/{self.fleet.underlay}", OUTSIDE4)
        for node in self.nodes:
            addresses = [{"type": "InternalIP", "address": host(node, six)} for six in (False, True)]
            self.api.put("/api/v1/nodes", {"metadata": {"name": name_of(node)}, "status": {"addresses": addresses}})
        one, two = self.nodes
        for network in NETWORKS:
            for name, node in (("web", one), ("web2", one), ("db", one), ("far", two)):
                self.add(f"{network}-{name}", node, "db" if name == "db" else "web", network)
        self._publish()
        self.proxies = [KubeProxy(node, self.api, self.mode) for node in self.nodes]
        ends = [
            text for c in self.containers.values() for text in (f"{c.address}:{TARGET}", f"[{c.address6}]:{TARGET}")
        ]
        for proxy in self.proxies:
            proxy.wait(*ends, *(s.address(six) for s in self.services.values() for six in (False, True)))
        for network in NETWORKS:
            arrives(self.containers[f"{network}-web"], self.containers[f"{network}-far"])

    def _node(self, number: int) -> Node:
        isolation = {} if self.by_list else self.isolation
        return self.fleet.member(number, cluster_cidr6=RANGE6, isolation=isolation)

    def add(self, name: str, node: Node, service: str, network: str) -> Container:
        """A container that listens."""
        conf: dict[str, Any] = {} if network == "flat" else {"isolationNetwork": network}
        if self.by_list:
            conf["isolation"] = self.isolation
        if self.attach != "bridge":
            conf["attach"] = self.attach
        made = self.containers[name] = node.container(service, **conf)
        self.listeners.add(made)
        return made

    def _publish(self) -> None:
        number = 10
        for network in NETWORKS:
            ends = {name: self.containers[f"{network}-{name}"] for name in ("web", "web2", "db", "far")}
            for name, behind in SERVICES.items():
                number += 1
                service = Service(
                    f"{network}-{name}",
                    number,
                    tuple(ends[end] for end in behind.split()),
                    node_port=NODE_PORT + number if name in EXPOSED else 0,
                    local=name == "local",
                    affinity=name == "sticky",
                    load_balancer=name in EXPOSED,
                )
                self.services[service.name] = service
                publish(self.api, service)

    def bridged(self, value: int) -> None:
        """Set bridge-nf-call-iptables and bridge-nf-call-ip6tables on both nodes."""
        for node in self.nodes:
            keys = (f"net.bridge.bridge-nf-call-{tool}={value}" for tool in ("iptables", "ip6tables"))
            run("ip", "netns", "exec", node.name, "sysctl", "-qw", *keys)

    def close(self) -> None:
        """Take all of it away."""
        for proxy in self.proxies:
            proxy.end()
        if hasattr(self, "api"):
            self.api.close()
        self.listeners.close()
        self.fleet.clean()


def host(node: Node, six: bool) -> str:
    """The node's address on the underlay."""
    return f"{UNDERLAY6}{node.number}" if six else node.underlay


@contextlib.contextmanager
def opened(
    mode: str, attach: str, isolation: dict[str, list[str]] | None = None, by_list: bool = False
) -> Iterator[Scene]:
    """A scene that is taken away in the end. `isolation`: that of both nodes' settings, or of the network list."""
    made = Scene(mode, attach, isolation or {}, by_list)
    try:
        made.build()
        yield made
    finally:
        made.close()
