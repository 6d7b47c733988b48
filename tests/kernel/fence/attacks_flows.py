"""Attacks on connection tracking: packets of no flow, errors about what others speak of, and what a tunnel claims."""

from __future__ import annotations

import socket
import struct

from . import packets as p
from .attacks import EVIL, GATEWAY_MAC, HONEST, Case, Ear, a, attack, datagram, eth, gateway, send, x
from .attacks_edge import mac_of
from .attacks_routed import open_flow
from .lab import LAN4, LAN6, LEG, NODE4, NODE6, OUTSIDE4, OUTSIDE6, TUNNEL, Lab


def error(src: str, dst: str, quoted: bytes, kind: int = 3, code: int = 3) -> bytes:
    """An ICMP error, of whatever family; `kind` and `code` are ICMP's, port unreachable or too big (3, 4)."""
    if ":" not in src:
        return p.ip4(src, dst, p.ICMP, p.icmp(kind, code, struct.pack("!HH", 0, 600 if code == 4 else 0) + quoted))
    how = (2, 0, struct.pack("!I", 1280)) if code == 4 else (1, 4, bytes(4))
    return p.ip6(src, dst, 58, p.icmp6(src, dst, *how[:2], how[2] + quoted))


def _errors_of_no_flow(name: str, who: str) -> None:
    def work(lab: Lab) -> Case:
        """The node has sent nothing of the kind; its sockets that are bound to a port alone would believe it."""
        me, host = lab.places[who], Ear(lab.host)
        frames = []
        for src, node, lan, out in ((me.four, NODE4, LAN4, OUTSIDE4), (me.six, NODE6, LAN6, OUTSIDE6)):
            quoted = p.ip(lan, out, p.UDP, p.udp(lan, out, 51820, 7, EVIL))
            errors = [error(src, node, quoted, code=code) for code in (3, 4)]
            frames += [p.frame(GATEWAY_MAC, me.mac, p.ethertype(src), each) for each in errors]
        return Case(me.space, frames, [host], [datagram(me, gateway(NODE4), HONEST)], host)

    work.__name__ = name
    attack(work)


_errors_of_no_flow("error_of_no_flow_to_the_node", "red-web")
_errors_of_no_flow("error_of_no_flow_to_the_node_from_the_flat_mesh", "flat-web")


@attack
def error_about_anothers_translated_flow(lab: Lab) -> Case:
    """As the outside knows the flow: from the node's address. Connection tracking knows no such flow."""
    me, it, out = a(lab), x(lab), eth(lab.places["outside"])
    frames = []
    for six, far in ((False, OUTSIDE4), (True, OUTSIDE6)):
        seen, port = open_flow(lab, it, six)
        quoted = p.ip(far, seen, p.UDP, p.udp(far, seen, 4444, port, EVIL))
        src = me.six if six else me.four
        frames.append(p.frame(GATEWAY_MAC, me.mac, p.ethertype(src), error(src, far, quoted)))
    return Case(me.space, frames, [out], [datagram(me, gateway(OUTSIDE4), HONEST)], out)


@attack
def what_cannot_be_translated_does_not_leave(lab: Lab) -> Case:
    """A wrong checksum, impossible flags: of no flow, so they would go with the container's own address."""
    me, out = a(lab), eth(lab.places["outside"])
    frames = []
    for src, far in ((me.four, OUTSIDE4), (me.six, OUTSIDE6)):
        wrong = bytearray(p.udp(src, far, 9, 9, EVIL))
        wrong[6] ^= 0x55
        impossible = p.tcp(src, far, 9, 9, flags=0x3F) + EVIL
        for protocol, body in ((p.UDP, bytes(wrong)), (p.TCP, impossible)):
            frames.append(p.frame(GATEWAY_MAC, me.mac, p.ethertype(src), p.ip(src, far, protocol, body)))
    return Case(me.space, frames, [out], [datagram(me, gateway(OUTSIDE4), HONEST)], out)


def _by_tunnel(lab: Lab, packet: bytes) -> bytes:
    its = lab.places["remote-red"].space.run("ip", "-br", "link", "show", "wg0").split()[2]
    return p.frame(mac_of(lab, TUNNEL), its, p.IPV4 if packet[0] >> 4 == 4 else p.IPV6, packet)


@attack
def error_of_no_flow_to_the_node_from_elsewhere(lab: Lab) -> Case:
    far, host = lab.places["remote-red"], Ear(lab.host)
    frames = []
    for src, node, lan, out in ((far.four, NODE4, LAN4, OUTSIDE4), (far.six, NODE6, LAN6, OUTSIDE6)):
        quoted = p.ip(lan, out, p.UDP, p.udp(lan, out, 51820, 7, EVIL))
        frames += [_by_tunnel(lab, error(src, node, quoted, code=code)) for code in (3, 4)]
    honest = _by_tunnel(lab, p.ip(far.four, NODE4, p.UDP, p.udp(far.four, NODE4, 9, 9, HONEST)))
    return Case(far.space, frames, [host], [honest], host, device="wg0")


def _member_elsewhere_as_a_router(six: bool) -> None:
    def work(lab: Lab) -> Case:
        """Another network's member on another node, about a flow that is not its own; its own node does not stop it."""
        me, far, liar = a(lab), lab.places["remote-red"], lab.places["remote-blue"]
        src, dst, lie = (me.six, far.six, liar.six) if six else (me.four, far.four, liar.four)
        flow = p.udp(src, dst, 3141, 3142, b"hello")
        quoted = p.ip(src, dst, p.UDP, p.udp(src, dst, 3141, 3142, EVIL))
        honest = p.ip(src, dst, p.UDP, p.udp(src, dst, 3141, 3142, HONEST))
        router = "fd00:200:0:40::78" if six else "10.200.40.61"

        def before() -> None:
            send(me.space, "eth0", [p.frame(GATEWAY_MAC, me.mac, p.ethertype(dst), p.ip(src, dst, p.UDP, flow))])

        frames = [_by_tunnel(lab, error(lie, src, quoted, code=code)) for code in (3, 4)]
        control = [_by_tunnel(lab, error(router, src, honest, code=4))]
        return Case(far.space, frames, [eth(me)], control, eth(me), device="wg0", before=before)

    work.__name__ = "member_elsewhere_as_a_router" + ("_ipv6" if six else "")
    attack(work)


_member_elsewhere_as_a_router(False)
_member_elsewhere_as_a_router(True)


def _own_by_tunnel(six: bool) -> None:
    def work(lab: Lab) -> Case:
        """A peer that may send anything of the overlay poses as a container of this node, and as the node."""
        me, fellow, far, flat = a(lab), lab.places["red-db"], lab.places["remote-red"], lab.places["flat-web"]
        pick = (lambda place: place.six) if six else (lambda place: place.four)
        host, node = Ear(lab.host), NODE6 if six else NODE4
        lies = [  # those of the node's address are refused from any port: no port is admitted with it
            (pick(fellow), pick(me)),
            (pick(lab.places["flat-db"]), pick(flat)),
            (pick(fellow), node),
            (node, pick(flat)),
            (node, pick(me)),
        ]
        frames = [_by_tunnel(lab, p.ip(s, d, p.UDP, p.udp(s, d, 9, 9, EVIL))) for s, d in lies]
        honest = _by_tunnel(lab, p.ip(pick(far), pick(me), p.UDP, p.udp(pick(far), pick(me), 9, 9, HONEST)))
        return Case(far.space, frames, [eth(me), eth(flat), host], [honest], eth(me), device="wg0")

    work.__name__ = "own_addresses_by_the_tunnel" + ("_ipv6" if six else "")
    attack(work)


_own_by_tunnel(False)
_own_by_tunnel(True)


@attack
def source_routes_from_outside(lab: Lab) -> Case:
    """A host that follows them is asked to hand packets on to a member, and to the flat mesh, by its own address."""
    me, flat, out = a(lab), lab.places["flat-web"], lab.places["outside"]
    its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]

    def frame(to: str, options: bytes, marker: bytes) -> bytes:
        body = p.udp(OUTSIDE4, to, 9, 9, marker)
        return p.frame(mac_of(lab, "up0"), its, p.IPV4, p.ip4(OUTSIDE4, to, p.UDP, body, options=options))

    routes = [bytes([kind, 7, 4]) + p.packed(place.four) for kind in (131, 137) for place in (me, flat)]
    names = [f"net__ipv4__conf__{device}__accept_source_route" for device in ("all", "up0")]
    lab.host.sysctl(**dict.fromkeys(names, 1))
    return Case(
        out.space,
        [frame(LAN4, route, EVIL) for route in routes],
        [eth(me), eth(flat)],
        [frame(flat.four, b"", HONEST)],
        eth(flat),
        undo=lambda: lab.host.sysctl(**{names[1]: 0}),
    )


@attack
def redirect_about_a_flow_of_the_second_legs(lab: Lab) -> Case:
    """A redirect that quotes what the node did send is of a flow; it would turn the node's route round."""
    leg, host = lab.leg, Ear(lab.host)
    sent = p.ip4(NODE4, leg.four, p.UDP, p.udp(NODE4, leg.four, 3336, 4446, EVIL))
    redirect = p.ip4(leg.four, NODE4, p.ICMP, p.icmp(5, 1, p.packed(leg.four) + sent))

    def before() -> None:
        with lab.host.socket(p.raw_family(NODE4), socket.SOCK_DGRAM) as speaker:
            speaker.bind((NODE4, 3336))
            speaker.sendto(b"hello", (leg.four, 4446))

    frames = [p.frame(mac_of(lab, LEG), leg.mac, p.IPV4, redirect)]
    honest = [
        p.frame(mac_of(lab, LEG), leg.mac, p.IPV4, p.ip4(leg.four, NODE4, p.UDP, p.udp(leg.four, NODE4, 9, 9, HONEST)))
    ]
    return Case(leg.space, frames, [host], honest, host, before=before)
