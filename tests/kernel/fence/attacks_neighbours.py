"""Attacks on who a neighbour is: ARP, neighbour discovery, routers, redirects, DHCP, tags; to a fellow member."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

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
    b,
    datagram,
    eth,
    gateway,
    multicast_report,
    to_neighbour,
    x,
)
from .lab import NODE4, ROUTED, Lab, Place

ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
WRONG_MAC = "02:66:66:66:66:66"


@attack
def arp_poisoning_of_a_neighbour(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    lies = [
        (me.mac, GATEWAY4),
        (me.mac, x(lab).four),
        (WRONG_MAC, me.four),
        (me.mac, "0.0.0.0"),
        (WRONG_MAC, "0.0.0.0"),
    ]
    frames = [
        p.frame(to, me.mac, p.ARP, p.arp(operation, lie, (it.mac, target)) + EVIL)
        for operation in (1, 2)
        for lie in lies
        if (operation, lie) != (1, (me.mac, "0.0.0.0"))  # an honest probe (RFC 5227)
        for to, target in ((it.mac, it.four), (p.BROADCAST, lie[1]))
    ]
    return to_neighbour(lab, *frames)


@attack
def arp_of_other_kinds(lab: Lab) -> Case:
    """Reverse and inverse ARP, other hardware, other sizes."""
    me, it = a(lab), b(lab)
    honest = p.arp(1, (me.mac, me.four), (it.mac, it.four))
    frames = [honest[:6] + struct.pack("!H", operation) + honest[8:] for operation in (3, 4, 8, 9)]
    frames += [
        struct.pack("!H", 6) + honest[2:],
        honest[:4] + b"\x08\x04" + honest[6:],
        honest[:2] + b"\x86\xdd" + honest[4:],
    ]
    return to_neighbour(lab, *(p.frame(it.mac, me.mac, p.ARP, f + EVIL) for f in frames))


@attack
def arp_probe_arrives(lab: Lab) -> Case:
    """The other way round: an honest ARP probe and an announcement do get there."""
    me, it = a(lab), b(lab)
    case = to_neighbour(lab)
    case.control = [p.frame(p.BROADCAST, me.mac, p.ARP, p.arp(1, (me.mac, "0.0.0.0"), (p.BROADCAST, it.four)) + HONEST)]
    return case


@attack
def arp_announcement_arrives(lab: Lab) -> Case:
    me = a(lab)
    case = to_neighbour(lab)
    case.control = [p.frame(p.BROADCAST, me.mac, p.ARP, p.arp(2, (me.mac, me.four), (p.BROADCAST, me.four)) + HONEST)]
    return case


@attack
def arp_poisoning_of_the_gateway(lab: Lab) -> Case:
    """The node must not learn that another's address is here."""
    me = a(lab)
    victims = [b(lab), x(lab)]
    frames = [
        p.frame(to, me.mac, p.ARP, p.arp(operation, (me.mac, v.four), (GATEWAY_MAC, GATEWAY4)) + EVIL)
        for v in victims
        for operation in (1, 2)
        for to in (GATEWAY_MAC, p.BROADCAST)
    ]
    bridge = Ear(lab.host, lab.way_in(me.name))
    honest = [p.frame(GATEWAY_MAC, me.mac, p.ARP, p.arp(1, (me.mac, me.four), (GATEWAY_MAC, GATEWAY4)) + HONEST)]
    if not ROUTED:
        return Case(me.space, frames, [bridge], honest, bridge)

    def harm() -> str:
        """The host hears the frames on the attacker's own link, and must not believe them."""
        shown = [lab.host.run("ip", "neigh", "show", v.four, check=False) for v in victims]
        return "".join(f"the node believes {line.strip()}" for line in shown if me.mac in line)

    lab.host.sysctl(**{f"net__ipv4__conf__{lab.way_in(me.name)}__rp_filter": 1})  # as the daemon sets it
    undo = partial(lab.host.sysctl, **{f"net__ipv4__conf__{lab.way_in(me.name)}__rp_filter": 0})
    return Case(me.space, frames, [], honest, bridge, harm=harm, undo=undo)


def _neighbour_is(place: Place, address: str) -> str:
    shown = place.space.run("ip", "neigh", "show", address, check=False).split()
    return shown[shown.index("lladdr") + 1] if "lladdr" in shown else ""


def _not_taught(lab: Lab, lie: str) -> Callable[[], str]:
    """The fellow member does not believe that the gateway, or the attacker itself, is at MAC `lie`."""

    def look() -> str:
        taught = [address for address in (GATEWAY6, a(lab).six) if _neighbour_is(b(lab), address) == lie]
        return f"the neighbour believes that {taught} is at {lie}" if taught else ""

    return look


def _prime(lab: Lab) -> None:
    """The fellow member has entries to be poisoned."""
    shown = ("ip", "-batch", "-")
    text = "".join(
        f"neigh replace {address} lladdr {mac} dev eth0 nud stale\n"
        for address, mac in ((GATEWAY6, GATEWAY_MAC), (a(lab).six, a(lab).mac))
    )
    b(lab).space.run(*shown, stdin=text)


def _nd(lab: Lab, bodies: list[tuple[str, bytes]], wrap: Callable[[str, str, bytes], list[bytes]]) -> list[bytes]:
    me, it = a(lab), b(lab)
    return [p.frame(it.mac, me.mac, p.IPV6, packet) for src, body in bodies for packet in wrap(src, it.six, body)]


def _whole(src: str, dst: str, body: bytes) -> list[bytes]:
    return [p.ip6(src, dst, 58, body, 255)]


def _lies(lab: Lab) -> list[tuple[str, bytes]]:
    """Advertisements and solicitations that would teach something false, each with its source."""
    me, it = a(lab), b(lab)
    own = me.six
    return [
        (own, p.advert(own, it.six, GATEWAY6, me.mac)),
        (own, p.advert(own, it.six, GATEWAY6, WRONG_MAC)),
        (own, p.advert(own, it.six, own, WRONG_MAC)),
        (own, p.solicit(own, it.six, it.six, WRONG_MAC)),
    ]


def _poison(lab: Lab, wrap: Callable[[str, str, bytes], list[bytes]], needle: bytes) -> Case:
    """Lies wrapped in some way: neither `needle` nor the effect may show."""
    _prime(lab)
    frames = _nd(lab, _lies(lab), wrap)
    harm = _not_taught(lab, WRONG_MAC), _not_taught(lab, a(lab).mac)

    def look() -> str:
        gateway_at = _neighbour_is(b(lab), GATEWAY6)
        return harm[0]() or ("the gateway's MAC was taken over" if gateway_at != GATEWAY_MAC else "")

    case = to_neighbour(lab, *frames, needle=needle, harm=look)
    if ROUTED:  # what was forwarded has lost a hop, and a receiver takes discovery with a hop limit of 255 alone
        case.victims = []
    return case


@attack
def nd_poisoning_whole(lab: Lab) -> Case:
    return _poison(lab, _whole, p.mac(WRONG_MAC))


@attack
def nd_poisoning_with_more_options(lab: Lab) -> Case:
    """The lie as a second option, behind a nonce or the truth."""

    def more(src: str, dst: str, body: bytes) -> list[bytes]:
        kind, target = body[0], body[8:24]
        option = bytes([1 if kind == 135 else 2, 1])
        first = [b"\x0e\x01" + bytes(6), option + p.mac(a(lab).mac)]
        lie = option + p.mac(WRONG_MAC)
        return [p.ip6(src, dst, 58, p.icmp6(src, dst, kind, body[1], body[4:8] + target + f + lie), 255) for f in first]

    return _poison(lab, more, p.mac(WRONG_MAC))


@attack
def nd_poisoning_behind_extension_headers(lab: Lab) -> Case:
    def behind(src: str, dst: str, body: bytes) -> list[bytes]:
        pad = b"\x01\x04" + bytes(4)  # PadN
        return [p.ip6(src, dst, header, bytes([58, 0]) + pad + body, 255) for header in (0, 60)] + [
            p.ip6(src, dst, 0, bytes([60, 0]) + pad + bytes([58, 0]) + pad + body, 255)
        ]

    return _poison(lab, behind, p.mac(WRONG_MAC))


@attack
def nd_poisoning_in_fragments(lab: Lab) -> Case:
    """In two fragments, in an atomic one, and with the header that would show it hidden in the second."""

    def cut(src: str, dst: str, body: bytes) -> list[bytes]:
        found = [f for at in (8, 16, 24) for f in p.fragments6(src, dst, 58, body, at)]
        found.append(p.ip6(src, dst, 44, struct.pack("!BBHI", 58, 0, 0, 5) + body, 255))
        options = bytes([58, 0, 1, 4, 0, 0, 0, 0])
        found += p.fragments6(src, dst, 60, options + body, 8)
        found += p.fragments6(src, dst, 60, options + body, 16)
        found += p.fragments6(src, dst, 60, options + body, 8, claim=p.UDP)
        found += p.fragments6(src, dst, 0, options + body, 8, claim=p.UDP)
        return found

    return _poison(lab, cut, b"no frame is looked for")


@attack
def nd_poisoning_of_the_gateway(lab: Lab) -> Case:
    me, victim = a(lab), x(lab)
    bodies = [p.advert(me.six, GATEWAY6, victim.six, me.mac), p.solicit(victim.six, GATEWAY6, GATEWAY6, me.mac)]
    frames = [
        p.frame(GATEWAY_MAC, me.mac, p.IPV6, p.ip6(src, GATEWAY6, 58, body, 255)) + EVIL  # as padding
        for src, body in zip((me.six, victim.six), bodies, strict=True)
    ]

    def harm() -> str:
        shown = lab.host.run("ip", "neigh", "show", victim.six, check=False)
        return f"the node believes {shown.strip()}" if me.mac in shown else ""

    bridge = Ear(lab.host, lab.way_in(me.name))
    lab.host.run("ip", "-6", "neigh", "flush", "dev", bridge.device, check=False)
    honest = [datagram(me, gateway(NODE4), HONEST)]
    return Case(me.space, frames, [] if ROUTED else [bridge], honest, bridge, harm=harm)


@attack
def forged_address_probe(lab: Lab) -> Case:
    """Duplicate address detection for another's address would make its owner give it up."""
    me, it = a(lab), b(lab)
    group, mac = p.solicited_node(it.six)
    frames = [p.frame(mac, me.mac, p.IPV6, p.ip6("::", group, 58, p.solicit("::", group, it.six, None), 255))]
    return to_neighbour(lab, *frames, needle=p.packed("::") + p.packed(group))


@attack
def honest_discovery_arrives(lab: Lab) -> Case:
    """The other way round: with the neighbours forgotten, both families find each other again."""
    for place in (a(lab), b(lab)):
        place.space.run("ip", "neigh", "flush", "dev", "eth0", check=False)

    def harm() -> str:
        for target in (b(lab).six, b(lab).four, p.link_local(b(lab).mac) + "%eth0"):
            if "1 received" not in a(lab).space.run("ping", "-c1", "-W2", target, check=False):
                return f"{target} was not found"
        return ""

    return to_neighbour(lab, harm=harm)


@attack
def address_probe_arrives(lab: Lab) -> Case:
    me = a(lab)
    group, mac = p.solicited_node(me.six)
    body = p.solicit("::", group, me.six, None)
    case = to_neighbour(lab)
    case.control = [p.frame(mac, me.mac, p.IPV6, p.ip6("::", group, 58, body, 255)), *case.control]
    case.honest_needle = p.packed("::") + p.packed(group)
    return case


@attack
def advertisement_without_option_arrives(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    case = to_neighbour(lab)
    case.control = [
        p.frame(it.mac, me.mac, p.IPV6, p.ip6(me.six, it.six, 58, p.advert(me.six, it.six, me.six, None), 255))
    ]
    case.honest_needle = p.packed(me.six) + p.packed(it.six) + b"\x88"
    return case


@attack
def link_local_source_arrives(lab: Lab) -> Case:
    """To a fellow member's other address: it is not routed, even if the bridge hands frames to ip6tables."""
    me, it = a(lab), b(lab)
    own = p.link_local(me.mac)
    case = to_neighbour(lab)
    case.control = [p.frame(it.mac, me.mac, p.IPV6, p.ip6(own, it.six, p.UDP, p.udp(own, it.six, 9, 9, HONEST)))]
    return case


@attack
def solicitation_without_option_arrives(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    case = to_neighbour(lab)
    body = p.solicit(me.six, it.six, it.six, None)
    case.control = [p.frame(it.mac, me.mac, p.IPV6, p.ip6(me.six, it.six, 58, body, 255))]
    case.honest_needle = p.packed(me.six) + p.packed(it.six) + b"\x87"
    return case


@attack
def multicast_report_of_none_arrives(lab: Lab) -> Case:
    me = a(lab)
    case = to_neighbour(lab)
    case.control = [p.frame("33:33:00:00:00:16", me.mac, p.IPV6, multicast_report("::", "ff02::fb"))]
    case.honest_needle = p.packed("::") + p.packed("ff02::16")
    return case


@attack
def reports_of_solicited_node_groups(lab: Lab) -> Case:
    """Such a report is for bridges that keep group membership. One that has another group as well arrives."""
    me = a(lab)
    own = p.link_local(me.mac)
    nodes = [p.solicited_node(f"fe80::{tail:x}")[0] for tail in (1, 2, 3)]
    reports = [multicast_report(source, *nodes[:n], marker=EVIL) for source in ("::", own) for n in (1, 2, 3)]
    mixed = [
        multicast_report(own, *groups) for groups in (["ff02::fb"], [nodes[0], "ff02::fb"], ["ff0e::7", *nodes[:2]])
    ]
    to = "33:33:00:00:00:16"
    case = to_neighbour(lab, *(p.frame(to, me.mac, p.IPV6, report) for report in reports))
    case.control = [p.frame(to, me.mac, p.IPV6, report) for report in mixed]
    case.honest_needle = p.packed(nodes[0]) + bytes([4, 0, 0, 0]) + p.packed("ff02::fb")
    return case


@attack
def router_advertisement(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    own = p.link_local(me.mac)
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 9999, 9999, 0) + p.packed("fd00:bad::")
    body = p.icmp6(own, ALL_NODES, 134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix)
    pad = bytes([58, 0, 1, 4, 0, 0, 0, 0])
    packets = [p.ip6(own, ALL_NODES, 58, body, 255), p.ip6(own, ALL_NODES, 0, pad + body, 255)]
    packets += [p.ip6(own, ALL_NODES, 60, pad + body, 255), *p.fragments6(own, ALL_NODES, 58, body, 16)]
    packets += p.fragments6(own, ALL_NODES, 60, pad + body, 8)
    frames = [p.frame(to, me.mac, p.IPV6, packet) for packet in packets for to in (ALL_NODES_MAC, it.mac)]
    it.space.sysctl(net__ipv6__conf__eth0__accept_ra=2, net__ipv6__conf__eth0__autoconf=1)

    def harm() -> str:
        shown = it.space.run("ip", "-6", "addr", "show", "dev", "eth0") + it.space.run("ip", "-6", "route", "show")
        return "the neighbour took the router's word" if "fd00:bad" in shown or own in shown else ""

    def undo() -> None:
        it.space.sysctl(net__ipv6__conf__eth0__accept_ra=0)
        it.space.run("ip", "-6", "addr", "flush", "to", "fd00:bad::/32", check=False)
        it.space.run("ip", "-6", "route", "flush", "proto", "ra", check=False)

    # Pieces of an advertisement that cannot be put together may arrive; one that can, may not: the effect tells.
    return to_neighbour(lab, *frames, needle=b"\x86\x00" + body[2:4], harm=harm, undo=undo)


@attack
def redirects(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    own = p.link_local(me.mac)
    six = p.icmp6(own, it.six, 137, 0, bytes(4) + p.packed(own) + p.packed("2001:db8:66::1") + EVIL)
    quoted = p.ip4(it.four, "203.0.113.1", p.UDP, p.udp(it.four, "203.0.113.1", 9, 9, b""))
    four = p.icmp(5, 1, p.packed(me.four) + quoted + EVIL)
    router = p.icmp(9, 0, struct.pack("!BBH", 1, 2, 1800) + p.packed(me.four) + bytes(4) + EVIL)
    return to_neighbour(
        lab,
        p.frame(it.mac, me.mac, p.IPV6, p.ip6(own, it.six, 58, six, 255)),
        p.frame(it.mac, me.mac, p.IPV6, p.ip6(own, it.six, 60, bytes([58, 0, 1, 4, 0, 0, 0, 0]) + six, 255)),
        p.frame(it.mac, me.mac, p.IPV4, p.ip4(me.four, it.four, p.ICMP, four)),
        p.frame(it.mac, me.mac, p.IPV4, p.ip4(me.four, it.four, p.ICMP, router)),
    )


@attack
def dhcp_server(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    own, its = p.link_local(me.mac), p.link_local(it.mac)
    return to_neighbour(
        lab,
        *(
            p.frame(mac, me.mac, p.IPV4, p.ip4(me.four, to, p.UDP, p.udp(me.four, to, 67, 68, EVIL)))
            for mac, to in ((p.BROADCAST, "255.255.255.255"), (it.mac, it.four))
        ),
        p.frame(it.mac, me.mac, p.IPV6, p.ip6(own, its, p.UDP, p.udp(own, its, 547, 546, EVIL))),
    )


@attack
def tags_and_unknown_ethertypes(lab: Lab) -> Case:
    """A priority tag (VLAN 0) is stripped by the receiver: the bridge forwards it as it is."""
    me, it = a(lab), b(lab)
    packet = p.ip4(me.four, it.four, p.UDP, p.udp(me.four, it.four, 9, 9, EVIL))
    six = p.ip6(me.six, it.six, p.UDP, p.udp(me.six, it.six, 9, 9, EVIL))
    tags = [((p.VLAN, 0),), ((p.VLAN, 5),), ((p.QINQ, 0),), ((p.QINQ, 5), (p.VLAN, 0)), ((p.VLAN, 0), (p.VLAN, 0))]
    frames = [p.frame(it.mac, me.mac, p.IPV4, packet, t) for t in tags]
    frames += [p.frame(it.mac, me.mac, p.IPV6, six, t) for t in tags]
    frames += [
        p.frame(it.mac, me.mac, kind, EVIL * 8) for kind in (0x88B5, 0x8863, 0x8864, 0x8847, 0x88F7, 0x0026, 0x9100)
    ]
    return to_neighbour(lab, *frames)


def travelled_routes(address: str) -> list[bytes]:
    """IPv4 source routes that have come some way already: nft cannot read those, and the kernel follows them."""
    return [bytes([kind, 11, 8]) + p.packed("203.0.113.1") + p.packed(address) for kind in (131, 137)]


@attack
def source_routes(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    routes = [bytes([kind, 7, 4]) + p.packed(x(lab).four) for kind in (131, 137)]
    routes += travelled_routes(x(lab).four)
    routing = bytes([p.UDP, 2, 0, 1, 0, 0, 0, 0]) + p.packed(x(lab).six)
    segments = bytes([p.UDP, 2, 4, 1, 0, 0, 0, 0]) + p.packed(x(lab).six)
    return to_neighbour(
        lab,
        *(
            p.frame(
                it.mac, me.mac, p.IPV4, p.ip4(me.four, it.four, p.UDP, p.udp(me.four, it.four, 9, 9, EVIL), options=r)
            )
            for r in routes
        ),
        *(p.frame(it.mac, me.mac, p.IPV6, p.ip6(me.six, it.six, 43, r + EVIL)) for r in (routing, segments)),
    )


@attack
def large_datagrams_arrive(lab: Lab) -> Case:
    """The other way round: fragments of honest pings and datagrams get there, in both families."""

    def harm() -> str:
        for target in (b(lab).four, b(lab).six):
            if "1 received" not in a(lab).space.run("ping", "-c1", "-W2", "-s4000", target, check=False):
                return f"a large ping to {target} was lost"
        return ""

    case = to_neighbour(lab, harm=harm)
    case.victims = [eth(b(lab))]
    return case


def _options_arrive(name: str, options: bytes) -> None:
    def work(lab: Lab) -> Case:
        """The other way round: options that route nothing."""
        me, it = a(lab), b(lab)
        body = p.udp(me.four, it.four, 9, 9, HONEST)
        case = to_neighbour(lab)
        case.control = [p.frame(it.mac, me.mac, p.IPV4, p.ip4(me.four, it.four, p.UDP, body, options=options))]
        return case

    work.__name__ = name
    attack(work)


_options_arrive("router_alert_arrives", bytes([148, 4, 0, 0]))
_options_arrive("record_route_arrives", bytes([1, 7, 39, 4]) + bytes(36))
