"""A node with three bridges, its containers, a host beyond it and a second node, in namespaces of their own.

The second node's tunnel is a veth pair here (this kernel has no WireGuard): the fence goes by the device's name.

With ZLAYER_TEST_ATTACH=routed the containers are attached without bridges, by the program's own code, and what is
called a bridge is a service with its subnets. The host ends have the MAC that the bridge would have.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.model import FenceBridge, FenceNode, FencePort
from cni.daemon.fence.rule_comparison import has_bridge_names
from cni.host import ports, routed_ports
from cni.host.links import Route, find_link
from cni.host.netlink import Netlink
from cni.host.nft import Nft
from cni.host.nft_elements import Change
from tests.kernel.fence import remotes

from .spaces import Space, veth

ROUTED = os.environ.get("ZLAYER_TEST_ATTACH") == "routed"
CLUSTER4, CLUSTER6 = "10.200.0.0/16", "fd00:200::/48"
NODE4, NODE6 = "10.200.0.1", "fd00:200::1"
HOST4, HOST6 = "198.51.100.1", "2001:db8:51::1"  # another address of the host
LAN4, LAN6 = "192.0.2.1", "2001:db8:2::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.9", "2001:db8:2::9"
TUNNEL = "zl-t-1-g"
LEG = "veth-99-g"
BRIDGES = {
    "web": ("zl-t-1-web-b", "02:42:00:00:00:05", ("10.200.5.1/26", "fd00:200:0:5::1/64")),
    # a service that has grown by a slot: two subnets on one bridge
    "db": ("zl-t-1-db-b", "02:42:00:00:00:06", ("10.200.6.1/26", "10.200.7.1/26", "fd00:200:0:6::1/64")),
    "sh": ("zl-t-1-sh", "02:42:00:00:00:08", ("10.200.8.1/26", "fd00:200:0:8::1/64")),
}
# name: bridge, subnet's third octet, network (None: the flat mesh)
CONTAINERS: dict[str, tuple[str, int, str | None]] = {
    "red-web": ("web", 5, "red"),
    "red-web2": ("web", 5, "red"),
    "red-db": ("db", 6, "red"),
    "red-db2": ("db", 7, "red"),
    "red-sh": ("sh", 8, "red"),
    "blue-web": ("web", 5, "blue"),
    "blue-db": ("db", 7, "blue"),
    "blue-sh": ("sh", 8, "blue"),
    "green-sh": ("sh", 8, "green"),
    "flat-web": ("web", 5, None),
    "flat-web2": ("web", 5, None),
    "flat-db": ("db", 6, None),
    "flat-sh": ("sh", 8, None),
}
# On our bridges, and never admitted; unknown-sh is behind a device with a foreign name.
UNKNOWN = {"unknown-web": ("web", 5), "unknown-sh": ("sh", 8), "unknown-sh2": ("sh", 8)}
REMOTE = {"remote-red": "red", "remote-blue": "blue", "remote-flat": None}
NETWORKS = ("red", "blue", "green")


@dataclass
class Place:
    """Somewhere packets come from or go to: a namespace, and the addresses there that are meant."""

    name: str
    space: Space
    four: str
    six: str
    network: str | None = None
    kind: str = "container"
    port: FencePort | None = None
    mac: str = ""


class Lab:
    """The whole of it. `places` is what a matrix is made of; `load` puts the fence in force."""

    def __init__(self, omit: str | None = None) -> None:
        self.omit = omit  # a rule to leave out, as "family chain name"
        self.spaces: list[Space] = []
        self.places: dict[str, Place] = {}
        self.host = self._space("host")
        self.bridges = {key: FenceBridge(name, mac) for key, (name, mac, _) in BRIDGES.items()}
        self.node = FenceNode((CLUSTER4, CLUSTER6), (NODE4, NODE6), (TUNNEL,), bridge_names=has_bridge_names())
        self.nft = self.host.inside(Nft)
        self._build_host()
        self._build_outside()
        self._build_second_node()
        for number, (name, (bridge, subnet, network)) in enumerate(CONTAINERS.items(), 2):
            self.add_container(name, bridge, subnet, number, network)
        self.leg = self._build_leg()
        for number, (name, (bridge, subnet)) in enumerate(UNKNOWN.items(), 40):
            self.add_container(name, bridge, subnet, number, None, kind="unknown")

    def close(self) -> None:
        self.nft.close()
        for space in self.spaces:
            space.close()

    def _space(self, name: str) -> Space:
        self.spaces.append(Space(name))
        return self.spaces[-1]

    def _build_host(self) -> None:
        host = self.host
        host.sysctl(
            net__ipv4__ip_forward=1,
            net__ipv6__conf__all__forwarding=1,
            net__ipv4__conf__all__rp_filter=0,
            net__ipv4__conf__all__send_redirects=1,  # the kernel's default
            net__ipv4__icmp_ratelimit=0,
            net__ipv4__icmp_msgs_per_sec=100000,
        )
        host.sysctl(net__ipv6__conf__default__accept_dad=0)
        for key, (name, mac, gateways) in BRIDGES.items():
            if ROUTED:
                subnets = [ip_interface(gateway).network for gateway in gateways]
                self.host.ip(*(f"route add unreachable {subnet}" for subnet in subnets))
            else:
                host.ip(f"link add {name} address {mac} type bridge no_linklocal_learn 1", f"link set {name} up")
                host.address(name, *gateways)
                host.sysctl(**{f"net__ipv4__conf__{name}__send_redirects": 0})
            four, six = gateways[0].split("/")[0], gateways[-1].split("/")[0]
            self._place(f"gateway-{key}", host, four, six, kind="gateway")
        host.address("lo", f"{HOST4}/32", f"{HOST6}/128", f"{NODE4}/32", f"{NODE6}/128")
        self._place("node", host, NODE4, NODE6, kind="node")
        self._place("host", host, HOST4, HOST6, kind="host")

    def _build_outside(self) -> None:
        outside = self._space("outside")
        veth((self.host, "up0"), (outside, "eth0"))
        self.host.address("up0", f"{LAN4}/24", f"{LAN6}/64")
        outside.ip("link set eth0 up")
        outside.address("eth0", f"{OUTSIDE4}/24", f"{OUTSIDE6}/64")
        for four, six in ((CLUSTER4, CLUSTER6), (f"{HOST4}/32", f"{HOST6}/128")):
            outside.ip(f"route add {four} via {LAN4}", f"route add {six} via {LAN6}")
        self._place("lan", self.host, LAN4, LAN6, kind="host")
        self._place("outside", outside, OUTSIDE4, OUTSIDE6, kind="outside")

    def _build_second_node(self) -> None:
        far = self._space("node2")
        veth((self.host, TUNNEL), (far, "wg0"))
        self.host.address(TUNNEL, "169.254.77.1/30", "fe80::77:1/64")
        far.ip("link set wg0 up")
        far.address("wg0", "169.254.77.2/30", "fe80::77:2/64")
        self.host.ip(
            f"route add 10.200.40.0/26 via 169.254.77.2 dev {TUNNEL}",
            f"route add fd00:200:0:40::/64 via fe80::77:2 dev {TUNNEL}",
        )
        far.ip("route add default via 169.254.77.1", "route add default via fe80::77:1 dev wg0")
        for number, (name, network) in enumerate([*REMOTE.items(), ("remote-unknown", None)], 2):
            four, six = f"10.200.40.{number}", f"fd00:200:0:40::{number}"
            far.address("lo", f"{four}/32", f"{six}/128")
            kind = "remote-unknown" if name == "remote-unknown" else "remote"
            self._place(name, far, four, six, network, kind)

    def _place(
        self, name: str, space: Space, four: str, six: str, network: str | None = None, kind: str = "container"
    ) -> Place:
        self.places[name] = Place(name, space, four, six, network, kind)
        return self.places[name]

    def add_container(
        self, name: str, bridge: str, subnet: int, number: int, network: str | None, kind: str = "container"
    ) -> Place:
        """A container on a bridge; not admitted yet."""
        space = self._space(name)
        mac = f"02:c0:00:00:{subnet:02x}:{number:02x}"
        foreign = {"unknown-sh": "tap-other", "unknown-tap": "tap-more"}
        host_end = foreign.get(name, f"zl-{number:010x}-v")
        slot = 6 if bridge == "db" else subnet
        four, six = f"10.200.{subnet}.{number}", f"fd00:200:0:{slot}::{number}"
        place = self._place(name, space, four, six, network, kind)
        place.mac = mac
        place.port = FencePort(host_end, None if ROUTED else BRIDGES[bridge][0], mac, (four, six), network)
        if ROUTED:
            self._attach_routed(place, BRIDGES[bridge][1], (f"10.200.{subnet}.1", f"fd00:200:0:{slot}::1"))
            return place
        veth((self.host, host_end), (space, "eth0"), mac, BRIDGES[bridge][0])
        if kind == "container":
            self.host.ip(f"link set {host_end} type bridge_slave hairpin on")
        space.sysctl(net__ipv6__conf__eth0__accept_dad=0, net__ipv6__conf__eth0__accept_ra=0)
        space.ip("link set eth0 up")
        space.address("eth0", f"{four}/26", f"{six}/64")
        space.ip(f"route add default via 10.200.{subnet}.1", f"route add default via fd00:200:0:{slot}::1")
        return place

    def _attach_routed(self, place: Place, gate: str, gateways: tuple[str, str]) -> None:
        """A container without a bridge. The host's rp_filter is off, so that the fence alone is tried."""
        assert place.port is not None
        host_end, space = place.port.name, place.space
        veth((self.host, host_end), (space, "eth0"), place.mac)
        self.host.ip(f"link set {host_end} down", f"link set {host_end} address {gate}")
        space.gate = gate
        own, beyond = (ip_address(place.four), ip_address(place.six)), tuple(map(ip_address, gateways))
        with space.inside(Netlink) as inner:
            link = find_link(inner, "eth0")
        assert link is not None
        addresses = [ip_interface(address) for address in own]
        routes = [
            Route(ip_network(dst), via, link.index) for dst, via in zip(("0.0.0.0/0", "::/0"), beyond, strict=True)
        ]
        ports.configure(space.fd, link.index, "eth0", addresses, routes, gateway=ports.GatewayEnd(beyond, gate))

        def raise_end() -> None:
            with Netlink() as socket:
                outer = find_link(socket, host_end)
                assert outer is not None
                end = routed_ports.RoutedEnd(outer.index, host_end, own, beyond, place.mac)
                routed_ports.configure(end)
                routed_ports.raise_port(socket, end)

        self.host.inside(raise_end)
        self.host.sysctl(**{f"net__ipv4__conf__{host_end}__rp_filter": 0})

    @property
    def opened(self) -> tuple[FenceBridge, ...]:
        """The bridges that the fence knows."""
        return () if ROUTED else tuple(self.bridges.values())

    def way_in(self, name: str) -> str:
        """The host's device by which a container's packets come in."""
        port = self.places[name].port
        assert port is not None
        return port.bridge or port.name

    def _build_leg(self) -> Place:
        """A container's second leg, which is routed to and on no bridge: the global leg, in the network red."""
        space = self._space("leg")
        mac, four, six = "02:c0:00:00:00:99", "10.200.0.9", "fd00:200::9"
        veth((self.host, LEG), (space, "eth0"), mac)
        space.sysctl(net__ipv6__conf__eth0__accept_dad=0)
        space.ip("link set eth0 up")
        space.address("eth0", f"{four}/24", f"{six}/64")
        self.host.ip(f"route add {four}/32 dev {LEG} src {NODE4}", f"route add {six}/128 dev {LEG}")
        return Place("leg", space, four, six, "red", port=FencePort(LEG, None, mac, (four, six), "red"), mac=mac)

    def load(self) -> None:
        """Load the fence and admit all ports of the lab that are not `unknown`."""
        self.run(fence.base(self.node))
        for network in NETWORKS:
            self.run(fence.create_network(network))
        for bridge in self.opened:
            self.run(fence.open_bridge(bridge))
        for place in self.places.values():
            if place.port and place.kind == "container":
                self.run(fence.add_port(place.port))
        assert self.leg.port is not None
        self.run(fence.add_port(self.leg.port))
        for name, remote in REMOTE.items():
            self.run(remotes.add_remote(remote, (self.places[name].four, self.places[name].six)))

    def run(self, text: str | Change) -> None:
        """Run a text, less the rule to leave out."""
        if isinstance(text, str) and self.omit:
            family, chain, name = self.omit.split(" ", 2)
            start, end = f"add rule {family} zlayer_cni {chain} ", f'comment "{name}"'
            lines = [x for x in text.splitlines() if not (x.startswith(start) and x.endswith(end))]
            text = "\n".join(lines) + "\n"
        self.nft.run(text)

    def remove_port(self, name: str) -> None:
        """A member leaves."""
        place = self.places[name]
        assert place.port is not None
        self.run(fence.remove_port(place.port))
        place.kind = "unknown"

    def add_port(self, name: str, network: str | None) -> None:
        """A container joins a network."""
        place = self.places[name]
        assert place.port is not None
        place.port = replace(place.port, network=network)
        place.network, place.kind = network, "container"
        self.run(fence.add_port(place.port))

    def nf_call(self, value: int) -> None:
        """bridge-nf-call-iptables and -ip6tables."""
        self.host.sysctl(
            **{f"net__bridge__bridge-nf-call-{tool}": value for tool in ("iptables", "ip6tables", "arptables")}
        )


@contextlib.contextmanager
def opened(omit: str | None = None) -> Iterator[Lab]:
    """A lab with the fence in force."""
    lab = Lab(omit)
    try:
        lab.load()
        yield lab
    finally:
        lab.close()
