"""Back onto the bridge it came from: there the kernel routes what it routes nowhere else, link-local addresses too."""

from __future__ import annotations

import json
import struct

from . import packets as p
from .attacks import EVIL, GATEWAY_MAC, HONEST, Case, a, attack, datagram, eth, gateway, x
from .lab import Lab, Place


def host_end(lab: Lab, place: Place) -> str:
    """The MAC of the host's end of a container's veth: the host takes frames for it like those for the gateway's."""
    assert place.port is not None
    return str(json.loads(lab.host.run("ip", "-j", "link", "show", place.port.name))[0]["address"])


def _by_the_host(lab: Lab, packets: list[bytes]) -> Case:
    """IPv6 packets that the host is asked to route; the control is one that it does route."""
    me, fellow = a(lab), lab.places["red-db"]
    frames = [p.frame(mac, me.mac, p.IPV6, each) for mac in (GATEWAY_MAC, host_end(lab, me)) for each in packets]
    others = [x(lab), lab.places["flat-web"]]
    for place in others:  # so that nothing waits for an answer to discovery, and comes too late to be seen
        for address in (place.six, f"{p.link_local(place.mac)}%{lab.bridges['web'].name}"):
            lab.host.run("ping", "-c1", "-W2", address)
    victims = [eth(place) for place in others]
    return Case(me.space, frames, victims, [datagram(me, gateway("", fellow.six), HONEST, six=True)], eth(fellow))


def _addresses(place: Place) -> tuple[str, str]:
    return place.six, p.link_local(place.mac)


@attack
def link_local_source_by_the_host(lab: Lab) -> Case:
    """One's own link-local address, which the kernel forwards where the way out is the way in."""
    own = p.link_local(a(lab).mac)
    targets = [t for place in (x(lab), lab.places["flat-web"]) for t in _addresses(place)]
    return _by_the_host(lab, [p.ip6(own, t, p.UDP, p.udp(own, t, 9, 9, EVIL)) for t in targets])


@attack
def link_local_target_by_the_host(lab: Lab) -> Case:
    me = a(lab)
    targets = [_addresses(place)[1] for place in (x(lab), lab.places["flat-web"])]
    return _by_the_host(lab, [p.ip6(me.six, t, p.UDP, p.udp(me.six, t, 9, 9, EVIL)) for t in targets])


@attack
def report_of_none_by_the_host(lab: Lab) -> Case:
    """A multicast report without a source, sent to an address instead of a group; an address probe likewise."""
    me = a(lab)
    targets = [t for place in (x(lab), lab.places["flat-web"]) for t in _addresses(place)]
    packets = []
    for t in targets:
        packets.append(p.ip6("::", t, 58, p.icmp6("::", t, 143, 0, struct.pack("!HH", 0, 0) + EVIL)))
        packets.append(p.ip6("::", t, 58, p.icmp6("::", t, 135, 0, bytes(4) + p.packed(me.six) + EVIL[:8])))
    return _by_the_host(lab, packets)


@attack
def redirects_by_the_host(lab: Lab) -> Case:
    """The host would answer a packet for another network with that member's MAC, or without if nobody is there."""
    me = a(lab)
    case = _by_the_host(lab, [])
    targets = [place.six for place in (x(lab), lab.places["flat-web"])]
    case.frames = [
        p.frame(GATEWAY_MAC, me.mac, p.IPV6, p.ip6(me.six, t, p.UDP, p.udp(me.six, t, 9, 9, EVIL))) for t in targets
    ]
    case.victims = [eth(me)]  # a redirect quotes what it is about
    return case
