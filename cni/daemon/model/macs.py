"""Generated MAC addresses. Each is derived from the name or address of its owner, so it is the same every time."""

from __future__ import annotations

import functools
import ipaddress

from cni import naming

OF_ADDRESSES = "0a:58:"
"""The prefix of MACs that are derived from an IP address; no other MAC has it."""


@functools.lru_cache(4096)  # the periodic comparison asks for that of every port
def stable(what: bytes) -> str:
    """A locally administered unicast MAC derived from `what`."""
    return "02:" + naming.siphash13(what).to_bytes(8, "big")[:5].hex(":")


def of_bridge(name: str) -> str:
    """The MAC of a bridge. It is set at creation, so neighbour entries stay valid when ports are added or removed."""
    return stable(b"bridge\xff" + name.encode())


def of_host_end(veth: str) -> str:
    """The MAC of the host's end of a veth. It is set explicitly, so that udev's policy does not change it later."""
    return stable(b"port\xff" + veth.encode())


def of_address(address: str) -> str:
    """The MAC of a container that requests none, derived from its IP address. The next owner of the address has the
    same MAC, so that neighbours' old entries stay valid."""
    ip = ipaddress.ip_address(address)
    tail = ip.packed if ip.version == 4 else bytes.fromhex(stable(ip.packed).replace(":", ""))[2:]
    return OF_ADDRESSES + tail.hex(":")
