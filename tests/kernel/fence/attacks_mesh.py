"""The flat mesh on other nodes: reached by the flat mesh here, and by no network; and the other way round."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.elements import change, of_edge
from cni.daemon.fence.model import FenceEdge

from . import packets as p
from .attacks import (
    EVIL,
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    HONEST,
    Case,
    Ear,
    a,
    attack,
    datagram,
    eth,
    gateway,
    send,
)
from .attacks_edge import PUBLISHED, mac_of, publish, sent_from_outside, unpublish
from .lab import HOST4, HOST6, LAN4, LAN6, NODE4, NODE6, OUTSIDE4, OUTSIDE6, TUNNEL, Lab, Place

FAR = ("10.200.40.0/26", "fd00:200:0:40::/64")


def _behind(lab: Lab) -> Callable[[], None]:
    """The second node's subnets are known from now on; what ends that."""
    lab.run(fence.base(replace(lab.node, far=FAR)))
    return lambda: lab.run(fence.base(lab.node))


def _from_there(lab: Lab, far: Place, to: Place, marker: bytes, six: bool) -> bytes:
    its = far.space.run("ip", "-br", "link", "show", "wg0").split()[2]
    src, dst = (far.six, to.six) if six else (far.four, to.four)
    packet = p.ip(src, dst, p.UDP, p.udp(src, dst, 9, 9, marker))
    return p.frame(mac_of(lab, TUNNEL), its, p.ethertype(dst), packet)


def _register(six: bool) -> None:
    def flat_elsewhere_to_a_network(lab: Lab) -> Case:
        """Who is behind the tunnel and of no network reaches the flat mesh, and no member."""
        far, me, flat = lab.places["remote-unknown"], a(lab), lab.places["flat-web"]
        undo = _behind(lab)
        evil, honest = _from_there(lab, far, me, EVIL, six), _from_there(lab, far, flat, HONEST, six)
        return Case(far.space, [evil], [eth(me)], [honest], eth(flat), device="wg0", undo=undo)

    def network_to_flat_elsewhere(lab: Lab) -> Case:
        far, me, friend = lab.places["remote-unknown"], a(lab), lab.places["remote-red"]
        undo = _behind(lab)
        evil = datagram(me, gateway(far.four, far.six), EVIL, six=six)
        honest = datagram(me, gateway(friend.four, friend.six), HONEST, six=six)
        wg = Ear(far.space, "wg0")
        return Case(me.space, [evil], [wg], [honest], wg, undo=undo)

    def flat_to_a_network_elsewhere(lab: Lab) -> Case:
        far, flat, red = lab.places["remote-unknown"], lab.places["flat-web"], lab.places["remote-red"]
        undo = _behind(lab)
        evil = datagram(flat, gateway(red.four, red.six), EVIL, six=six)
        honest = datagram(flat, gateway(far.four, far.six), HONEST, six=six)
        wg = Ear(far.space, "wg0")
        return Case(flat.space, [evil], [wg], [honest], wg, undo=undo)

    for work in (flat_elsewhere_to_a_network, network_to_flat_elsewhere, flat_to_a_network_elsewhere):
        work.__name__ += "_ipv6" if six else ""
        attack(work)


_register(six=False)
_register(six=True)


# --- edge peers, and what members elsewhere may have of this node ---------------------------------------------------


def _edge(lab: Lab, allowed: tuple[str, ...]) -> tuple[Place, Callable[[], None]]:
    """`remote-unknown` is an edge peer with these networks; what ends that."""
    far = lab.places["remote-unknown"]
    edges = [FenceEdge("edge:a", far.four, allowed), FenceEdge("edge:b", far.six, allowed)]
    undo = _behind(lab)
    for edge in edges:
        lab.run(fence.create_edge(edge))
        lab.run(change(add=of_edge(edge)))

    def end() -> None:
        for edge in edges:
            lab.run(change(take=of_edge(edge)))
            lab.run(fence.forget_network(edge.network))
        undo()

    return far, end


def _own(place: Place) -> tuple[str, ...]:
    return (f"{place.four}/32", f"{place.six}/128")


def _to(lab: Lab, far: Place, to: str, marker: bytes, port: int = 9) -> bytes:
    its = far.space.run("ip", "-br", "link", "show", "wg0").split()[2]
    src = far.six if ":" in to else far.four
    return p.frame(mac_of(lab, TUNNEL), its, p.ethertype(to), p.ip(src, to, p.UDP, p.udp(src, to, 9, port, marker)))


def _register_edges(six: bool) -> None:
    def pick(four: str, other: str) -> str:
        return other if six else four

    def edge_to_what_it_is_not_allowed(lab: Lab) -> Case:
        me, flat = a(lab), lab.places["flat-web"]
        far, undo = _edge(lab, _own(me))
        evil, honest = _from_there(lab, far, flat, EVIL, six), _from_there(lab, far, me, HONEST, six)
        return Case(far.space, [evil], [eth(flat)], [honest], eth(me), device="wg0", undo=undo)

    def published_port_of_an_edge_peer(lab: Lab) -> Case:
        """No flow to an edge peer is opened, by no port of the host's."""
        out, flat = lab.places["outside"], lab.places["flat-web"]
        far, undo = _edge(lab, _own(a(lab)))
        publish(lab, far)

        def end() -> None:
            unpublish(lab)
            undo()

        evil = [sent_from_outside(lab, pick(LAN4, LAN6), PUBLISHED, EVIL, sport=989)]
        honest = [sent_from_outside(lab, pick(flat.four, flat.six), 9, HONEST)]
        return Case(out.space, evil, [Ear(far.space, "wg0")], honest, eth(flat), undo=end)

    def member_keeps_its_source_by_a_node_port(lab: Lab) -> Case:
        """Whatever kube-proxy masquerades: the other node's fence goes by the member's own address."""
        me, far = a(lab), lab.places["remote-red"]
        undo = _behind(lab)
        publish(lab, far)
        masquerade = "type nat hook postrouting priority srcnat; oifname != eth0 masquerade;"
        lab.host.run("nft", f"table inet zlt_kube {{ chain post {{ {masquerade} }}; }}")

        def end() -> None:
            lab.host.run("nft", "delete", "table", "inet", "zlt_kube")
            unpublish(lab)
            undo()

        src, host = pick(me.four, me.six), pick(HOST4, HOST6)
        packet = p.ip(src, host, p.UDP, p.udp(src, host, 988, PUBLISHED, HONEST))
        honest = [p.frame(GATEWAY_MAC, me.mac, p.ethertype(host), packet)]
        seen = p.packed(src) + p.packed(pick(far.four, far.six))
        return Case(me.space, [], [], honest, Ear(far.space, "wg0"), honest_needle=seen, undo=end)

    def edge_is_answered(lab: Lab) -> Case:
        """By a member of a network too, if it is allowed that; no container opens a flow to it."""
        me, flat = a(lab), lab.places["flat-web"]
        far, undo = _edge(lab, _own(me))
        src, to = pick(me.four, me.six), pick(far.four, far.six)
        answer = p.frame(GATEWAY_MAC, me.mac, p.ethertype(to), p.ip(src, to, p.UDP, p.udp(src, to, 9, 9, HONEST)))
        asked = [_from_there(lab, far, me, b"hello", six)]
        wg = Ear(far.space, "wg0")

        def before() -> None:
            send(far.space, "wg0", asked)
            send(flat.space, "eth0", [datagram(flat, gateway(far.four, far.six), EVIL, six=six)])

        return Case(me.space, [], [wg], [answer], wg, undo=undo, before=before)

    def edge_to_the_host(lab: Lab) -> Case:
        """The node's address, and of the rest of the host what it is allowed."""
        far, undo = _edge(lab, ("10.200.6.1/32", "fd00:200:0:6::1/128"))
        host = Ear(lab.host)
        evil = [_to(lab, far, pick(HOST4, HOST6), EVIL), _to(lab, far, pick(GATEWAY4, GATEWAY6), EVIL)]
        honest = [_to(lab, far, pick(NODE4, NODE6), HONEST)]
        return Case(far.space, evil, [host], honest, host, device="wg0", undo=undo)

    def edge_to_the_host_as_allowed(lab: Lab) -> Case:
        far, undo = _edge(lab, (f"{GATEWAY4}/32", f"{GATEWAY6}/128"))
        host = Ear(lab.host)
        honest = [_to(lab, far, pick(GATEWAY4, GATEWAY6), HONEST)]
        return Case(far.space, [], [host], honest, host, device="wg0", undo=undo)

    def node_is_answered_by_a_member_elsewhere(lab: Lab) -> Case:
        """At the node's address, which the host's packets take; translated back, the answer is for another address."""
        red, host = lab.places["remote-red"], Ear(lab.host)
        port, to = 3939, pick(NODE4, NODE6)
        speaker = lab.host.socket(p.raw_family(to), socket.SOCK_DGRAM)
        speaker.bind((pick(LAN4, LAN6), port))

        def before() -> None:
            speaker.sendto(b"hello", (pick(red.four, red.six), 9))

        its = red.space.run("ip", "-br", "link", "show", "wg0").split()[2]
        src = pick(red.four, red.six)
        answer = p.ip(src, to, p.UDP, p.udp(src, to, 9, port, HONEST))
        frames = [p.frame(mac_of(lab, TUNNEL), its, p.ethertype(to), answer)]
        return Case(red.space, [], [], frames, host, device="wg0", before=before, undo=speaker.close)

    def member_elsewhere_to_the_host(lab: Lab) -> Case:
        red, host = lab.places["remote-red"], Ear(lab.host)
        evil = [_to(lab, red, pick(HOST4, HOST6), EVIL), _to(lab, red, pick(GATEWAY4, GATEWAY6), EVIL)]
        return Case(red.space, evil, [host], [_to(lab, red, pick(NODE4, NODE6), HONEST)], host, device="wg0")

    def member_elsewhere_into_the_hosts_tunnels(lab: Lab) -> Case:
        """A guest is such a member too, and no other node's fence is before this one."""
        red, host, node = lab.places["remote-red"], Ear(lab.host), pick(NODE4, NODE6)
        evil = [_to(lab, red, node, EVIL, port) for port in (4789, 8472, 6081, 5555)]
        return Case(red.space, evil, [host], [_to(lab, red, node, HONEST)], host, device="wg0")

    def tunnel_to_the_outside(lab: Lab) -> Case:
        """No other node reaches the outside through this one; an edge may be allowed a part of it."""
        far, undo = _edge(lab, (f"{OUTSIDE4}/32", f"{OUTSIDE6}/128"))
        red, out = lab.places["remote-red"], eth(lab.places["outside"])
        send_evil = [_to(lab, red, pick(OUTSIDE4, OUTSIDE6), EVIL)]
        honest = [_to(lab, far, pick(OUTSIDE4, OUTSIDE6), HONEST)]
        return Case(far.space, send_evil, [out], honest, out, device="wg0", undo=undo)

    for work in (
        edge_to_what_it_is_not_allowed,
        published_port_of_an_edge_peer,
        member_keeps_its_source_by_a_node_port,
        edge_is_answered,
        edge_to_the_host,
        edge_to_the_host_as_allowed,
        node_is_answered_by_a_member_elsewhere,
        member_elsewhere_to_the_host,
        member_elsewhere_into_the_hosts_tunnels,
        tunnel_to_the_outside,
    ):
        work.__name__ += "_ipv6" if six else ""
        attack(work)


_register_edges(six=False)
_register_edges(six=True)
