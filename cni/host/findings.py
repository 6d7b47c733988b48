"""Readings that tell why a packet did not arrive: routes, filters, the fence's table, the underlay. Changes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import subprocess
import time
from ipaddress import ip_address

from cni.errors import FenceFailed
from cni.host import addressing, links, sysctl
from cni.host import netlink as nl
from cni.host.nft import Nft

_SIOCGIFMTU = 0x8921
_LOCAL = 2  # RTN_LOCAL
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_UDP = 17


def mtu_of(device: str) -> int:
    """The MTU of a device of the calling thread's namespace. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFMTU, struct.pack("16si12x", device.encode(), 0))
    return int(struct.unpack("16si12x", answer)[1])


def way_to(address: str) -> tuple[str, bool]:
    """The device by which the node sends to the address, empty without a route, and whether the address is its own."""
    with nl.Netlink() as sock:
        try:
            route = addressing.route_to(sock, ip_address(address))
        except OSError:
            return "", False
        link = links.find_link(sock, index=route.oif) if route is not None and route.oif else None
    name = "" if link is None else link.name
    return name, route is not None and route.type == _LOCAL


def strict_reverse_path(device: str) -> bool:
    """Whether packets that come in by the device are dropped if the route back leaves by another one."""
    values = [sysctl.read(f"ipv4/conf/{name}/rp_filter") for name in ("all", device)]
    return max(int(value) if value else 0 for value in values) == 1


def filters_bridged() -> bool:
    """Whether packets that stay on a bridge pass the host's firewall too (bridge-nf-call-iptables)."""
    for name in ("iptables", "ip6tables"):
        with contextlib.suppress(OSError):
            if sysctl.read(f"bridge/bridge-nf-call-{name}") == "1":
                return True
    return False


def is_dormant(table: str) -> bool:
    """Whether the table of family inet or bridge is switched off, or is gone."""
    nft = Nft()
    try:
        tables = nft.rules(table)
        return tables is not None and any(each is None or each.dormant for each in tables.values())
    except FenceFailed:
        return False
    finally:
        nft.close()


def hears(endpoint: str, port: int, seconds: float) -> bool:
    """Whether a UDP packet from the endpoint (`address:port`) to the port of this node comes in within `seconds`, by
    any device; before any firewall of this node. Raises OSError."""
    host, _, number = endpoint.rpartition(":")
    source, sport = ip_address(host.strip("[]")), int(number)
    kind = _ETH_P_IP if source.version == 4 else _ETH_P_IPV6
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind)) as sock:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                return False
            data, sender = sock.recvfrom(256)
            if sender[2] != socket.PACKET_OUTGOING and _is_from(data, source.packed, sport, port):
                return True
    return False


def _is_from(data: bytes, source: bytes, sport: int, port: int) -> bool:
    if len(source) == 4:
        at, where, protocol = (data[0] & 15) * 4, 12, data[9]
    else:
        at, where, protocol = 40, 8, data[6]
    ports = struct.unpack_from(">HH", data, at) if len(data) >= at + 4 else (0, 0)
    return protocol == _UDP and data[where : where + len(source)] == source and ports == (sport, port)


def first_default_gateway() -> str:
    """The IPv4 gateway of the default route; empty without one."""
    with nl.Netlink() as sock:
        for route in addressing.list_routes(sock):
            if route.dst.version == 4 and route.dst.prefixlen == 0 and route.gateway is not None:
                return str(route.gateway)
    return ""


def free_port() -> int:
    """A TCP port of the calling thread's namespace that is free now. Raises OSError."""
    with socket.create_server(("0.0.0.0", 0)) as sock:
        return int(sock.getsockname()[1])


def has_host_ports() -> bool:
    """Whether the plugin portmap has published a port in the calling thread's namespace: its chain stays."""
    for words in (
        ("iptables", "-t", "nat", "-S", "CNI-HOSTPORT-DNAT"),
        ("nft", "list", "table", "inet", "cni_hostport"),
    ):
        with contextlib.suppress(OSError):
            if subprocess.run(words, capture_output=True, timeout=10, check=False).returncode == 0:
                return True
    return False
