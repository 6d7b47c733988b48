"""Which servers a DNS question is forwarded to: the servers of settings and of resolv.conf(5), and the zone that a name
is in. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cni.defaults import DNS_PORT
from cni.overlay.address import canonical_ip, join_host_port, split_socket_address

MOST_SERVERS = 8  # servers of one zone: each gets half a second of the time that a question has
MOST_IN_RESOLV_CONF = 3  # MAXNS of resolv.conf(5): the C library reads no further ones
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")


@dataclass(frozen=True, slots=True, order=True)
class NameServer:
    """One DNS server: an address, which may have a zone id (`fe80::1%eth0`), and a port."""

    address: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        return self.address if self.port == DNS_PORT else join_host_port(self.address, self.port)


def is_domain(text: str) -> bool:
    """Whether the text is a domain: labels of at most 63 letters, digits, hyphens and underscores."""
    return _DOMAIN.fullmatch(text) is not None and len(text.rstrip(".")) <= 253


def endpoint_of(text: str) -> NameServer:
    """The server of `address` or `address:port` (an IPv6 address with a port in brackets). Raises ValueError."""
    try:
        return NameServer(canonical_ip(text))
    except ValueError:
        pass
    try:
        address, port = split_socket_address(text)
    except ValueError:
        raise ValueError("neither an address nor address:port") from None
    if port == 0:
        raise ValueError("port 0 is no server's")
    return NameServer(address, port)


def in_resolv_conf(text: str) -> tuple[NameServer, ...]:
    """The name servers in the text of a resolv.conf(5), in their order, at most three; lines that are no address are
    passed over, as the C library does."""
    found: dict[NameServer, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1])
            except ValueError:
                continue
            found[NameServer(words[1])] = None
    return tuple(found)[:MOST_IN_RESOLV_CONF]


def wire_name(domain: str) -> bytes:
    """The domain in the form of a question in lower case, with the root's label (RFC 1035, 3.1)."""
    labels = [label.encode("ascii") for label in domain.lower().rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


@dataclass(frozen=True, slots=True)
class Zones:
    """The servers by domain: the longest domain that a name is in decides. `rest`: those of every other name."""

    by_name: Mapping[bytes, tuple[NameServer, ...]]
    rest: tuple[NameServer, ...]

    def servers(self, name: bytes) -> tuple[NameServer, ...]:
        """The servers for a name in the form of `wire_name`."""
        if self.by_name:
            at = 0
            while name[at]:
                servers = self.by_name.get(name[at:])
                if servers is not None:
                    return servers
                at += name[at] + 1
        return self.rest


def zones_of(zones: Mapping[str, Sequence[str]], rest: Sequence[NameServer]) -> Zones:
    """The zones of the settings, whose texts are valid; `rest`: the servers of other names."""
    by_name = {wire_name(zone): tuple(endpoint_of(text) for text in texts) for zone, texts in zones.items()}
    return Zones(by_name, tuple(rest))
