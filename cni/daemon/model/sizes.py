"""The MTU of the overlay: of WireGuard devices, bridges and containers. Pure."""

from __future__ import annotations

WIREGUARD_OVERHEAD = 80  # bytes: outer IPv6 (40), UDP (8), WireGuard's header and tag (32)
SAVED_BY_IPV4 = 20  # bytes: the outer header of IPv4 is smaller
LEAST = 576  # bytes: what every IPv4 host accepts (RFC 791, section 3.1)
LEAST6 = 1280  # bytes: a link with a smaller MTU has no IPv6 (RFC 8200, section 5)


def least(six: bool) -> int:
    """The smallest MTU of a link of the overlay, in bytes. `six`: the overlay has IPv6."""
    return LEAST6 if six else LEAST


def inside(underlay: int, six: bool) -> int:
    """The MTU, in bytes, that a packet inside a tunnel over an underlay of that MTU may have, but no less than `least`:
    WireGuard's packets are then sent in fragments."""
    return max(underlay - WIREGUARD_OVERHEAD, least(six))


def narrow(underlay: int, six: bool, tunnels: bool) -> str:
    """The problem of an underlay that is too narrow for the overlay; empty if there is none. `tunnels`: packets to
    other nodes are inside WireGuard's."""
    room = underlay - WIREGUARD_OVERHEAD if tunnels else underlay
    if room >= least(six):
        return ""
    effect = "larger packets do not pass"
    if tunnels:
        where = " over IPv6" if room + SAVED_BY_IPV4 >= least(six) else ""
        effect = f"WireGuard's packets to other nodes are sent in fragments{where}"
    family = "IPv6" if six else "IPv4"
    return f"the underlay's MTU is {underlay}, and {family} needs {least(six)} bytes in each container: {effect}"
