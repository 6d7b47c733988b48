"""Attacks on where a packet may go: other networks, the host, loopback, the outside, tunnels; by frame and by route."""

from __future__ import annotations

import contextlib
import socket
import struct

from . import packets as p
from .attacks import (
    EVIL,
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    HONEST,
    PORT,
    Case,
    Ear,
    a,
    attack,
    b,
    datagram,
    eth,
    from_unknown,
    gateway,
    send,
    to_host,
    to_neighbour,
    to_other,
    x,
)
from .lab import HOST4, HOST6, LAN4, NODE4, NODE6, OUTSIDE4, OUTSIDE6, TUNNEL, Lab, Place


@attack
def unicast_to_another_network_on_the_bridge(lab: Lab) -> Case:
    me, it = a(lab), x(lab)
    own, its = p.link_local(me.mac), p.link_local(it.mac)
    return to_other(
        lab,
        datagram(me, it, EVIL),
        datagram(me, it, EVIL, six=True),
        p.frame(it.mac, me.mac, p.IPV6, p.ip6(own, its, p.UDP, p.udp(own, its, 9, 9, EVIL))),
        p.frame(it.mac, me.mac, p.ARP, p.arp(1, (me.mac, me.four), (it.mac, it.four)) + EVIL),
        p.frame(it.mac, me.mac, p.IPV4, p.ip4(me.four, b(lab).four, p.UDP, EVIL * 2)),
        p.frame(it.mac, me.mac, p.IPV4, p.ip4(me.four, it.four, 89, EVIL * 2)),
    )


@attack
def flat_mesh_to_a_network_on_the_bridge(lab: Lab) -> Case:
    """Those that joined none are a network like any other."""
    me, it = lab.places["flat-web"], x(lab)
    frames = [datagram(me, it, EVIL, six=six) for six in (False, True)]
    frames.append(p.frame(p.BROADCAST, me.mac, p.ARP, p.arp(1, (me.mac, me.four), (p.BROADCAST, it.four)) + EVIL))
    honest = [datagram(me, lab.places["flat-web2"], HONEST)]
    return Case(me.space, frames, [eth(it), eth(a(lab))], honest, eth(lab.places["flat-web2"]))


@attack
def port_whose_network_was_lost(lab: Lab) -> Case:
    """A known port without a network: its element was deleted by hand."""
    me = lab.places["flat-web2"]
    assert me.port is not None
    key = f'element bridge zlayer_cni net {{ "{me.port.name}"'
    lab.nft.run(f"delete {key} }}")
    frames = [datagram(me, it, EVIL) for it in (lab.places["flat-web"], x(lab))]
    case = Case(me.space, frames, [eth(lab.places["flat-web"]), eth(x(lab))], [], eth(b(lab)))
    case.honest, case.control = a(lab).space, [datagram(a(lab), b(lab), HONEST)]
    case.undo = lambda: lab.nft.run(f"add {key} : goto net_flat }}")
    return case


@attack
def group_frames_to_another_network(lab: Lab) -> Case:
    """Broadcast and multicast reach fellow members only; ARP and discovery are group frames too."""
    me = a(lab)
    case = to_other(lab)
    for marker in (EVIL, HONEST):
        frames = [
            datagram(me, (p.BROADCAST, "255.255.255.255", ""), marker),
            datagram(me, (p.BROADCAST, "10.200.5.63", ""), marker),
            datagram(me, ("01:00:5e:00:00:fb", "224.0.0.251", ""), marker),
            datagram(me, ("33:33:00:00:00:01", "", "ff02::1"), marker, six=True),
            p.frame(p.BROADCAST, me.mac, p.ARP, p.arp(1, (me.mac, me.four), (p.BROADCAST, x(lab).four)) + marker),
        ]
        if marker == EVIL:
            case.frames = frames
        else:
            case.control = frames
    fellow = eth(b(lab))
    case.harm = None
    case.heard_at = fellow
    return case


def _arrives(name: str, index: int) -> None:
    def work(lab: Lab) -> Case:
        case = group_frames_to_another_network(lab)
        case.control = [case.control[index]]
        return case

    work.__name__ = name
    attack(work)


for _name, _index in (
    ("broadcast_arrives", 0),
    ("directed_broadcast_arrives", 1),
    ("multicast_arrives", 2),
    ("ipv6_multicast_arrives", 3),
):
    _arrives(_name, _index)


@attack
def another_network_by_the_gateway(lab: Lab) -> Case:
    """Routed instead of bridged, to the same bridge and to others."""
    me = a(lab)
    others = [x(lab), *(lab.places[n] for n in ("blue-db", "blue-sh", "green-sh", "flat-web", "flat-db"))]
    frames = [datagram(me, gateway(o.four, o.six), EVIL, six=six) for o in others for six in (False, True)]
    honest = [datagram(me, gateway(lab.places["red-db"].four, ""), HONEST)]
    return Case(me.space, frames, [eth(o) for o in others], honest, eth(lab.places["red-db"]))


@attack
def another_container_as_a_router(lab: Lab) -> Case:
    me, router = a(lab), b(lab)
    router.space.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
    ends = [x(lab), lab.places["outside"], lab.places["flat-db"]]
    frames = [datagram(me, (router.mac, o.four, o.six), EVIL, six=six) for o in ends for six in (False, True)]
    case = to_neighbour(lab, *frames)
    case.victims = [eth(o) for o in ends]

    def undo() -> None:
        router.space.sysctl(net__ipv4__ip_forward=0, net__ipv6__conf__all__forwarding=0)
        # What still waits there for a neighbour would come back as an error that quotes it, seconds later.
        router.space.run("ip", "neigh", "flush", "dev", "eth0", "nud", "incomplete", check=False)

    case.undo = undo
    return case


@attack
def overhearing_unknown_unicast(lab: Lab) -> Case:
    """What the bridge floods because it does not know the MAC: from a fellow member, and from the host."""
    me, it = a(lab), b(lab)
    stranger = ("02:77:77:77:77:77", it.four, it.six)
    case = to_neighbour(lab, datagram(me, stranger, EVIL), datagram(me, stranger, EVIL, six=True))
    case.victims = [eth(it), eth(x(lab)), eth(lab.places["flat-web"])]
    packet = p.ip4(GATEWAY4, it.four, p.UDP, p.udp(GATEWAY4, it.four, 9, 9, EVIL))
    case.before = lambda: send(lab.host, lab.bridges["web"].name, [p.frame(stranger[0], GATEWAY_MAC, p.IPV4, packet)])
    return case


@attack
def a_members_unicast_is_not_flooded_to_others(lab: Lab) -> Case:
    """The host speaks to a member whose MAC the bridge has forgotten; the neighbours hear nothing."""
    it = b(lab)
    case = Case(lab.host, [], [eth(x(lab)), eth(lab.places["flat-web"]), eth(a(lab))], [], eth(it))
    packet = p.ip4(GATEWAY4, it.four, p.UDP, p.udp(GATEWAY4, it.four, 9, 9, EVIL + HONEST))
    lab.host.run("bridge", "fdb", "flush", "dev", lab.bridges["web"].name, "nopermanent")
    case.device, case.frames = lab.bridges["web"].name, [p.frame(it.mac, GATEWAY_MAC, p.IPV4, packet)]
    return case


@attack
def host_addresses(lab: Lab) -> Case:
    """Its own gateway, other gateways, the host's addresses, by the gateway's MAC and by broadcast."""
    me = a(lab)
    frames = []
    for mac in (GATEWAY_MAC, p.BROADCAST):
        for four in (GATEWAY4, "10.200.6.1", "10.200.7.1", HOST4, LAN4):
            for protocol, body in (
                (p.UDP, p.udp(me.four, four, PORT, PORT, EVIL)),
                (p.TCP, p.tcp(me.four, four, PORT, 22) + EVIL),
                (p.TCP, p.tcp(me.four, four, PORT, 22, flags=16) + EVIL),
                (p.ICMP, p.icmp(8, 0, bytes(4) + EVIL)),
            ):
                frames.append(p.frame(mac, me.mac, p.IPV4, p.ip4(me.four, four, protocol, body)))
        for six in (GATEWAY6, "fd00:200:0:6::1", HOST6, p.link_local(GATEWAY_MAC)):
            for src in (me.six, p.link_local(me.mac)):
                frames.append(p.frame(mac, me.mac, p.IPV6, p.ip6(src, six, p.UDP, p.udp(src, six, PORT, PORT, EVIL))))
                echo = p.icmp6(src, six, 128, 0, bytes(4) + EVIL)
                frames.append(p.frame(mac, me.mac, p.IPV6, p.ip6(src, six, 58, echo)))
    return to_host(lab, *frames)


@attack
def host_services_by_group_address(lab: Lab) -> Case:
    me = a(lab)
    return to_host(
        lab,
        datagram(me, (p.BROADCAST, "255.255.255.255", ""), EVIL),
        datagram(me, (p.BROADCAST, "10.200.5.63", ""), EVIL),
        datagram(me, ("01:00:5e:00:00:01", "224.0.0.1", ""), EVIL),
        datagram(me, ("33:33:00:00:00:01", "", "ff02::1"), EVIL, six=True),
    )


@attack
def node_address_arrives(lab: Lab) -> Case:
    """The other way round, IPv6."""
    me = a(lab)
    case = to_host(lab)
    case.control = [datagram(me, gateway("", NODE6), HONEST, six=True)]
    return case


def _loopback(lab: Lab, value: int) -> None:
    for device in ("all", lab.way_in("red-web"), lab.way_in("flat-web"), TUNNEL):
        lab.host.sysctl(**{f"net__ipv4__conf__{device}__route_localnet": value})


@attack
def loopback_of_the_host(lab: Lab) -> Case:
    """By a member and by a container of the flat mesh, with route_localnet on."""
    _loopback(lab, 1)
    frames = [datagram(a(lab), gateway(four), EVIL) for four in ("127.0.0.1", "127.0.0.53", "127.255.255.254")]
    case = to_host(lab, *frames)
    case.undo = lambda: _loopback(lab, 0)
    return case


@attack
def loopback_of_the_host_from_the_flat_mesh(lab: Lab) -> Case:
    _loopback(lab, 1)
    me = lab.places["flat-web"]
    host = Ear(lab.host)
    frames = [datagram(me, gateway(four), EVIL) for four in ("127.0.0.1", "127.0.0.53")]
    honest = [datagram(me, gateway(HOST4), HONEST)]
    return Case(me.space, frames, [host], honest, host, undo=lambda: _loopback(lab, 0))


@attack
def loopback_of_the_host_by_translation(lab: Lab) -> Case:
    """A DNAT rule of another program leads to 127.0.0.1."""
    _loopback(lab, 1)
    lab.host.run(
        "nft",
        "-f",
        "-",
        stdin=f"""
        table ip zlt_dnat {{
          chain pre {{
            type nat hook prerouting priority -100;
            ip daddr {{ {HOST4}, {NODE4} }} udp dport 7777 dnat to 127.0.0.1:7777
          }}
        }}
        """,
    )
    me = lab.places["flat-web"]
    host = Ear(lab.host)
    frames = []
    for four in (HOST4, NODE4):
        packet = p.ip4(me.four, four, p.UDP, p.udp(me.four, four, 9, 7777, EVIL))
        frames.append(p.frame(GATEWAY_MAC, me.mac, p.IPV4, packet))

    def undo() -> None:
        _loopback(lab, 0)
        lab.host.run("nft", "delete", "table", "ip", "zlt_dnat")

    return Case(me.space, frames, [host], [datagram(me, gateway(HOST4), HONEST)], host, undo=undo)


@attack
def loopback_of_the_host_from_another_node(lab: Lab) -> Case:
    _loopback(lab, 1)
    far = lab.places["remote-flat"]
    mac = _mac_of(lab)
    host = Ear(lab.host)

    def packet(to: str, marker: bytes) -> bytes:
        return p.frame(mac, _mac_there(lab), p.IPV4, p.ip4(far.four, to, p.UDP, p.udp(far.four, to, 9, 9, marker)))

    return Case(
        far.space,
        [packet("127.0.0.1", EVIL)],
        [host],
        [packet(NODE4, HONEST)],
        host,
        device="wg0",
        undo=lambda: _loopback(lab, 0),
    )


def _mac_of(lab: Lab) -> str:
    return lab.host.run("ip", "-br", "link", "show", TUNNEL).split()[2]


def _mac_there(lab: Lab) -> str:
    return lab.places["remote-flat"].space.run("ip", "-br", "link", "show", "wg0").split()[2]


@attack
def unknown_address_from_a_tunnel(lab: Lab) -> Case:
    far = lab.places["remote-flat"]
    victims = [lab.places[name] for name in ("flat-web", "red-web", "flat-db")]

    def packets(src: str, marker: bytes) -> list[bytes]:
        return [
            p.frame(_mac_of(lab), _mac_there(lab), p.IPV4, p.ip4(src, v.four, p.UDP, p.udp(src, v.four, 9, 9, marker)))
            for v in victims
        ]

    return Case(
        far.space,
        packets("10.200.40.50", EVIL),
        [eth(v) for v in victims],
        packets(far.four, HONEST),
        eth(lab.places["flat-web"]),
        device="wg0",
    )


@attack
def overlay_source_from_the_uplink(lab: Lab) -> Case:
    out = lab.places["outside"]
    mac = lab.host.run("ip", "-br", "link", "show", "up0").split()[2]
    its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]
    flat = lab.places["flat-web"]
    frames = []
    for target4, target6 in ((flat.four, flat.six), (a(lab).four, a(lab).six), (HOST4, HOST6)):
        for source4, source6 in ((lab.places["flat-db"].four, lab.places["flat-db"].six), (b(lab).four, b(lab).six)):
            for s, t in ((source4, target4), (source6, target6)):
                frames.append(p.frame(mac, its, p.ethertype(t), p.ip(s, t, p.UDP, p.udp(s, t, 9, 9, EVIL))))
    honest = [p.frame(mac, its, p.IPV4, p.ip4(OUTSIDE4, flat.four, p.UDP, p.udp(OUTSIDE4, flat.four, 9, 9, HONEST)))]
    return Case(out.space, frames, [eth(flat), eth(a(lab)), Ear(lab.host)], honest, eth(flat))


@attack
def tunnels_to_the_node(lab: Lab) -> Case:
    me, it = a(lab), x(lab)
    inner = p.ip4(me.four, it.four, p.UDP, p.udp(me.four, it.four, 9, 9, EVIL))
    frames = [
        p.frame(GATEWAY_MAC, me.mac, p.IPV4, p.ip4(me.four, NODE4, protocol, body))
        for protocol, body in (
            (4, inner),
            (41, p.ip6(me.six, it.six, p.UDP, EVIL)),
            (47, struct.pack("!HH", 0, p.IPV4) + inner),
        )
    ]
    vxlan = struct.pack("!II", 8 << 24, 1 << 8) + p.frame(it.mac, me.mac, p.IPV4, inner)
    for port in (1701, 2152, 2268, 4789, 5555, 6081, 6118, 8472):
        packet = p.ip4(me.four, NODE4, p.UDP, p.udp(me.four, NODE4, 9999, port, vxlan))
        frames.append(p.frame(GATEWAY_MAC, me.mac, p.IPV4, packet))
    return to_host(lab, *frames)


@attack
def added_address_of_another_member(lab: Lab) -> Case:
    """Given to the interface in earnest, so that the kernel itself speaks with it."""
    me, other = a(lab), x(lab)
    me.space.ip(f"addr add {other.four}/26 dev eth0", f"addr add {other.six}/64 dev eth0 nodad")
    targets = [b(lab), lab.places["blue-db"], lab.places["outside"]]

    def speak() -> None:
        for target in targets:
            for source, to in ((other.four, target.four), (other.six, target.six)):
                with me.space.socket(p.raw_family(to), socket.SOCK_DGRAM) as speaker, contextlib.suppress(OSError):
                    speaker.bind((source, 0))
                    speaker.sendto(EVIL, (to, 9))

    case = to_neighbour(lab)
    case.victims = [eth(t) for t in targets]
    case.before = speak
    case.frames = [
        datagram(me, (b(lab).mac, b(lab).four, b(lab).six), EVIL, source=other.four),
        datagram(me, gateway(lab.places["blue-db"].four), EVIL, source=other.four),
        datagram(me, gateway(OUTSIDE4), EVIL, source=other.four),
        datagram(me, gateway("", OUTSIDE6), EVIL, source=other.six, six=True),
    ]
    case.undo = lambda: me.space.ip(f"addr del {other.four}/26 dev eth0", f"addr del {other.six}/64 dev eth0")
    return case


@attack
def error_about_anothers_flow_to_the_outside(lab: Lab) -> Case:
    """A crafted ICMP error goes with the flow it quotes: it would end the other member's connection."""
    me, it = a(lab), x(lab)
    frames, honest = [], []
    for six in (False, True):
        open_flow(lab, it, six)
        open_flow(lab, me, six)
        frames.append(_error(lab, me, it, six, EVIL))
        honest.append(_error(lab, me, me, six, HONEST))
    out = eth(lab.places["outside"])
    return Case(me.space, frames, [out], honest, out)


def open_flow(lab: Lab, place: Place, six: bool) -> tuple[str, int]:
    """Who the outside sees: a UDP flow from the container to the outside that the node tracks, answered once."""
    to = OUTSIDE6 if six else OUTSIDE4
    family = p.raw_family(to)
    with (
        lab.places["outside"].space.socket(family, socket.SOCK_DGRAM) as far,
        place.space.socket(family, socket.SOCK_DGRAM) as near,
    ):
        far.bind((to, 4444))
        far.setblocking(True)
        far.settimeout(20)
        near.bind((place.six if six else place.four, 3333))
        near.sendto(b"hello", (to, 4444))
        _, who = far.recvfrom(100)
        far.sendto(b"hello yourself", who)
    return str(who[0]), int(who[1])


def _error(lab: Lab, sender: Place, owner: Place, six: bool, marker: bytes) -> bytes:
    """An error to the outside about the packet that `owner`'s flow had from there."""
    if six:
        quoted = p.ip6(OUTSIDE6, owner.six, p.UDP, p.udp(OUTSIDE6, owner.six, 4444, 3333, marker))
        body = p.icmp6(sender.six, OUTSIDE6, 1, 4, bytes(4) + quoted)
        return p.frame(GATEWAY_MAC, sender.mac, p.IPV6, p.ip6(sender.six, OUTSIDE6, 58, body))
    quoted = p.ip4(OUTSIDE4, owner.four, p.UDP, p.udp(OUTSIDE4, owner.four, 4444, 3333, marker))
    body = p.icmp(3, 3, bytes(4) + quoted)
    return p.frame(GATEWAY_MAC, sender.mac, p.IPV4, p.ip4(sender.four, OUTSIDE4, p.ICMP, body))


@attack
def error_about_the_nodes_flow_with_another(lab: Lab) -> Case:
    me, it = a(lab), x(lab)
    frames, honest = [], []
    for six, gate in ((False, GATEWAY4), (True, GATEWAY6)):
        for place, marker in ((it, EVIL), (me, HONEST)):
            to = place.six if six else place.four
            with (
                lab.host.socket(p.raw_family(to), socket.SOCK_DGRAM) as speaker,
                place.space.socket(p.raw_family(to), socket.SOCK_DGRAM) as answerer,
            ):
                answerer.bind((to, 4445))
                speaker.bind((gate, 3334))
                speaker.sendto(b"probe", (to, 4445))
            if six:
                quoted = p.ip6(gate, to, p.UDP, p.udp(gate, to, 3334, 4445, marker))
                packet = p.ip6(me.six, gate, 58, p.icmp6(me.six, gate, 1, 4, bytes(4) + quoted))
            else:
                quoted = p.ip4(gate, to, p.UDP, p.udp(gate, to, 3334, 4445, marker))
                packet = p.ip4(me.four, gate, p.ICMP, p.icmp(3, 3, bytes(4) + quoted))
            (frames if marker == EVIL else honest).append(p.frame(GATEWAY_MAC, me.mac, p.ethertype(to), packet))
    host = Ear(lab.host)
    return Case(me.space, frames, [host], honest, host)


@attack
def crafted_segments_from_outside(lab: Lab) -> Case:
    """ACK, SYN-ACK and RST that belong to no flow, and ICMP errors about none."""
    out, me = lab.places["outside"], a(lab)
    mac = lab.host.run("ip", "-br", "link", "show", "up0").split()[2]
    its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]
    frames = []
    for src, dst in ((OUTSIDE4, me.four), (OUTSIDE6, me.six)):
        segments = [p.tcp(src, dst, 80, 5000, flags) + EVIL for flags in (16, 18, 4, 17, 24, 0)]
        frames += [p.frame(mac, its, p.ethertype(dst), p.ip(src, dst, p.TCP, segment)) for segment in segments]
    quoted = p.ip4(me.four, OUTSIDE4, p.TCP, p.tcp(me.four, OUTSIDE4, 5001, 80) + EVIL)
    frames.append(p.frame(mac, its, p.IPV4, p.ip4(OUTSIDE4, me.four, p.ICMP, p.icmp(3, 1, bytes(4) + quoted))))
    flat = lab.places["flat-web"]
    honest = [p.frame(mac, its, p.IPV4, p.ip4(OUTSIDE4, flat.four, p.UDP, p.udp(OUTSIDE4, flat.four, 9, 9, HONEST)))]
    return Case(out.space, frames, [eth(me)], honest, eth(flat))


@attack
def error_about_its_own_flow_arrives(lab: Lab) -> Case:
    """The other way round: path MTU discovery, from outside to a member."""
    out, me = lab.places["outside"], a(lab)
    mac = lab.host.run("ip", "-br", "link", "show", "up0").split()[2]
    its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]
    seen, port = open_flow(lab, me, False)
    quoted = p.ip4(seen, OUTSIDE4, p.UDP, p.udp(seen, OUTSIDE4, port, 4444, HONEST))
    body = p.icmp(3, 4, struct.pack("!HH", 0, 1300) + quoted)
    honest = [p.frame(mac, its, p.IPV4, p.ip4("192.0.2.200", LAN4, p.ICMP, body))]
    return Case(out.space, [], [], honest, eth(me))


@attack
def unknown_port_posing_as_a_member(lab: Lab) -> Case:
    """A port with a foreign name, put on our bridge: it speaks as a container of the flat mesh."""
    flat = lab.places["flat-sh"]
    mac, four = "02:42:00:00:00:08", "10.200.8.1"
    frames = [
        datagram(flat, (to, target, ""), EVIL)
        for to in (mac, p.BROADCAST)
        for target in (four, HOST4, NODE4, OUTSIDE4, lab.places["flat-web"].four)
    ]
    frames += [datagram(flat, (mac, "", six), EVIL, six=True) for six in (HOST6, OUTSIDE6)]
    frames += [datagram(flat, lab.places["red-sh"], EVIL), datagram(flat, (p.BROADCAST, "255.255.255.255", ""), EVIL)]
    victims = [Ear(lab.host), *(eth(lab.places[n]) for n in ("outside", "flat-web", "red-sh", "green-sh"))]
    # To a group address the host cannot tell such a port from the member it poses as (no `meta ibrname` here).
    frames.pop()
    return from_unknown(lab, "unknown-sh", frames, victims)


def _between_unknown(name: str, speaker: str, hearer: str) -> None:
    def work(lab: Lab) -> Case:
        me, it = lab.places[speaker], lab.places[hearer]
        frames = [datagram(me, it, EVIL), datagram(me, (p.BROADCAST, "255.255.255.255", ""), EVIL)]
        return from_unknown(lab, speaker, frames, [eth(it)])

    work.__name__ = name
    attack(work)


_between_unknown("unknown_port_of_our_name_to_a_foreign_one", "unknown-sh2", "unknown-sh")
_between_unknown("unknown_port_of_a_foreign_name_to_one_of_ours", "unknown-sh", "unknown-sh2")


@attack
def members_speak_to_unknown_ports(lab: Lab) -> Case:
    """They hear neither what is for them nor what members shout."""
    me, victim = lab.places["red-sh"], lab.places["unknown-sh"]
    frames = [datagram(me, (p.BROADCAST, "255.255.255.255", ""), EVIL), datagram(me, victim, EVIL)]
    honest = [datagram(me, ("02:42:00:00:00:08", NODE4, ""), HONEST)]
    return Case(me.space, frames, [eth(victim)], honest, Ear(lab.host))


@attack
def the_node_speaks_to_unknown_ports(lab: Lab) -> Case:
    """Closed to the node as well, until the port is admitted."""
    frames = []
    for name, mac, four in (("unknown-sh", "02:42:00:00:00:08", "10.200.8.1"), ("unknown-web", GATEWAY_MAC, GATEWAY4)):
        it = lab.places[name]
        frames.append(p.frame(it.mac, mac, p.IPV4, p.ip4(four, it.four, p.UDP, p.udp(four, it.four, 9, 9, EVIL))))
    it = b(lab)
    honest = p.frame(
        it.mac, GATEWAY_MAC, p.IPV4, p.ip4(GATEWAY4, it.four, p.UDP, p.udp(GATEWAY4, it.four, 9, 9, HONEST))
    )
    web, sh = lab.bridges["web"].name, lab.bridges["sh"].name
    case = Case(lab.host, frames[1:], [eth(lab.places[n]) for n in ("unknown-sh", "unknown-web")], [honest], eth(it))
    case.device = web
    case.before = lambda: send(lab.host, sh, frames[:1])
    return case


@attack
def two_interfaces_in_one_container(lab: Lab) -> Case:
    """A second attachment elsewhere does not lend its address to the first."""
    me = a(lab)
    other = lab.places["green-sh"]
    frames = [
        datagram(me, gateway(t.four, t.six), EVIL, source=other.six if six else other.four, six=six)
        for t in (lab.places["red-db"], lab.places["outside"], other)
        for six in (False, True)
    ]
    honest = [datagram(me, gateway(lab.places["red-db"].four), HONEST)]
    victims = [eth(lab.places[n]) for n in ("red-db", "outside", "green-sh")]
    return Case(me.space, frames, victims, honest, eth(lab.places["red-db"]))
