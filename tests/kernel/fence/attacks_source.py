"""The host's own packets into a tunnel: another node believes no source of the host but its overlay address."""

from __future__ import annotations

import socket

from . import packets as p
from .attacks import Case, Ear, a, attack
from .attacks_connected import HOSTS, connect
from .lab import HOST4, HOST6, NODE4, NODE6, OUTSIDE4, OUTSIDE6, Lab, Place

PORTS = (4711, 4712)


def _speak_from(place: Place, source: str, to: str) -> None:
    """A datagram from a socket that is bound to the address `source`."""
    with place.space.socket(p.raw_family(to), socket.SOCK_DGRAM) as speaker:
        speaker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        speaker.bind((source, PORTS[0]))
        speaker.sendto(b"zlt-source", (to, PORTS[1]))


def _register(six: bool) -> None:
    node, other, connected = (NODE6, HOST6, HOSTS[1]) if six else (NODE4, HOST4, HOSTS[0])
    outside = OUTSIDE6 if six else OUTSIDE4

    def case(lab: Lab, speaker: str, source: str, seen: str, unseen: str) -> Case:
        """What `speaker` sends arrives with the source `seen`, not `unseen`."""
        far = lab.places["remote-flat"]
        to, ear = far.six if six else far.four, Ear(far.space, "wg0")
        needle, honest = (p.packed(address) + p.packed(to) for address in (unseen, seen))

        def speak() -> None:
            _speak_from(lab.places[speaker], source, to)

        return Case(a(lab).space, [], [ear], [], ear, needle, honest, before=speak)

    def source_of_the_hosts_other_address(lab: Lab) -> Case:
        return case(lab, "host", other, seen=node, unseen=other)

    def source_on_a_connected_network(lab: Lab) -> Case:
        """Its addresses may be those of containers elsewhere."""
        undo = connect(lab)
        made = case(lab, "host", connected, seen=node, unseen=connected)
        made.undo = undo
        return made

    def source_of_another_machine_stays(lab: Lab) -> Case:
        return case(lab, "outside", outside, seen=outside, unseen=node)

    for work in (
        source_of_the_hosts_other_address,
        source_on_a_connected_network,
        source_of_another_machine_stays,
    ):
        work.__name__ += "_ipv6" if six else ""
        attack(work)


_register(six=False)
_register(six=True)
