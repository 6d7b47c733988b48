"""A NAT laboratory: nodes behind routers, all of them network namespaces, around an internet that routes.

The internet is the fleet's underlay namespace. Each site has a link of its own to it, so a datagram with a small TTL
dies between two sites, as it does outside. The routers' NATs are nftables rules; an RFC 5780 probe with two addresses
and two ports has confirmed what each of them does.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mesh.etcds import ADDRESS, Clustered
from tests.mesh.fleet import ROOT, Node, run, wait_for

SECOND = "198.51.100.253"  # the STUN server's other address
STUN = (3478, 3479)  # its ports


@dataclass(frozen=True)
class Kind:
    """A kind of site, and what `netcheck` must say of it. `double`: a second NAT between the router and the internet;
    `open_input`: the router does not drop unsolicited UDP to itself."""

    nat: str
    name: str
    mapping: str
    filtering: str
    port_kept: bool = True
    open_input: bool = False
    double: bool = False
    only_port: int = 0


CONE = ("endpoint-independent", "address-and-port-dependent")
KINDS = {
    "public": Kind("", "no NAT", "none", "endpoint-independent"),
    "full": Kind("full", "full cone", "endpoint-independent", "endpoint-independent"),
    "arc": Kind("arc", "address-restricted cone", "endpoint-independent", "address-dependent"),
    "prc": Kind("cone", "port-restricted cone", *CONE),
    "shift": Kind("shift", "port-restricted cone", *CONE, port_kept=False),
    "sym": Kind("sym", "symmetric", "address-and-port-dependent", "address-and-port-dependent", port_kept=False),
    "double": Kind("cone", "port-restricted cone", *CONE, double=True),
    "open": Kind("cone", "port-restricted cone", *CONE, open_input=True),
    "one-port": Kind("cone", "port-restricted cone", *CONE, only_port=3478),
    "blocked": Kind("cone", "", "unknown", "unknown", only_port=9),
}


class Lab(Clustered):
    """Sites around an internet with an etcd and a STUN server. A node's kind is given before it is wired."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.kinds: dict[int, str] = {}
        self.neighbours: dict[int, Node] = {}  # by number: the node on whose LAN it is
        run("ip", "-n", self.underlay, "address", "add", f"{SECOND}/24", "dev", "under0")
        self._sysctl(self.underlay, "net.ipv4.ip_forward=1")
        self.stun: subprocess.Popen[bytes] | None = None

    def start_stun(self) -> None:
        """Start the STUN server."""
        words = ["ip", "netns", "exec", self.underlay, sys.executable, str(Path(__file__).with_name("stun_server.py"))]
        self.stun = subprocess.Popen([*words, ADDRESS, SECOND], cwd=ROOT, stdout=subprocess.PIPE)
        assert self.stun.stdout is not None
        assert self.stun.stdout.readline() == b"up\n"

    def at(self, kind: str, number: int, **more: Any) -> Node:
        """A node of no cluster at a site of that kind, with a device that has a peer."""
        self.kinds[number] = kind
        peer = {"public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "allowed_ips": ["10.200.250.0/26"]}
        return self.node(number, peers=[peer], **more)

    def joined(self, kind: str, number: int, start: bool = True, **more: Any) -> Node:
        """A node of the cluster at a site of that kind."""
        self.kinds[number] = kind
        return self.member(number, start, **more)

    def beside(self, other: Node, number: int, **more: Any) -> Node:
        """A node of the cluster on the LAN of another one, behind the same router."""
        self.neighbours[number] = other
        return self.member(number, **more)

    def beside_again(self, node: Node, other: Node) -> None:
        """Move a node that has lost its cable onto the LAN of another one."""
        self.neighbours[node.number] = other
        self._share(node, other)

    def public_address(self, number: int) -> str:
        """The address by which the site is seen from the internet."""
        return f"203.0.113.{4 * number + 2}"

    def wire(self, node: Node) -> None:
        number = node.number
        self.nodes[number] = node
        run("ip", "netns", "add", node.name)
        run("ip", "-n", node.name, "link", "set", "lo", "up")
        if number in self.neighbours:
            self._share(node, self.neighbours[number])
            return
        kind = KINDS[self.kinds[number]]
        outside, port = f"203.0.113.{4 * number + 1}", f"s{number}"
        if not kind.nat:
            node.underlay = self.public_address(number)
            self._link(node.name, "eth0", node.underlay, self.underlay, port, outside)
            return
        node.underlay = f"192.168.{number}.2"
        router, end = f"{node.name}r", self.underlay
        self._router(router)
        self._link(node.name, "eth0", node.underlay, router, "lan", f"192.168.{number}.1", 24)
        if kind.double:
            carrier = f"{node.name}c"
            self._router(carrier)
            self._link(router, "wan", f"100.64.{number}.2", carrier, "lan", f"100.64.{number}.1")
            self._link(carrier, "wan", self.public_address(number), end, port, outside)
            self.load(carrier, "cone", number)
        else:
            self._link(router, "wan", self.public_address(number), end, port, outside)
        self.load(router, kind.nat, number, kind.open_input, kind.only_port)

    def _share(self, node: Node, other: Node) -> None:
        """A second port of the router's LAN: its network is split, so both nodes talk by the router's two ports."""
        router, number = f"{other.name}r", node.number
        node.underlay = f"192.168.{100 + number}.2"
        self._link(node.name, "eth0", node.underlay, router, "lan2", f"192.168.{100 + number}.1", 24)
        run("ip", "netns", "exec", router, "nft", 'insert rule ip zlt_nat forward iifname "lan2" accept')
        run("ip", "netns", "exec", router, "nft", 'insert rule ip zlt_nat forward oifname "lan2" accept')

    def _router(self, name: str) -> None:
        self.namespaces.append(name)
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        self._sysctl(name, "net.ipv4.ip_forward=1")

    def _link(
        self, inner: str, device: str, address: str, outer: str, port: str, gateway: str, prefix: int = 30
    ) -> None:
        """A cable between two namespaces, and a default route of the inner one."""
        run("ip", "-n", inner, "link", "add", device, "type", "veth", "peer", "name", port, "netns", outer)
        for netns, name, ip in ((inner, device, address), (outer, port, gateway)):
            run("ip", "-n", netns, "address", "add", f"{ip}/{prefix}", "dev", name)
            run("ip", "-n", netns, "link", "set", name, "up")
        run("ip", "-n", inner, "route", "add", "default", "via", gateway)

    def _sysctl(self, netns: str, setting: str) -> None:
        run("ip", "netns", "exec", netns, "sysctl", "-qw", setting)

    def load(self, router: str, nat: str, number: int, open_input: bool = False, only_port: int = 0) -> None:
        """Load a router's rules, and forget its flows."""
        run("ip", "netns", "exec", router, "nft", rules(nat, self.public_address(number), open_input, only_port))
        run("ip", "netns", "exec", router, "conntrack", "-F", check=False)

    def wait_for_device(self, node: Node) -> None:
        wait_for(lambda: node.tool("status")["wireguard"]["interface"], "the device")

    def clean(self) -> None:
        if self.stun is not None:
            self.stun.kill()
            self.stun.wait(10)
        super().clean()


def rules(nat: str, public: str, open_input: bool = False, only_port: int = 0) -> str:
    """The nftables text of a router: `cone`, `shift`, `sym`, `full` or `arc`."""
    learn, before, spoken = "", "", ""
    translate = "masquerade"
    remember = "update @inside { udp sport : ip saddr . udp sport }"
    if nat == "sym":
        translate = "meta l4proto udp masquerade random"
    elif nat == "shift":
        translate = f"meta l4proto udp snat ip to udp sport map {{ 51420 : {public} . 33331 }}"
    elif nat in ("full", "arc"):
        learn = f'oifname "wan" meta l4proto udp {remember} masquerade'
        asks = "udp dport . ip saddr @spoken " if nat == "arc" else ""
        before = f'iifname "wan" meta l4proto udp {asks}dnat ip to udp dport map @inside'
        spoken = 'oifname "wan" meta l4proto udp update @spoken { udp sport . ip daddr }'
    drop = "" if open_input else 'iifname "wan" meta l4proto udp drop'
    only = f'iifname "lan" meta l4proto udp udp dport != {only_port} drop' if only_port else ""
    return f"""
table ip zlt_nat
delete table ip zlt_nat
table ip zlt_nat {{
    map inside {{
        type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 4096;
    }}
    set spoken {{
        type inet_service . ipv4_addr; flags dynamic,timeout; timeout 5m; size 4096;
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        {only}
        ct state established,related accept
        iifname "lan" accept
        ct status dnat accept
    }}
    chain input {{
        type filter hook input priority 0; policy accept;
        {drop}
    }}
    chain remember {{
        type filter hook postrouting priority 90;
        {spoken}
    }}
    chain before {{
        type nat hook prerouting priority -100;
        {before}
    }}
    chain after {{
        type nat hook postrouting priority 100;
        {learn}
        oifname "wan" {translate}
        oifname "wan" masquerade
    }}
}}
"""
