"""What a WireGuard device is told, and what it says of itself. Keys are base64 text here, as people write them."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PeerSeen:
    """A peer as the device has it. `endpoint` is where it was last heard of, or "" for never; `last_handshake` in Unix
    seconds, 0 for never; counters in bytes since the peer was added."""

    public_key: str
    endpoint: str = ""
    allowed_ips: frozenset[str] = frozenset()
    keepalive: int = 0
    last_handshake: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True)
class PeerChange:
    """What to do to one peer. `endpoint` "" and `keepalive` None leave what is there; `allowed_ips` are added, or take
    the place of all with `replace`. A peer that is not there is made."""

    public_key: str
    remove: bool = False
    endpoint: str = ""
    allowed_ips: tuple[str, ...] = ()
    replace: bool = False
    keepalive: int | None = None


@dataclass(frozen=True)
class DeviceSeen:
    """A device as it is. `engine`: who runs it (`kernel`, or the program). No private key: nobody needs to see it."""

    name: str
    engine: str
    port: int
    peers: dict[str, PeerSeen]
    pid: int = 0
    faults: tuple[str, ...] = ()  # what of it could not be made right


@dataclass(frozen=True)
class Reading:
    """What a backend reads. The private key stays in this folder: it is compared here, and printed by nobody."""

    private_key: bytes = field(repr=False)
    port: int
    peers: dict[str, PeerSeen]


def raw(key: str) -> bytes:
    """The bytes of a key. Raises ValueError."""
    return base64.b64decode(key, validate=True)


def text(key: bytes) -> str:
    """A key as people write it."""
    return base64.b64encode(key).decode()


def split_endpoint(endpoint: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Address and port of `1.2.3.4:51420` or `[2001:db8::5]:51420`. Raises ValueError for a name."""
    host, _, port = endpoint.rpartition(":")
    return ipaddress.ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0]), int(port)


def join_endpoint(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """The same, put together."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class NoEngine(OSError):
    """This machine has no WireGuard: neither in the kernel nor as a program."""
