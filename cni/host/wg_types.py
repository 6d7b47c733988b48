"""The state of WireGuard devices and peers, and changes to peers. Keys are base64 text, as in configuration files."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PeerSeen:
    """A peer as read from the device. `endpoint` is the current address and port, or "" for none; `last_handshake` in
    Unix seconds, 0 for never; counters in bytes since the peer was added."""

    public_key: str
    endpoint: str = ""
    allowed_ips: frozenset[str] = frozenset()
    keepalive: int = 0
    last_handshake: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True)
class PeerChange:
    """A change of one peer. `endpoint` "" and `keepalive` None (seconds) change nothing; `allowed_ips` are added, or
    replace all with `replace`. A peer that does not exist is created."""

    public_key: str
    remove: bool = False
    endpoint: str = ""
    allowed_ips: tuple[str, ...] = ()
    replace: bool = False
    keepalive: int | None = None


@dataclass(frozen=True)
class DeviceSeen:
    """A device as read. `engine`: what runs it (`kernel`, or the program's name). It holds no private key."""

    name: str
    engine: str
    port: int
    peers: dict[str, PeerSeen]
    pid: int = 0
    faults: tuple[str, ...] = ()  # errors of the steps that failed
    mark: int = 0  # the firewall mark of its datagrams, 0 for none


@dataclass(frozen=True)
class Reading:
    """A device as read by a backend. The private key is used only in this folder, for comparison, and never printed."""

    private_key: bytes = field(repr=False)
    port: int
    peers: dict[str, PeerSeen]
    mark: int = 0


def raw(key: str) -> bytes:
    """The bytes of a key. Raises ValueError."""
    return base64.b64decode(key, validate=True)


def text(key: bytes) -> str:
    """A key as base64 text."""
    return base64.b64encode(key).decode()


def split_endpoint(endpoint: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Address and port of `1.2.3.4:51420` or `[2001:db8::5]:51420`. Raises ValueError for a name."""
    host, _, port = endpoint.rpartition(":")
    return ipaddress.ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0]), int(port)


def join_endpoint(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """The text of an endpoint: `1.2.3.4:51420` or `[2001:db8::5]:51420`."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class NoEngine(OSError):
    """This machine has no WireGuard: neither in the kernel nor as a program."""
