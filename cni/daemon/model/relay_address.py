"""The address of a relay that forwards in user space, as people and agents write it. Pure.

`host:port` is a relay of ZLayer's protocol; `turn:host:port`, with `?transport=udp` or `tcp`, and `turns:host:port` are
TURN servers (RFC 7065), by default at the ports 3478 and 5349.
"""

from __future__ import annotations

from typing import Literal

from cni.daemon.model.endpoints import LONGEST_NAME, split_endpoint

RelayKind = Literal["zlayer", "turn"]
Transport = Literal["udp", "tcp", "tls"]


def relay_address(text: str) -> tuple[RelayKind, Transport, str, int]:
    """Protocol, transport, host and port. Raises ValueError."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in ("turn", "turns"):
        return ("zlayer", "udp", *split_endpoint(text, LONGEST_NAME))
    place, _, query = rest.partition("?")
    transport: Transport = "tls" if scheme == "turns" else "udp"
    if query not in ("", "transport=udp", "transport=tcp") or (query == "transport=udp" and scheme == "turns"):
        raise ValueError(f"{query}: not transport=udp or transport=tcp (turns: has TLS over TCP alone)")
    if query == "transport=tcp" and scheme == "turn":
        transport = "tcp"
    has_port = "]:" in place if place.startswith("[") else ":" in place
    named = place if has_port else f"{place}:{5349 if scheme == 'turns' else 3478}"
    return ("turn", transport, *split_endpoint(named, LONGEST_NAME))
