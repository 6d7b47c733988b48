"""Endpoints of peers: `host:port`, the host an address or a name."""

from __future__ import annotations

import functools
import ipaddress
import re

from cni.addresses import Address
from cni.overlay.address import split_socket_address

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
LONGEST_LABEL, LONGEST_NAME = 63, 253  # characters (RFC 1035, 2.3.4); a resolver raises for more between two dots
_NAME = re.compile(rf"(?=.{{1,{LONGEST_NAME}}}$){_LABEL}(\.{_LABEL})*\.?")


def split_endpoint(text: str, longest: int = LONGEST_LABEL) -> tuple[str, int]:
    """(host, port). Raises ValueError if the text is neither an address nor a name with a port, and for a name with
    more than `longest` characters between two dots."""
    try:
        return split_socket_address(text)
    except ValueError:
        host, colon, port = text.rpartition(":")
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
        last = host.rstrip(".").rpartition(".")[2]
        if not (colon and 0 < number < 65536 and _NAME.fullmatch(host)) or last.isdigit():
            raise  # `1.2.3:5` is an invalid address, not a name
        if any(len(label) > longest for label in host.split(".")):
            raise ValueError(f"a name has at most {longest} characters between two dots") from None
        return host, number


def can_be_called(text: str) -> bool:
    """Whether an endpoint can be called: its host is an address, or a name that can be looked up."""
    try:
        split_endpoint(text)
    except ValueError:
        return False
    return True


def is_name(host: str) -> bool:
    """Whether a host is a name that must be looked up, not an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


@functools.lru_cache(1 << 16)
def address_of(endpoint: str) -> Address:
    """The address of an endpoint whose host is an address, not a name."""
    return ipaddress.ip_address(split_endpoint(endpoint)[0])
