"""The edge: published ports, what leaves, what the second leg may, what a path tells; most of it must get through."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import replace

from cni.daemon.fence import ruleset as fence

from . import packets as p
from .attacks import EVIL, GATEWAY_MAC, HONEST, Case, Ear, a, attack, datagram, eth, gateway, send, x
from .attacks_neighbours import travelled_routes
from .lab import HOST4, HOST6, LAN4, LAN6, LEG, NODE4, NODE6, OUTSIDE4, OUTSIDE6, ROUTED, TUNNEL, Lab, Place

PUBLISHED = 8081


def mac_of(lab: Lab, device: str) -> str:
    """A host device's MAC."""
    return lab.host.run("ip", "-br", "link", "show", device).split()[2]


def publish(lab: Lab, place: Place) -> None:
    """As portmap does: whatever of the host's addresses is asked for on the port leads to the container."""
    lab.host.run(
        "nft",
        "-f",
        "-",
        stdin=f"""
        table inet zlt_portmap {{
          chain pre {{
            type nat hook prerouting priority dstnat;
            fib daddr type local meta nfproto ipv4 udp dport {PUBLISHED} dnat ip to {place.four}:80
            fib daddr type local meta nfproto ipv6 udp dport {PUBLISHED} dnat ip6 to [{place.six}]:80
          }}
          chain out {{
            type nat hook output priority -100;
            fib daddr type local meta nfproto ipv4 udp dport {PUBLISHED} dnat ip to {place.four}:80
            fib daddr type local meta nfproto ipv6 udp dport {PUBLISHED} dnat ip6 to [{place.six}]:80
          }}
        }}
        """,
    )


def unpublish(lab: Lab) -> None:
    """The port is published no more."""
    lab.host.run("nft", "delete", "table", "inet", "zlt_portmap")


def sent_from_outside(lab: Lab, to: str, port: int, marker: bytes, sport: int = 999) -> bytes:
    out = lab.places["outside"]
    its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]
    src = OUTSIDE6 if ":" in to else OUTSIDE4
    return p.frame(mac_of(lab, "up0"), its, p.ethertype(to), p.ip(src, to, p.UDP, p.udp(src, to, sport, port, marker)))


def _published(name: str, to: str) -> None:
    def from_outside(lab: Lab) -> Case:
        me = a(lab)
        publish(lab, me)
        out = lab.places["outside"].space
        honest = [sent_from_outside(lab, to, PUBLISHED, HONEST)]
        return Case(out, [], [], honest, eth(me), undo=lambda: unpublish(lab))

    from_outside.__name__ = name
    attack(from_outside)


_published("published_port_arrives", LAN4)
_published("published_port_arrives_ipv6", LAN6)


@attack
def published_port_from_the_node_arrives(lab: Lab) -> Case:
    me = a(lab)
    publish(lab, me)

    def speak() -> None:
        for to in (HOST4, NODE6):
            with lab.host.socket(p.raw_family(to), socket.SOCK_DGRAM) as speaker:
                speaker.sendto(HONEST, (to, PUBLISHED))

    return Case(me.space, [], [], [], eth(me), before=speak, undo=lambda: unpublish(lab))


def _published_unknown(name: str, to: str) -> None:
    def work(lab: Lab) -> Case:
        """Whichever program publishes it: an overlay address without an owner is closed."""
        flat, far = lab.places["flat-web"], lab.places["remote-unknown"]
        publish(lab, far)
        honest = [sent_from_outside(lab, flat.four, 9, HONEST)]
        evil = [sent_from_outside(lab, to, PUBLISHED, EVIL, sport=998)]  # a flow of its own: translated anew
        out = lab.places["outside"].space
        return Case(out, evil, [Ear(far.space, "wg0")], honest, eth(flat), undo=lambda: unpublish(lab))

    work.__name__ = name
    attack(work)


_published_unknown("published_port_of_an_unknown_address", LAN4)
_published_unknown("published_port_of_an_unknown_address_ipv6", LAN6)


FAR = ("10.200.40.0/26", "fd00:200:0:40::/64")


def _behind_the_tunnel(lab: Lab, place: Place) -> Callable[[], None]:
    """Publish the port for a container of another node; returns what undoes it."""
    lab.run(fence.base(replace(lab.node, far=FAR)))
    publish(lab, place)

    def undo() -> None:
        unpublish(lab)
        lab.run(fence.base(lab.node))

    return undo


def _published_elsewhere(name: str, to: str) -> None:
    def from_outside(lab: Lab) -> Case:
        """A NodePort leads to a pod of the flat mesh on another node; the pod's address stays closed."""
        far, out = lab.places["remote-unknown"], lab.places["outside"].space
        undo = _behind_the_tunnel(lab, far)
        evil = [sent_from_outside(lab, far.six if ":" in to else far.four, 80, EVIL, sport=995)]
        honest = [sent_from_outside(lab, to, PUBLISHED, HONEST, sport=996)]  # a flow of its own: translated anew
        ear = Ear(far.space, "wg0")
        return Case(out, evil, [ear], honest, ear, undo=undo)

    def from_a_pod(lab: Lab) -> Case:
        """From the flat mesh too, and not from a member of a network."""
        far, flat, member = lab.places["remote-unknown"], lab.places["flat-web"], a(lab)
        undo = _behind_the_tunnel(lab, far)
        ear = Ear(far.space, "wg0")

        def frames(place: Place, marker: bytes) -> list[bytes]:
            src, host = (place.six, HOST6) if ":" in to else (place.four, HOST4)
            packet = p.ip(src, host, p.UDP, p.udp(src, host, 997, PUBLISHED, marker))
            return [p.frame(GATEWAY_MAC, place.mac, p.ethertype(host), packet)]

        return Case(
            flat.space,
            [],
            [ear],
            frames(flat, HONEST),
            ear,
            before=lambda: send(member.space, "eth0", frames(member, EVIL)),
            undo=undo,
        )

    def of_a_member(lab: Lab) -> Case:
        """A member's own node decides about what comes from outside; no container of another network gets so far."""
        far, flat, other = lab.places["remote-red"], lab.places["flat-web"], x(lab)
        undo = _behind_the_tunnel(lab, far)
        host = HOST6 if ":" in to else HOST4
        frames = []
        for sport, place in ((993, flat), (992, other)):
            src = place.six if ":" in to else place.four
            packet = p.ip(src, host, p.UDP, p.udp(src, host, sport, PUBLISHED, EVIL))
            frames.append((place, p.frame(GATEWAY_MAC, place.mac, p.ethertype(host), packet)))

        def before() -> None:
            for place, frame in frames:
                send(place.space, "eth0", [frame])

        ear = Ear(far.space, "wg0")
        honest = [sent_from_outside(lab, to, PUBLISHED, HONEST, sport=994)]
        evil = [sent_from_outside(lab, far.six if ":" in to else far.four, 80, EVIL, sport=991)]
        return Case(lab.places["outside"].space, evil, [ear], honest, ear, before=before, undo=undo)

    for work, what in ((from_outside, "arrives"), (from_a_pod, "from_a_pod"), (of_a_member, "of_a_member")):
        work.__name__ = f"published_port_elsewhere_{what}{name}"
        attack(work)


_published_elsewhere("", LAN4)
_published_elsewhere("_ipv6", LAN6)


@attack
def published_port_from_the_overlay(lab: Lab) -> Case:
    """No container of another network or of none gets in that way; its own way out is the control."""
    me = a(lab)
    publish(lab, me)
    flat = lab.places["flat-web"]

    def frames(place: Place) -> list[bytes]:
        found = []
        for four, six in ((HOST4, LAN6), (NODE4, NODE6)):
            for src, to in ((place.four, four), (place.six, six)):
                packet = p.ip(src, to, p.UDP, p.udp(src, to, 9, PUBLISHED, EVIL))
                found.append(p.frame(GATEWAY_MAC, place.mac, p.ethertype(to), packet))
        return found

    honest = [datagram(flat, gateway(OUTSIDE4), HONEST)]
    return Case(
        flat.space,
        frames(flat),
        [eth(me)],
        honest,
        eth(lab.places["outside"]),
        before=lambda: send(x(lab).space, "eth0", frames(x(lab))),
        undo=lambda: unpublish(lab),
    )


@attack
def egress_is_masqueraded(lab: Lab) -> Case:
    """The outside sees the node's address; another node sees the container's.

    A flow of its own: one that a fellow member was asked to route stays as connection tracking first saw it.
    """
    me = a(lab)
    case = Case(me.space, [], [eth(lab.places["outside"])], [], eth(lab.places["outside"]), needle=p.packed(me.four))
    case.control = [datagram(me, gateway(OUTSIDE4), HONEST, sport=6001)]
    case.honest_needle = p.packed(LAN4) + p.packed(OUTSIDE4)
    return case


@attack
def egress_is_masqueraded_ipv6(lab: Lab) -> Case:
    me = a(lab)
    out = eth(lab.places["outside"])
    case = Case(
        me.space, [], [out], [datagram(me, gateway("", OUTSIDE6), HONEST, six=True, sport=6001)], out, p.packed(me.six)
    )
    case.honest_needle = p.packed(LAN6) + p.packed(OUTSIDE6)
    return case


@attack
def within_the_overlay_nothing_is_masqueraded(lab: Lab) -> Case:
    me = a(lab)
    far = lab.places["remote-red"]
    wg = Ear(far.space, "wg0")
    frames = [datagram(me, gateway(far.four, far.six), HONEST, six=six) for six in (False, True)]
    case = Case(me.space, frames[:1], [], frames[1:], wg)
    case.honest_needle = p.packed(me.six) + p.packed(far.six)
    return case


def _mss(src: str, dst: str, mss: int) -> bytes:
    body = struct.pack("!HHIIBBHHH", 7001, 7002, 1, 0, 0x60, 2, 64240, 0, 0) + struct.pack("!BBH", 2, 4, mss)
    pseudo = p.packed(src) + p.packed(dst) + struct.pack("!xBH", p.TCP, len(body))
    return p.ip4(src, dst, p.TCP, body[:16] + struct.pack("!H", p.checksum(pseudo + body)) + body[18:])


@attack
def mss_outbound_is_clamped(lab: Lab) -> Case:
    me, out = a(lab), eth(lab.places["outside"])
    lab.host.ip("link set up0 mtu 1400")
    honest = [p.frame(GATEWAY_MAC, me.mac, p.IPV4, _mss(me.four, OUTSIDE4, 1460))]
    case = Case(me.space, [], [out], honest, out, struct.pack("!BBH", 2, 4, 1460))
    case.honest_needle = struct.pack("!BBH", 2, 4, 1360)
    case.undo = lambda: lab.host.ip("link set up0 mtu 1500")
    return case


@attack
def mss_inbound_is_clamped(lab: Lab) -> Case:
    flat = lab.places["flat-web"]
    web = lab.way_in("flat-web")
    lab.host.ip(f"route replace {flat.four}/32 dev {web} mtu 1300")
    its = lab.places["outside"].space.run("ip", "-br", "link", "show", "eth0").split()[2]
    honest = [p.frame(mac_of(lab, "up0"), its, p.IPV4, _mss(OUTSIDE4, flat.four, 1460))]
    case = Case(lab.places["outside"].space, [], [eth(flat)], honest, eth(flat), struct.pack("!BBH", 2, 4, 1460))
    case.honest_needle = struct.pack("!BBH", 2, 4, 1260)
    before = f"route replace {flat.four}/32 dev {web}" if ROUTED else f"route del {flat.four}/32 dev {web}"
    case.undo = lambda: lab.host.ip(before)
    return case


def _router_on_the_way(six: bool) -> None:
    def work(lab: Lab) -> Case:
        """Path MTU discovery inside the network: another node's router has an address of the overlay."""
        me, far = a(lab), lab.places["remote-red"]
        src, dst = (me.six, far.six) if six else (me.four, far.four)
        flow = p.frame(
            GATEWAY_MAC, me.mac, p.ethertype(dst), p.ip(src, dst, p.UDP, p.udp(src, dst, 3131, 3132, b"hello"))
        )
        quoted = p.ip(src, dst, p.UDP, p.udp(src, dst, 3131, 3132, HONEST))
        if six:
            router = "fd00:200:0:40::77"
            error = p.ip6(router, src, 58, p.icmp6(router, src, 2, 0, struct.pack("!I", 1300) + quoted))
        else:
            router = "10.200.40.60"
            error = p.ip4(router, src, p.ICMP, p.icmp(3, 4, struct.pack("!HH", 0, 1300) + quoted))
        its = far.space.run("ip", "-br", "link", "show", "wg0").split()[2]
        frame = p.frame(mac_of(lab, TUNNEL), its, p.ethertype(dst), error)
        return Case(far.space, [], [], [frame], eth(me), device="wg0", before=lambda: send(me.space, "eth0", [flow]))

    work.__name__ = "error_of_a_router_on_the_way_arrives" + ("_ipv6" if six else "")
    attack(work)


_router_on_the_way(False)
_router_on_the_way(True)


@attack
def second_leg_poses_as_another(lab: Lab) -> Case:
    """The leg without a bridge: forged sources, source routes, redirects, router advertisements, other networks."""
    leg, gate = lab.leg, mac_of(lab, LEG)
    own = p.link_local(leg.mac)
    four = leg.four
    routes = [bytes([kind, 7, 4]) + p.packed(x(lab).four) for kind in (131, 137)] + travelled_routes(x(lab).four)
    packets = [
        p.ip4(s, NODE4, p.UDP, p.udp(s, NODE4, 9, 9, EVIL))
        for s in (x(lab).four, lab.places["flat-web"].four, OUTSIDE4)
    ]
    packets += [p.ip6(s, NODE6, p.UDP, p.udp(s, NODE6, 9, 9, EVIL)) for s in (x(lab).six, OUTSIDE6, "fe80::99")]
    # On its way on, such a packet still has the host's address for its destination when the forward chain sees it.
    packets += [p.ip4(four, HOST4, p.UDP, p.udp(four, x(lab).four, 9, 9, EVIL), options=o) for o in routes]
    packets += [p.ip4(four, NODE4, p.ICMP, p.icmp(kind, 0, p.packed(four) + EVIL)) for kind in (5, 9)]
    packets += [p.ip6(own, NODE6, 58, p.icmp6(own, NODE6, kind, 0, bytes(4) + EVIL), 255) for kind in (134, 137)]
    packets += [p.ip4(four, x(lab).four, p.UDP, p.udp(four, x(lab).four, 9, 9, EVIL))]
    packets += [p.ip4(four, HOST4, p.UDP, p.udp(four, HOST4, 9, 9, EVIL))]
    frames = [p.frame(gate, leg.mac, p.IPV4 if k[0] >> 4 == 4 else p.IPV6, k) for k in packets]
    host = Ear(lab.host)
    honest = [p.frame(gate, leg.mac, p.IPV4, p.ip4(four, NODE4, p.UDP, p.udp(four, NODE4, 9, 9, HONEST)))]
    lab.host.sysctl(net__ipv4__conf__all__accept_source_route=1, **{f"net__ipv4__conf__{LEG}__accept_source_route": 1})
    return Case(leg.space, frames, [host, eth(x(lab))], honest, host)


@attack
def second_leg_reaches_its_network(lab: Lab) -> Case:
    leg = lab.leg
    me = a(lab)
    packet = p.ip6(leg.six, me.six, p.UDP, p.udp(leg.six, me.six, 9, 9, HONEST))
    return Case(leg.space, [], [], [p.frame(mac_of(lab, LEG), leg.mac, p.IPV6, packet)], eth(me))
