"""Hardware addresses of our own making: each follows from what it is for, so it is the same every time."""

from __future__ import annotations

import ipaddress

from cni import naming

OF_ADDRESSES = "0a:58:"
"""How the MACs begin that follow from an address: nobody else's do."""


def stable(what: bytes) -> str:
    """A locally administered unicast MAC that follows from `what`."""
    return "02:" + naming.siphash13(what).to_bytes(8, "big")[:5].hex(":")


def of_bridge(name: str) -> str:
    """A bridge's: fixed from its creation, so neighbours' entries stay right when ports come and go."""
    return stable(b"bridge\xff" + name.encode())


def of_host_end(veth: str) -> str:
    """That of the host's end of a veth: set by us, so that no policy of udev's changes it later."""
    return stable(b"port\xff" + veth.encode())


def of_address(address: str) -> str:
    """That of a container without a wish of its own: it follows from its address, so that whoever gets the address
    next answers to the neighbours' old entries too."""
    ip = ipaddress.ip_address(address)
    tail = ip.packed if ip.version == 4 else bytes.fromhex(stable(ip.packed).replace(":", ""))[2:]
    return OF_ADDRESSES + tail.hex(":")
