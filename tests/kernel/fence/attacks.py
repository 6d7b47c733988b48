"""Attacks from inside a container, with raw sockets: each with honest traffic of the same sender as its control.

A case says who sends which frames, who must not get them, and how they would be known there. The control is sent after
the attack on the same way, so when it has arrived the attack would have too.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import packets as p
from .lab import NODE4, OUTSIDE4, OUTSIDE6, Lab, Place
from .spaces import Space

EVIL, HONEST = b"zlt-evil", b"zlt-honest"
PATIENCE, SETTLE = 10.0, 0.04
PORT = 5353
GATEWAY_MAC = "02:42:00:00:00:05"
GATEWAY4, GATEWAY6 = "10.200.5.1", "fd00:200:0:5::1"


@dataclass(frozen=True)
class Ear:
    """Where to listen: at a device (every frame that comes in), or, without one, behind the stack's filters."""

    space: Space
    device: str = ""


@dataclass
class Case:
    """One attack. `needle` is what the victim must not get, `honest_needle` what the control brings."""

    sender: Space
    frames: list[bytes]
    victims: list[Ear]
    control: list[bytes]
    heard_at: Ear
    needle: bytes = EVIL
    honest_needle: bytes = HONEST
    device: str = "eth0"
    harm: Callable[[], str] | None = None  # a look at the effect, beside the frames
    undo: Callable[[], object] | None = None
    before: Callable[[], object] | None = None  # done with the ears open, before the frames are sent
    honest: Space | None = None  # who sends the control, if not the attacker


_GROUPS = "broadcast, multicast and discovery of a routed container end at the host (docs/attach.md)"
_FLOODS = "there is no bridge that floods a frame for an unknown MAC"
_MACS = "the host alone hears a routed container's MAC; its identity is its link with its addresses"
OF_BRIDGES = {
    "a_members_unicast_is_not_flooded_to_others": _FLOODS,
    "overhearing_unknown_unicast": _FLOODS,
    "the_node_speaks_to_unknown_ports": _FLOODS + "; the matrix has the row from the node to an unknown port",
    "right_address_wrong_mac": _MACS,
    "mac_flood": _MACS,
    "tags_and_unknown_ethertypes": "the host's stack strips a priority tag, and judges the packet by its address",
    "another_container_as_a_router": "no frame of a routed container reaches another container",
    "port_whose_network_was_lost": "it takes an element of the table bridge away; test_damage_is_mended has inet's",
    **dict.fromkeys(
        (
            *("address_probe_arrives", "arp_announcement_arrives", "arp_probe_arrives", "broadcast_arrives"),
            *("directed_broadcast_arrives", "group_frames_to_another_network", "honest_discovery_arrives"),
            *("ipv6_multicast_arrives", "link_local_source_arrives", "multicast_arrives"),
            *("multicast_report_of_none_arrives", "reports_of_solicited_node_groups"),
            *("queries_for_groups_stay_in_the_network", "listed_neighbours_find_each_other"),
            "listed_neighbours_find_each_other_ipv6",
        ),
        _GROUPS,
    ),
}
"""The attacks that there are on a bridge alone, each with the reason."""
ATTACKS: dict[str, Callable[[Lab], Case]] = {}
CONTAINERS = bytes.fromhex("02c00000")  # their MACs begin with it
STACK = (1, 2, 4, 6, 17, 47)


def attack(work: Callable[[Lab], Case]) -> Callable[[Lab], Case]:
    """Register a case under its function's name."""
    ATTACKS[work.__name__] = work
    return work


def run(lab: Lab, name: str) -> list[str]:
    """Run one attack; what went wrong, a line each."""
    case = ATTACKS[name](lab)
    try:
        return list(_run(case))
    finally:
        if case.undo:
            case.undo()


def _run(case: Case) -> Iterator[str]:
    with listening([*case.victims, case.heard_at]) as hear:
        if case.before:
            case.before()
        send(case.sender, case.device, case.frames)
        send(case.honest or case.sender, "eth0" if case.honest else case.device, case.control)
        deadline = time.monotonic() + PATIENCE
        while not any(case.honest_needle in data for data in hear(case.heard_at)) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(SETTLE)
        if not any(case.honest_needle in data for data in hear(case.heard_at)):
            yield "the control did not arrive"
        for victim in case.victims:
            if any(case.needle in data for data in hear(victim)):
                yield f"it arrived at {victim.space.name} {victim.device or '(stack)'}"
    if case.harm and (said := case.harm()):
        yield said


def send(space: Space, device: str, frames: list[bytes]) -> None:
    """Put frames on a device, as they are; from a container without a bridge, those for another one to the host."""
    with space.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.bind((device, 0))
        for frame in frames:
            mouth.send(by_the_host(space, frame))


def by_the_host(space: Space, frame: bytes) -> bytes:
    """The frame with the host end's MAC in place of another container's, if the sender is on no bridge: the host is
    the only one who hears it there."""
    return p.mac(space.gate) + frame[6:] if space.gate and frame.startswith(CONTAINERS) else frame


@contextlib.contextmanager
def listening(ears: list[Ear]) -> Iterator[Callable[[Ear], list[bytes]]]:
    """What each ear has heard so far; frames a device sends out are not heard there."""
    heard: dict[tuple[int, str], list[bytes]] = {}
    selector = selectors.DefaultSelector()
    for ear in {(id(e.space), e.device): e for e in ears}.values():
        for made in _sockets(ear):
            selector.register(made, selectors.EVENT_READ, (id(ear.space), ear.device))

    def hear(ear: Ear) -> list[bytes]:
        for key, _ in selector.select(0):
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, sender = key.fileobj.recvfrom(65536)  # type: ignore[union-attr]
                    if not (key.data[1] and sender[2] == socket.PACKET_OUTGOING):
                        heard.setdefault(key.data, []).append(data)
        return heard.get((id(ear.space), ear.device), [])

    try:
        yield hear
    finally:
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        selector.close()


def _sockets(ear: Ear) -> list[socket.socket]:
    if ear.device:
        made = ear.space.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        made.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE: nothing is lost between two reads
        made.bind((ear.device, 3))
        return [made]
    four = [ear.space.socket(socket.AF_INET, socket.SOCK_RAW, n) for n in STACK]
    return four + [ear.space.socket(socket.AF_INET6, socket.SOCK_RAW, n) for n in (58, 6, 17, 4, 47)]


# --- the cast -------------------------------------------------------------------------------------------------------


def eth(place: Place) -> Ear:
    """A container's interface."""
    return Ear(place.space, "eth0")


def a(lab: Lab) -> Place:
    """The attacker: a member of red on the bridge web."""
    return lab.places["red-web"]


def b(lab: Lab) -> Place:
    """A fellow member on the same bridge."""
    return lab.places["red-web2"]


def x(lab: Lab) -> Place:
    """A member of another network on the same bridge."""
    return lab.places["blue-web"]


def datagram(
    src: Place,
    dst: Place | tuple[str, str, str],
    marker: bytes,
    *,
    source: str = "",
    mac: str = "",
    six: bool = False,
    sport: int = PORT,
) -> bytes:
    """A UDP frame. `dst` may be (MAC, IPv4, IPv6); `source` and `mac` are lies."""
    to_mac, to4, to6 = (dst.mac, dst.four, dst.six) if isinstance(dst, Place) else dst
    to, of = (to6, source or src.six) if six else (to4, source or src.four)
    packet = p.ip(of, to, p.UDP, p.udp(of, to, sport, PORT, marker))
    return p.frame(to_mac, mac or src.mac, p.ethertype(to), packet)


def to_neighbour(lab: Lab, *frames: bytes, needle: bytes = EVIL, **more: object) -> Case:
    """Frames for the fellow member; the control is honest UDP to it."""
    honest = [datagram(a(lab), b(lab), HONEST), datagram(a(lab), b(lab), HONEST, six=True)]
    return Case(a(lab).space, list(frames), [eth(b(lab))], honest, eth(b(lab)), needle, **more)  # type: ignore[arg-type]


def to_other(lab: Lab, *frames: bytes, needle: bytes = EVIL, **more: object) -> Case:
    """Frames for the other network's member; the control is honest UDP to the fellow member."""
    honest = [datagram(a(lab), b(lab), HONEST)]
    return Case(a(lab).space, list(frames), [eth(x(lab))], honest, eth(b(lab)), needle, **more)  # type: ignore[arg-type]


def to_host(lab: Lab, *frames: bytes, needle: bytes = EVIL, **more: object) -> Case:
    """Frames for the host's stack; the control is honest UDP to the node address."""
    honest = [datagram(a(lab), (GATEWAY_MAC, NODE4, ""), HONEST)]
    host = Ear(lab.host)
    return Case(a(lab).space, list(frames), [host], honest, host, needle, **more)  # type: ignore[arg-type]


def gateway(four: str = GATEWAY4, six: str = GATEWAY6) -> tuple[str, str, str]:
    """Something behind the gateway's MAC."""
    return (GATEWAY_MAC, four, six)


# --- who it is: to a fellow member ----------------------------------------------------------------------------------


@attack
def forged_ipv4_source(lab: Lab) -> Case:
    return to_neighbour(
        lab,
        *(
            datagram(a(lab), b(lab), EVIL, source=s)
            for s in ("10.200.5.60", x(lab).four, GATEWAY4, OUTSIDE4, "0.0.0.0")
        ),
    )


@attack
def forged_ipv6_source(lab: Lab) -> Case:
    lies = ("fd00:200:0:5::60", x(lab).six, GATEWAY6, OUTSIDE6, p.link_local(x(lab).mac), "::")
    return to_neighbour(lab, *(datagram(a(lab), b(lab), EVIL, source=s, six=True) for s in lies))


@attack
def right_address_wrong_mac(lab: Lab) -> Case:
    frames = [datagram(a(lab), b(lab), EVIL, mac="02:00:00:00:00:99", six=six) for six in (False, True)]
    return to_neighbour(lab, *frames)


@attack
def forged_source_in_fragments(lab: Lab) -> Case:
    """Tiny first, later ones, overlapping ones: every piece is judged by its own header."""
    me, it = a(lab), b(lab)
    body = p.udp("10.200.5.60", it.four, PORT, PORT, EVIL * 4)
    cuts = [(0x2000, body[:8]), (0x0001, body[8:]), (0x0001, body[8:]), (0x0000, EVIL)]
    return to_neighbour(
        lab,
        *(p.frame(it.mac, me.mac, p.IPV4, p.ip4("10.200.5.60", it.four, p.UDP, d, frag=f)) for f, d in cuts),
        *(p.frame(it.mac, me.mac, p.IPV6, f) for f in p.fragments6(x(lab).six, it.six, p.UDP, EVIL * 4, 8)),
    )


def _fdb(lab: Lab, place: Place, allowed: int = 1) -> str:
    """Whether the bridge believes a MAC to be behind the port that is not its own."""
    assert place.port is not None
    shown = lab.host.run("bridge", "fdb", "show", "dev", place.port.name, check=False)
    learned = {line.split()[0] for line in shown.splitlines() if "permanent" not in line}
    return f"the bridge learned {sorted(learned - {place.mac})[:3]}" if learned - {place.mac} else ""


@attack
def mac_flood(lab: Lab) -> Case:
    frames = [datagram(a(lab), b(lab), EVIL, mac=f"02:aa:00:00:00:{i:02x}") for i in range(40)]
    return to_neighbour(lab, *frames, harm=lambda: _fdb(lab, a(lab)))


@attack
def theft_of_macs_by_any_frame(lab: Lab) -> Case:
    """Of the gateway, and of the other network's member."""
    frames = [
        p.frame(to, thief, kind, EVIL * 8)
        for thief in (GATEWAY_MAC, x(lab).mac)
        for to in (p.BROADCAST, b(lab).mac)
        for kind in (p.IPV4, p.ARP, 0x88B5)
    ]
    frames += [p.frame("33:33:00:00:00:16", GATEWAY_MAC, p.IPV6, report_of_none(a(lab), EVIL))]
    return to_neighbour(lab, *frames, harm=lambda: _fdb(lab, a(lab)))


def multicast_report(source: str, *groups: str, marker: bytes = b"") -> bytes:
    """An MLDv2 report of these groups."""
    records = b"".join(struct.pack("!BBH", 4, 0, 0) + p.packed(group) for group in groups) + marker
    router_alert = bytes([58, 0, 5, 2, 0, 0, 1, 0])
    body = struct.pack("!HH", 0, len(groups)) + records
    return p.ip6(source, "ff02::16", 0, router_alert + p.icmp6(source, "ff02::16", 143, 0, body), 1)


def report_of_none(place: Place, marker: bytes = b"") -> bytes:
    """A multicast report as an interface sends it before it has an address."""
    return multicast_report("::", p.solicited_node(place.six)[0], marker=marker)


@attack
def theft_of_macs_by_bridge_control_frames(lab: Lab) -> Case:
    """01:80:c2:00:00:0x never comes to prerouting, and is learned from all the same."""
    frames = [
        p.frame(f"01:80:c2:00:00:{last:02x}", thief, kind, EVIL * 8)
        for thief in (GATEWAY_MAC, x(lab).mac)
        for last in range(16)
        for kind in (0x88CC, 0x0026)
    ]
    return to_neighbour(lab, *frames, harm=lambda: _fdb(lab, a(lab)))


@attack
def theft_of_macs_by_an_unknown_port(lab: Lab) -> Case:
    """A port with a name like ours that was never admitted."""
    thief = lab.places["unknown-web"]
    frames = [p.frame(f"01:80:c2:00:00:{n:02x}", GATEWAY_MAC, 0x88CC, EVIL * 8) for n in range(16)]
    frames += [p.frame(p.BROADCAST, GATEWAY_MAC, p.ARP, EVIL * 8)]
    return from_unknown(lab, "unknown-web", frames, [eth(b(lab))], harm=lambda: _fdb(lab, thief))


def from_unknown(lab: Lab, name: str, frames: list[bytes], victims: list[Ear], **more: object) -> Case:
    """A port that was not admitted may send nothing, so the control is a member's."""
    honest = [datagram(a(lab), b(lab), HONEST)]
    case = Case(lab.places[name].space, frames, victims, honest, eth(b(lab)), **more)  # type: ignore[arg-type]
    case.honest = a(lab).space
    return case
