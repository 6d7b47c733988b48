"""Where a peer can be called: `host:port`, the host an address or a name."""

from __future__ import annotations

import ipaddress
import re

from cni.overlay.address import split_socket_address

# At most 63 characters between two dots: a resolver raises for more (RFC 1035, 2.3.4).
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")


def split_endpoint(text: str) -> tuple[str, int]:
    """(host, port). Raises ValueError for what is neither an address nor a name with a port."""
    try:
        return split_socket_address(text)
    except ValueError:
        host, colon, port = text.rpartition(":")
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
        last = host.rstrip(".").rpartition(".")[2]
        if not (colon and 0 < number < 65536 and _NAME.fullmatch(host)) or last.isdigit():
            raise  # `1.2.3:5` is a bad address, not a name
        return host, number


def is_name(host: str) -> bool:
    """Whether a host must be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False
