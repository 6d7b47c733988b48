"""Back onto the bridge it came from: there the kernel routes what it routes nowhere else, link-local addresses too."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from functools import partial

from cni.daemon.fence import ruleset as fence

from . import packets as p
from .attacks import EVIL, GATEWAY_MAC, HONEST, Case, a, attack, datagram, eth, gateway, x
from .lab import ROUTED, Lab, Place


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
        at_link = () if ROUTED else (f"{p.link_local(place.mac)}%{lab.way_in(place.name)}",)
        for address in (place.six, *at_link):
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


def _redirected(lab: Lab, six: bool) -> Case:
    """The host would answer a packet for another network with that member's MAC, or without if it is not there.

    Sent by a container that asks the host to route nothing else: the kernel sends each few redirects (IPv4: nine, then
    none for 20 s).
    """
    me, fellow = lab.places["red-web2"], lab.places["red-db"]
    others = [x(lab), lab.places["flat-web"]]
    lab.host.run("ping", "-c1", "-W2", me.six if six else me.four)  # a redirect waits for nothing
    frames = [datagram(me, gateway(each.four, each.six), EVIL, six=six) for each in others]
    honest = [datagram(me, gateway(fellow.four, fellow.six), HONEST, six=six)]
    # A redirect quotes what it is about: a header and eight octets, or all of it.
    needle = EVIL if six else p.packed(me.four) + p.packed(others[0].four)
    # While there is a chain of NAT, the kernel drops IPv4 redirects about flows that it has not finished with.
    lab.run(fence.base(replace(lab.node, masquerade=False)) + "delete chain inet zlayer_cni tunnel_source\n")
    undo = partial(lab.run, fence.base(lab.node))
    return Case(me.space, frames, [eth(me)], honest, eth(fellow), needle=needle, undo=undo)


@attack
def redirects_by_the_host(lab: Lab) -> Case:
    """send_redirects is 0 on the bridge and 1 for `all`, as on most hosts: so the kernel would send them."""
    return _redirected(lab, six=False)


@attack
def redirects_by_the_host_ipv6(lab: Lab) -> Case:
    return _redirected(lab, six=True)


def _come_back(lab: Lab, kind: bytes, frames: list[bytes]) -> Case:
    """Ports are in hairpin mode: a container hears none of its own broadcasts and multicasts."""
    me = a(lab)
    fellow = lab.places["red-web2"]
    return Case(me.space, frames, [eth(me)], [datagram(me, fellow, HONEST)], eth(fellow), needle=p.mac(me.mac) + kind)


@attack
def own_arp_requests_come_back(lab: Lab) -> Case:
    me = a(lab)
    requests = [(me.mac, me.four), (me.mac, "0.0.0.0")]
    frames = [p.frame(p.BROADCAST, me.mac, p.ARP, p.arp(1, sender, ("00:" * 5 + "00", me.four))) for sender in requests]
    return _come_back(lab, b"\x08\x06", frames)


def _mdns(me: Place, mac: str, src: str, to: str) -> bytes:
    return p.frame(mac, me.mac, p.ethertype(to), p.ip(src, to, p.UDP, p.udp(src, to, 5353, 5353, EVIL)))


@attack
def own_ipv4_group_packets_come_back(lab: Lab) -> Case:
    me = a(lab)
    places = ((p.BROADCAST, "10.200.5.63"), ("01:00:5e:00:00:fb", "224.0.0.251"))
    return _come_back(lab, b"\x08\x00", [_mdns(me, mac, me.four, to) for mac, to in places])


@attack
def own_ipv6_group_packets_come_back(lab: Lab) -> Case:
    """Its own address probe above all: duplicate address detection would take it for another's."""
    me = a(lab)
    group, mac = p.solicited_node(me.six)
    probe = p.frame(mac, me.mac, p.IPV6, p.ip6("::", group, 58, p.solicit("::", group, me.six, None), 255))
    asking = p.frame(mac, me.mac, p.IPV6, p.ip6(me.six, group, 58, p.solicit(me.six, group, me.six, me.mac), 255))
    return _come_back(lab, b"\x86\xdd", [probe, asking, _mdns(me, "33:33:00:00:00:fb", me.six, "ff02::fb")])
