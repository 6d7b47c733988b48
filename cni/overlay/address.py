"""Addresses as Rust's `IpAddr` and `SocketAddr` read and print them (contract 2.1).

Python's own parser agrees with Rust's on all but the zone id, which Rust refuses; Python's printer, before 3.13,
spells an IPv4-mapped address with hexadecimal digits, where Rust shows the IPv4 address.
"""

import ipaddress


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
    """(address, port) of `1.2.3.4:51420` or `[2001:db8::5]:3478`; a numeric zone id is dropped.

    Raises ValueError for what Rust's `SocketAddr` would not parse: a name, a missing port, a bare IPv6 address.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port[-20:]) < 65536 and len(port) < 20):
        raise ValueError("invalid socket address syntax")
    if host.startswith("[") and host.endswith("]"):
        host, percent, zone = host[1:-1].partition("%")
        if ":" not in host or (percent and not (zone.isascii() and zone.isdigit())):
            raise ValueError("invalid socket address syntax")
    elif ":" in host:
        raise ValueError("invalid socket address syntax")
    try:
        return canonical_ip(host), int(port)
    except ValueError:
        raise ValueError("invalid socket address syntax") from None


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
