"""Addresses as Rust's `IpAddr` and `SocketAddr` read and print them (contract 2.1), and CIDRs as ZLayer's daemon does.

Python's own parser agrees with Rust's on all but the zone id, which Rust refuses; Python's printer, before 3.13,
spells an IPv4-mapped address with hexadecimal digits, where Rust shows the IPv4 address.
"""

import ipaddress

from cni import addresses

Network = addresses.Network


def canonical_ip(text: str) -> str:
    """`text` as Rust would print it. Raises ValueError for what Rust would not parse."""
    try:
        if "%" in text:
            raise ValueError(text)
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("invalid IP address syntax") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(address) if mapped is None else f"::ffff:{mapped}"


def split_socket_address(text: str) -> tuple[str, int]:
    """(address, port) of `1.2.3.4:51420` or `[2001:db8::5]:3478`. A numeric zone id is dropped.

    Raises ValueError for what Rust's `SocketAddr` would not parse: a name, a missing port, a bare IPv6 address.
    """
    host, _, port = text.rpartition(":")
    zone = "0"
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host, percent, zone = host[1:-1].partition("%")
        zone = zone if percent else "0"
    if bracketed != (":" in host) or not _fits(zone, 32) or not _fits(port, 16):
        raise ValueError("invalid socket address syntax")
    try:
        return canonical_ip(host), int(port.lstrip("0") or "0")
    except ValueError:
        raise ValueError("invalid socket address syntax") from None


def network(text: str, strict: bool = False) -> Network:
    """The CIDR `10.200.0.0/16`: an address and a decimal prefix length. Host bits are dropped, or refused if `strict`.

    Raises ValueError, also for the further notations that Python accepts: with a netmask, a wildcard mask, a zone, or
    without a length. ZLayer's daemon accepts none of them for a peer or an edge peer (contract 6.11, 6.12). For its two
    ranges (6.2) it accepts a bare IPv4 address and a netmask; its agents print every range as address and length.
    """
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise ValueError("an address and a prefix length are wanted, such as 10.200.0.0/16")
    if "%" in address:
        raise ValueError("a network has no zone")
    return ipaddress.ip_network(text, strict=strict)


def _fits(digits: str, bits: int) -> bool:
    """Whether this is a decimal number of so many bits; leading zeros do not count."""
    plain = digits.lstrip("0") or "0"
    return digits.isascii() and digits.isdigit() and len(plain) <= bits and int(plain) < 1 << bits


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
