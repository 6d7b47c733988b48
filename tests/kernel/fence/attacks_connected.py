"""A network of the host's own in the overlay's range: the host keeps it, and members are no closer to it."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import replace

from cni.daemon.fence import ruleset as fence
from tests.kernel.fence import remotes

from . import packets as p
from .attacks import EVIL, GATEWAY_MAC, HONEST, PATIENCE, Case, Ear, a, attack, datagram, eth, gateway, listening, send
from .attacks_edge import PUBLISHED, mac_of, publish, unpublish
from .attacks_routed import open_flow
from .lab import LAN4, LAN6, OUTSIDE4, OUTSIDE6, Lab

SPORT = 997  # of no other attack: the flow is translated anew
CONNECTED = ("10.200.77.0/24", "fd00:200:0:77::/64")
HOSTS, NEIGHBOURS, SAME_AS_A_MEMBER = (
    ("10.200.77.1", "fd00:200:0:77::1"),
    ("10.200.77.9", "fd00:200:0:77::9"),
    ("10.200.77.50", "fd00:200:0:77::50"),
)


def connect(lab: Lab) -> Callable[[], None]:
    """The host and the outside share a network in the range, where red has a member elsewhere; what ends that."""
    out = lab.places["outside"].space
    for space, device, addresses in ((lab.host, "up0", HOSTS), (out, "eth0", NEIGHBOURS)):
        space.address(device, f"{addresses[0]}/24", f"{addresses[1]}/64")
    lab.run(fence.base(replace(lab.node, connected=CONNECTED)))
    lab.run(remotes.add_remote("red", SAME_AS_A_MEMBER))

    def end() -> None:
        lab.run(remotes.remove_remote("red", SAME_AS_A_MEMBER))
        lab.run(fence.base(lab.node))
        for space, device, addresses in ((lab.host, "up0", HOSTS), (out, "eth0", NEIGHBOURS)):
            space.ip(f"addr del {addresses[0]}/24 dev {device}", f"addr del {addresses[1]}/64 dev {device}")

    return end


def _frame(lab: Lab, src: str, dst: str, marker: bytes, port: int = 9, sport: int = 9) -> bytes:
    its = lab.places["outside"].space.run("ip", "-br", "link", "show", "eth0").split()[2]
    return p.frame(
        mac_of(lab, "up0"), its, p.ethertype(dst), p.ip(src, dst, p.UDP, p.udp(src, dst, sport, port, marker))
    )


def _register(six: bool) -> None:
    host, neighbour, twin = HOSTS[six], NEIGHBOURS[six], SAME_AS_A_MEMBER[six]

    def connected_network_to_a_member(lab: Lab) -> Case:
        """Also from the address of a fellow member; the host itself is reached."""
        me, out = a(lab), lab.places["outside"].space
        to = me.six if six else me.four
        undo = connect(lab)
        evil = [_frame(lab, src, to, EVIL) for src in (neighbour, twin)]
        return Case(out, evil, [eth(me)], [_frame(lab, neighbour, host, HONEST)], Ear(lab.host), undo=undo)

    def connected_network_by_a_published_port(lab: Lab) -> Case:
        """A published port is reached from there, and the same port of the member is not."""
        me, out = a(lab), lab.places["outside"].space
        end = connect(lab)
        publish(lab, me)
        evil = _frame(lab, neighbour, me.six if six else me.four, EVIL, PUBLISHED)
        honest = _frame(lab, neighbour, host, HONEST, PUBLISHED)

        def undo() -> None:
            unpublish(lab)
            end()

        return Case(out, [evil], [eth(me)], [honest], eth(me), undo=undo)

    def published_ports_reply_to_a_connected_network(lab: Lab) -> Case:
        """The member answers there on the flow that was opened to it, and opens none."""
        me, out = a(lab), lab.places["outside"].space
        end = connect(lab)
        publish(lab, me)
        own, asked = me.six if six else me.four, b"zlt-asked"

        def opens() -> None:
            with listening([eth(me)]) as hear:
                send(out, "eth0", [_frame(lab, neighbour, host, asked, PUBLISHED, sport=SPORT)])
                until = time.monotonic() + PATIENCE
                while not any(asked in data for data in hear(eth(me))) and time.monotonic() < until:
                    time.sleep(0.005)

        def from_me(sport: int, marker: bytes) -> bytes:
            packet = p.ip(own, neighbour, p.UDP, p.udp(own, neighbour, sport, SPORT, marker))
            return p.frame(GATEWAY_MAC, me.mac, p.ethertype(own), packet)

        def undo() -> None:
            unpublish(lab)
            end()

        ear = Ear(out, "eth0")
        case = Case(me.space, [from_me(81, EVIL)], [ear], [from_me(80, HONEST)], ear, undo=undo)
        case.before = opens
        return case

    def member_to_a_connected_network(lab: Lab) -> Case:
        """To a container the addresses are the overlay's; what the host routes to its network arrives."""
        me, out = a(lab), lab.places["outside"].space
        undo = connect(lab)
        evil = datagram(me, gateway(NEIGHBOURS[0], NEIGHBOURS[1]), EVIL, six=six)
        honest = _frame(lab, OUTSIDE6 if six else OUTSIDE4, neighbour, HONEST)
        ear = Ear(out, "eth0")
        case = Case(me.space, [evil], [ear], [honest], ear, undo=undo)
        case.honest = out
        return case

    def router_on_a_connected_network_tells_a_member(lab: Lab) -> Case:
        """Of a path's MTU, about the member's own flow to the outside."""
        me, out = a(lab), lab.places["outside"].space
        seen, port = open_flow(lab, me, six)
        end = connect(lab)
        to, target = (OUTSIDE6, LAN6) if six else (OUTSIDE4, LAN4)
        if six:
            quoted = p.ip6(seen, to, p.UDP, p.udp(seen, to, port, 4444, HONEST))
            body = p.icmp6(neighbour, target, 2, 0, struct.pack("!I", 1300) + quoted)
            packet = p.ip6(neighbour, target, 58, body)
        else:
            quoted = p.ip4(seen, to, p.UDP, p.udp(seen, to, port, 4444, HONEST))
            packet = p.ip4(neighbour, target, p.ICMP, p.icmp(3, 4, struct.pack("!HH", 0, 1300) + quoted))
        its = out.run("ip", "-br", "link", "show", "eth0").split()[2]
        honest = p.frame(mac_of(lab, "up0"), its, p.ethertype(to), packet)
        return Case(out, [], [], [honest], eth(me), undo=end)

    def member_on_a_connected_network_is_masqueraded(lab: Lab) -> Case:
        """The host has joined a network in which the member's subnet lies: the member stays until it is released."""
        me = a(lab)
        subnet = "fd00:200:0:5::/64" if six else "10.200.5.0/26"
        lab.run(fence.base(replace(lab.node, connected=(subnet,))))
        to = OUTSIDE6 if six else OUTSIDE4
        packet = p.ip(me.six if six else me.four, to, p.UDP, p.udp(me.six if six else me.four, to, 6101, 9, HONEST))
        seen = p.packed(LAN6 if six else LAN4) + p.packed(to) + struct.pack("!HH", 6101, 9)
        out = eth(lab.places["outside"])
        case = Case(me.space, [], [], [p.frame(GATEWAY_MAC, me.mac, p.ethertype(to), packet)], out, honest_needle=seen)
        case.undo = lambda: lab.run(fence.base(lab.node))
        return case

    for work in (
        router_on_a_connected_network_tells_a_member,
        member_on_a_connected_network_is_masqueraded,
        connected_network_to_a_member,
        connected_network_by_a_published_port,
        published_ports_reply_to_a_connected_network,
        member_to_a_connected_network,
    ):
        work.__name__ += "_ipv6" if six else ""
        attack(work)


_register(six=False)
_register(six=True)
