"""The fence's input values (node, bridges, ports, remote members, edge peers) and their spelling in nft text."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from cni.errors import FenceFailed
from cni.openings import NOTHING, ListedOpenings, Opening

TABLE = "zlayer_cni"
FLAT = "net_flat"  # the chain of the flat mesh: attachments without an isolation network

_LINK_LOCAL = int(IPv6Address("fe80::"))
_SAFE_NAME = re.compile(r"[^\s/\"\\*\x00-\x1f\x7f]{1,15}")  # what nft can quote; `*` would be a wildcard


@dataclass(frozen=True, slots=True)
class FenceNode:
    """This node, as the fence sees it.

    `clusters`: the overlay's CIDRs, at most one per family; an address outside them is outside the overlay.
    `addresses`: the node addresses that a member of an isolation network may use (resolver and daemon).
    `tunnels`: the WireGuard devices; the fence accepts overlay source addresses from them.
    `far`: the overlay's CIDRs behind the tunnels, not overlapping. An address there that is in no isolation network
    belongs to the flat mesh.
    `connected`: the networks of the host's links that are not the overlay's, where they overlap `clusters`; not
    overlapping each other. Traffic between such a network and the host, or a device that is not the overlay's, is not
    overlay traffic: it leaves unencrypted.
    `masquerade`: whether traffic that leaves the overlay takes the node's address.
    `routed`: whether the host's own routes carry the overlay to other nodes, unencrypted (`underlay: routed`).
    `openings`: whether the settings or network lists name destinations or senders that pass between networks. `reach`:
    the destinations; `senders`: CIDRs that may open flows to every member, not overlapping.
    `bridge_names`: whether the kernel has `meta ibrname` (CONFIG_NFT_BRIDGE_META).
    """

    clusters: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    tunnels: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    masquerade: bool = True
    routed: bool = False
    bridge_names: bool = False
    openings: bool = False
    reach: tuple[Opening, ...] = ()
    senders: tuple[str, ...] = ()

    def cluster(self, version: int) -> str | None:
        """The overlay's CIDR of IP version 4 or 6, or None."""
        ranges = [c for c in self.clusters if ip_network(c).version == version]
        return ranges[0] if ranges else None


@dataclass(frozen=True, slots=True)
class FenceBridge:
    """A bridge of the overlay. `mac` is its MAC, if that is fixed: then unknown ports cannot reach the node either."""

    name: str
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """The chains that judge a port's flows by network policies: those to it, and those that it opens. Empty where no
    policy isolates it."""

    ingress: str = ""
    egress: str = ""

    def __bool__(self) -> bool:
        return bool(self.ingress or self.egress)


@dataclass(frozen=True, slots=True)
class FencePort:
    """The host's end of an attachment's veth, and the MAC and addresses that it may use.

    `bridge` is None for a port that is routed without a bridge. `network` is None for the flat mesh;
    the empty string is a network name. `service`: the service of the attachment. `opens`: what its network list opens.
    `policy` is None while policies isolate no port of this node.
    """

    name: str
    bridge: str | None
    mac: str
    addresses: tuple[str, ...]
    network: str | None = None
    service: str = ""
    opens: ListedOpenings = NOTHING
    policy: PortPolicy | None = None


@dataclass(frozen=True, slots=True)
class RemoteMember:
    """The overlay addresses of one network's members on other nodes."""

    network: str | None
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class FenceEdge:
    """An edge peer: the name of its fence network, its address, and the CIDRs that it may reach."""

    network: str
    address: str
    allowed: tuple[str, ...]


@functools.lru_cache(4096)
def chain_of(network: str | None) -> str:
    """A network's chain name, which its set names begin with. The name is hashed, since it may be any text."""
    if network is None:
        return FLAT
    return "net_" + hashlib.sha256(network.encode()).hexdigest()[:16]


def quoted(name: str) -> str:
    """An interface name in nft text. Raises FenceFailed if nft cannot represent it."""
    if not _SAFE_NAME.fullmatch(name):
        raise FenceFailed(f"the fence cannot hold the interface name {name!r}")
    return f'"{name}"'


def raw(value: int, octets: int) -> str:
    """An integer in nft text, as raw packet bytes of the given length in octets."""
    return f"0x{value:0{2 * octets}x}"


def link_local(mac: str) -> IPv6Address:
    """The link-local address that a kernel derives from a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    eui64 = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(_LINK_LOCAL | int.from_bytes(eui64, "big"))


def versions(addresses: Iterable[str]) -> tuple[list[IPv4Address], list[IPv6Address]]:
    """Addresses, split into IPv4 and IPv6. Raises ValueError for text that is no address."""
    parsed = [ip_address(address) for address in addresses]
    return (
        [a for a in parsed if isinstance(a, IPv4Address)],
        [a for a in parsed if isinstance(a, IPv6Address)],
    )
