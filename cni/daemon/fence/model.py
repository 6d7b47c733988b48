"""What the fence is told: the node, its bridges, the containers' ports; and how each is spelled in nft."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from cni.errors import FenceFailed

TABLE = "zlayer_cni"
FLAT = "net_flat"  # the chain of the network of those that joined none

_LINK_LOCAL = int(IPv6Address("fe80::"))
_SAFE_NAME = re.compile(r"[^\s/\"\\*\x00-\x1f\x7f]{1,15}")  # what nft's quotes can hold, and `*` is no wildcard


@dataclass(frozen=True, slots=True)
class FenceNode:
    """What the fence knows of this node.

    `clusters`: the overlay's CIDRs, at most one a family; addresses in them are overlay addresses, all else is outside.
    `addresses`: the node addresses a fenced member may use (resolver and daemon).
    `tunnels`: the WireGuard devices, whose overlay sources are believed.
    `far`: the overlay's CIDRs that are behind them, apart from each other. Whoever is there and is no member of an
    isolation network is of the flat mesh.
    `connected`: the networks that the host is on by links that are not ours, where they overlap `clusters`, apart from
    each other. Traffic between the host, or a device that is not the overlay's, and such a network is not the
    overlay's: it leaves unencrypted.
    `masquerade`: whether what leaves the overlay takes the node's address.
    `routed`: whether the host's own routes carry the overlay to other nodes, unencrypted (`underlay: routed`).
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

    def cluster(self, version: int) -> str | None:
        """The overlay's CIDR of IP version 4 or 6, or None."""
        found = [c for c in self.clusters if ip_network(c).version == version]
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class FenceBridge:
    """One of our bridges. `mac` is its own, if it is fixed: with it, ports nobody admitted are cut off the node too."""

    name: str
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class FencePort:
    """One attachment: the host's end of its veth, and who may speak through it.

    `bridge` None: the leg has none and is routed to (the global leg). `network` None: the flat mesh; "" is a name.
    """

    name: str
    bridge: str | None
    mac: str
    addresses: tuple[str, ...]
    network: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteMember:
    """The members a network has on other nodes, by overlay address."""

    network: str | None
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class FenceEdge:
    """A machine outside that reaches only what it is allowed: its fence's name, its address, the CIDRs."""

    network: str
    address: str
    allowed: tuple[str, ...]


def chain_of(network: str | None) -> str:
    """The chain, and the stem of the sets, of a network: hashed, since a network's name may be any text."""
    if network is None:
        return FLAT
    return "net_" + hashlib.sha256(network.encode()).hexdigest()[:16]


def quoted(name: str) -> str:
    """An interface name in nft text. Raises FenceFailed if nft cannot hold it."""
    if not _SAFE_NAME.fullmatch(name):
        raise FenceFailed(f"the fence cannot hold the interface name {name!r}")
    return f'"{name}"'


def raw(value: int, octets: int) -> str:
    """Bytes of a packet in nft text."""
    return f"0x{value:0{2 * octets}x}"


def link_local(mac: str) -> IPv6Address:
    """The address a kernel gives an interface by its MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    eui64 = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(_LINK_LOCAL | int.from_bytes(eui64, "big"))


def versions(addresses: Iterable[str]) -> tuple[list[IPv4Address], list[IPv6Address]]:
    """Addresses by family."""
    parsed = [ip_address(address) for address in addresses]
    return (
        [a for a in parsed if isinstance(a, IPv4Address)],
        [a for a in parsed if isinstance(a, IPv6Address)],
    )
