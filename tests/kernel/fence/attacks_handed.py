"""What the host hands on for a container, as IPVS and transparent proxies do: from the hook output, with its source.

A raw socket of the host's sends it here; tests/safety/test_ipvs.py has IPVS itself, on a kernel that has it.
"""

from __future__ import annotations

import socket

from . import packets as p
from .attacks import EVIL, HONEST, Case, a, attack, eth
from .lab import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Lab, Place

PORTS = (4101, 4102)  # of no other attack: what is sent to the outside is a flow
ELSEWHERE = {False: "203.0.113.77", True: "2001:db8:77::77"}  # an address that is of no overlay


def _hand_on(lab: Lab, *packets: bytes) -> None:
    """The host sends these, with any source address."""
    for packet in packets:
        six = packet[0] >> 4 == 6
        to = (
            socket.inet_ntop(socket.AF_INET6, packet[24:40]) if six else socket.inet_ntop(socket.AF_INET, packet[16:20])
        )
        with lab.host.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as mouth:
            try:
                mouth.sendto(packet, (to, 0))
            except PermissionError:
                continue  # dropped on the way


def _register(six: bool) -> None:
    def own(place: Place) -> str:
        return place.six if six else place.four

    def udp(src: str, dst: str, marker: bytes) -> bytes:
        return p.ip(src, dst, p.UDP, p.udp(src, dst, *PORTS, marker))

    outside = OUTSIDE6 if six else OUTSIDE4
    host = HOST6 if six else HOST4

    def known(lab: Lab, *places: Place) -> None:
        """So that nothing waits for a neighbour."""
        for place in places:
            lab.host.run("ping", "-c1", "-W2", own(place))

    def handed_on_to_a_network(lab: Lab) -> Case:
        """By whom a packet is that the host hands on decides, not that the host sends it."""
        me, fellow, flat = a(lab), lab.places["red-web2"], lab.places["flat-web"]
        known(lab, me)
        evil = [udp(own(src), own(me), EVIL) for src in (flat, lab.places["blue-web"], lab.places["remote-blue"])]
        honest = udp(own(fellow), own(me), HONEST)
        return Case(me.space, [], [eth(me)], [], eth(me), before=lambda: _hand_on(lab, *evil, honest))

    def handed_on_from_elsewhere(lab: Lab) -> Case:
        """A member elsewhere leaves the overlay by its own node alone; one of this node leaves here."""
        me, far, out = a(lab), lab.places["remote-red"], eth(lab.places["outside"])
        known(lab, lab.places["outside"])
        packets = [udp(own(far), outside, EVIL), udp(own(me), outside, HONEST)]
        return Case(me.space, [], [out], [], out, before=lambda: _hand_on(lab, *packets))

    def handed_on_by_another_address(lab: Lab) -> Case:
        """IPVS's direct routing: the virtual address stays in the packet, the way is a member's."""
        me, fellow, flat, to = a(lab), lab.places["red-web2"], lab.places["flat-web"], ELSEWHERE[six]
        known(lab, me)
        device = lab.way_in(me.name)
        lab.host.ip(f"route add {to} dev {device}", f"neigh replace {to} lladdr {me.mac} dev {device} nud permanent")
        packets = [udp(own(flat), to, EVIL), udp(own(fellow), own(me), HONEST)]

        def undo() -> None:
            lab.host.ip(f"neigh del {to} dev {device}", f"route del {to} dev {device}")

        return Case(me.space, [], [eth(me)], [], eth(me), before=lambda: _hand_on(lab, *packets), undo=undo)

    def handed_on_error_of_no_flow(lab: Lab) -> Case:
        """An ICMP error that is about nothing that was sent."""
        me, out = a(lab), eth(lab.places["outside"])
        known(lab, lab.places["outside"])
        about = p.ip(outside, own(me), p.UDP, p.udp(outside, own(me), 4001, 4002, EVIL))  # no flow that there was
        error = p.icmp6(own(me), outside, 1, 4, bytes(4) + about) if six else p.icmp(3, 3, bytes(4) + about)
        packets = [p.ip(own(me), outside, p.ICMP6 if six else p.ICMP, error), udp(own(me), outside, HONEST)]
        return Case(me.space, [], [out], [], out, before=lambda: _hand_on(lab, *packets))

    def handed_on_in_a_tunnel(lab: Lab) -> Case:
        """IPVS's tunnels: the source is inside, and the packet is the host's."""
        me, flat = a(lab), lab.places["flat-web"]
        known(lab, me)
        inner = [
            (4, p.ip4(flat.four, me.four, p.UDP, p.udp(flat.four, me.four, 9, 9, EVIL))),
            (41, p.ip6(flat.six, me.six, p.UDP, p.udp(flat.six, me.six, 9, 9, EVIL))),
        ]
        packets = [p.ip(host, own(me), protocol, packet) for protocol, packet in inner]
        packets.append(udp(host, own(me), HONEST))
        return Case(me.space, [], [eth(me)], [], eth(me), before=lambda: _hand_on(lab, *packets))

    for work in (
        handed_on_to_a_network,
        handed_on_from_elsewhere,
        handed_on_by_another_address,
        handed_on_error_of_no_flow,
        handed_on_in_a_tunnel,
    ):
        work.__name__ += "_ipv6" if six else ""
        attack(work)


_register(six=False)
_register(six=True)
