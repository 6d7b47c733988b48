"""What `isolation.reach` and `isolation.from` open, and what they do not."""

from __future__ import annotations

import itertools
import select
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.elements import change, of_edge
from cni.daemon.fence.model import FenceEdge
from cni.openings import Opening

from . import packets as p
from .attacks import EVIL, GATEWAY_MAC, HONEST, Case, Ear, a, attack, b, eth, send, x
from .attacks_edge import FAR, mac_of
from .lab import HOST4, HOST6, OUTSIDE4, OUTSIDE6, ROUTED, TUNNEL, Lab, Place

PORT, OTHER = 53, 54
VIRTUAL4, VIRTUAL6 = "10.96.0.10", "fd00:96::10"
SO_PRIORITY_OF_THE_MARK = 0x5A430010
# What the default run tests of these; the rest takes longer than that run has.
DEFAULT = (
    *("listed_port_alone_is_reached", "listed_destination_opens_no_flow", "listed_virtual_address_is_followed"),
    *("listed_connects_on_the_same_bridge_tcp", "sender_reaches_members"),
)
_sports = itertools.count(21000)  # a flow of its own each: answers of an earlier one prove nothing


def _open(lab: Lab, reach: Iterable[Opening] = (), senders: Iterable[str] = ()) -> Callable[[], None]:
    node = replace(lab.node, far=FAR, openings=True, reach=tuple(reach), senders=tuple(senders))
    lab.run(fence.base(node))
    return lambda: lab.run(fence.base(lab.node))


def _udp(src: Place, to: str, dport: int, marker: bytes, *, sport: int = 0, mac: str = GATEWAY_MAC) -> bytes:
    own = src.six if ":" in to else src.four
    packet = p.ip(own, to, p.UDP, p.udp(own, to, sport or next(_sports), dport, marker))
    return p.frame(mac, src.mac, p.ethertype(to), packet)


def _packet(
    kind: str, src: Place, to: str, ports: tuple[int, int], marker: bytes, mac: str, answer: bool = False
) -> bytes:
    """A packet that opens a flow, or the first answer to one, by TCP, UDP or SCTP."""
    own = src.six if ":" in to else src.four
    if kind == "udp":
        body, number = p.udp(own, to, *ports, marker), p.UDP
    elif kind == "tcp":
        body, number = p.segment(own, to, *ports, marker), p.TCP
    else:
        body, number = p.sctp(*ports, 2 if answer else 1, 7 if answer else 0, marker), 132
    return p.frame(mac, src.mac, p.ethertype(to), p.ip(own, to, number, body))


def _from_far(lab: Lab, src: Place, to: str, dport: int, marker: bytes) -> bytes:
    own = src.six if ":" in to else src.four
    its = src.space.run("ip", "-br", "link", "show", "wg0").split()[2]
    packet = p.ip(own, to, p.UDP, p.udp(own, to, next(_sports), dport, marker))
    return p.frame(mac_of(lab, TUNNEL), its, p.ethertype(to), packet)


def _seen_by_inet(lab: Lab) -> bool:
    """Whether the family inet sees a frame between two containers of a service: routed, or handed to it by a bridge."""
    return ROUTED or lab.host.run("cat", "/proc/sys/net/bridge/bridge-nf-call-iptables").strip() == "1"


def _register(six: bool) -> None:
    def of(place: Place) -> str:
        return place.six if six else place.four

    def single(place: Place) -> str:
        return f"{of(place)}/{128 if six else 32}"

    def reach(place: Place) -> list[Opening]:
        return [Opening(of(place), "udp", PORT)]

    def listed_port_alone_is_reached(lab: Lab) -> Case:
        me, flat, flat2 = a(lab), lab.places["flat-db"], lab.places["flat-sh"]
        undo = _open(lab, [*reach(flat), Opening(of(flat2), "tcp", PORT)])
        evil = [_udp(me, of(flat), OTHER, EVIL), _udp(me, of(flat2), PORT, EVIL), _udp(me, of(x(lab)), PORT, EVIL)]
        victims = [eth(flat), eth(flat2), eth(x(lab))]
        return Case(me.space, evil, victims, [_udp(me, of(flat), PORT, HONEST)], eth(flat), undo=undo)

    def listed_address_is_reached_by_any_port(lab: Lab) -> Case:
        me, other, flat = a(lab), lab.places["blue-db"], lab.places["flat-db"]
        undo = _open(lab, [Opening(of(other))])
        honest = [_udp(me, of(other), OTHER, HONEST)]
        return Case(me.space, [_udp(me, of(flat), OTHER, EVIL)], [eth(flat)], honest, eth(other), undo=undo)

    def listed_destination_opens_no_flow(lab: Lab) -> Case:
        """It answers, and that is all: from its listed port too."""
        me, flat = a(lab), lab.places["flat-db"]
        undo = _open(lab, reach(flat))
        sport = next(_sports)
        asked = [_udp(me, of(flat), PORT, b"hello", sport=sport)]
        answer = [_udp(flat, of(me), sport, HONEST, sport=PORT, mac=_gateway_of(lab, flat))]
        evil = [
            _udp(flat, of(me), sport + 5000, EVIL, sport=PORT, mac=_gateway_of(lab, flat)),
            _udp(flat, of(b(lab)), sport, EVIL, sport=PORT, mac=_gateway_of(lab, flat)),
        ]
        victims = [eth(me), eth(b(lab))]
        before = lambda: send(me.space, "eth0", asked)  # noqa: E731
        return Case(flat.space, evil, victims, answer, eth(me), before=before, undo=undo)

    def on_the_same_bridge(kind: str, by_port: bool) -> Callable[[Lab], Case]:
        def work(lab: Lab) -> Case:
            """Only where the family inet sees the frame; one that claims the mark is not believed."""
            me, flat, flat2, fellow = a(lab), lab.places["flat-web"], lab.places["flat-web2"], b(lab)
            undo = _open(lab, [Opening(of(flat), kind, PORT) if by_port else Opening(of(flat))])
            direct = _seen_by_inet(lab)

            def packet(to: Place, port: int, marker: bytes) -> bytes:
                return _packet(kind, me, of(to), (next(_sports), port), marker, mac=to.mac)

            evil = [packet(flat2, PORT, EVIL), *([packet(flat, OTHER, EVIL)] if by_port else [])]
            evil += [] if direct else [packet(flat, PORT, EVIL)]
            honest = packet(flat, PORT, HONEST) if direct else packet(fellow, PORT, HONEST)

            def claim() -> None:
                with me.space.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
                    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, SO_PRIORITY_OF_THE_MARK)
                    mouth.bind(("eth0", 0))
                    for frame in evil:
                        mouth.send(frame)

            at = eth(flat if direct else fellow)
            return Case(me.space, evil, [eth(flat), eth(flat2)], [honest], at, before=claim, undo=undo)

        return work

    def answer_on_the_same_bridge(kind: str, by_port: bool) -> Callable[[Lab], Case]:
        def work(lab: Lab) -> Case:
            me, flat, flat2 = a(lab), lab.places["flat-web"], lab.places["flat-web2"]
            undo = _open(lab, [Opening(of(flat), kind, PORT) if by_port else Opening(of(flat))])
            sport, direct = next(_sports), _seen_by_inet(lab)
            asked = _packet(kind, me, of(flat), (sport, PORT), b"hello", mac=flat.mac)
            evil = [_packet(kind, flat, of(me), (PORT, sport + 5000), EVIL, mac=me.mac)]
            answer = _packet(kind, flat, of(me), (PORT, sport), HONEST if direct else EVIL, mac=me.mac, answer=True)
            honest = answer if direct else _packet(kind, flat, of(flat2), (PORT, PORT), HONEST, mac=flat2.mac)
            frames = evil if direct else [*evil, answer]
            before = lambda: send(me.space, "eth0", [asked])  # noqa: E731
            at = eth(me if direct else flat2)
            return Case(flat.space, frames, [eth(me)], [honest], at, before=before, undo=undo)

        return work

    def connects_on_the_same_bridge(kind: str, by_port: bool) -> Callable[[Lab], Case]:
        def work(lab: Lab) -> Case:
            """A real connection, whose kernels find each other first."""
            me, flat, fellow = a(lab), lab.places["flat-web"], b(lab)
            undo = _open(lab, [Opening(of(flat), kind, PORT) if by_port else Opening(of(flat))])

            def harm() -> str:
                family = p.raw_family(of(me))
                with (
                    flat.space.socket(family, socket.SOCK_STREAM) as ear,
                    me.space.socket(family, socket.SOCK_STREAM) as mouth,
                ):
                    ear.bind((of(flat), PORT))
                    ear.listen()
                    mouth.connect_ex((of(flat), PORT))
                    _, ready, _ = select.select([], [mouth], [], 1.5 if _seen_by_inet(lab) else 0.3)
                    connected = bool(ready) and not mouth.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return "" if connected is _seen_by_inet(lab) else f"connected: {connected}"

            honest = _udp(me, of(fellow), PORT, HONEST, mac=fellow.mac)
            return Case(me.space, [], [], [honest], eth(fellow), harm=harm, undo=undo)

        return work

    variants = [(make, kind) for kind in ("udp", "sctp") for make in (on_the_same_bridge, answer_on_the_same_bridge)]
    variants += [(on_the_same_bridge, "tcp"), (connects_on_the_same_bridge, "tcp")]
    for make, kind in variants:
        for by_port in (True, False) if kind == "tcp" else (True,):
            work = make(kind, by_port)
            how = kind if by_port else f"{kind}_by_any_port"
            work.__name__ = f"listed_{make.__name__}_{how}{'_ipv6' if six else ''}"
            _attack(work)
    del work  # the last loop registers what is named here

    def listed_neighbours_find_each_other(lab: Lab) -> Case:
        """ARP and discovery pass between what is listed and a member, both ways, and between no others."""
        me, flat, other = a(lab), lab.places["flat-web"], lab.places["flat-web2"]
        undo = _open(lab, reach(flat))

        def asks(place: Place, target: str) -> bool:
            place.space.run("ip", "neigh", "flush", "all")
            place.space.run("ping", "-c1", "-W0.5", target, check=False)
            found = place.space.run("ip", "neigh", "show", target)
            return "lladdr" in found

        def harm() -> str:
            pairs = ((me, flat, True), (flat, me, True), (me, other, False), (other, me, False))
            wrong = [f"{x.name} asks for {y.name}" for x, y, may in pairs if asks(x, of(y)) is not may]
            return ", ".join(wrong)

        honest = [_udp(me, of(b(lab)), PORT, HONEST, mac=b(lab).mac)]
        return Case(me.space, [], [], honest, eth(b(lab)), harm=harm, undo=undo)

    def listed_virtual_address_is_followed(lab: Lab) -> Case:
        """To its endpoint, which is not reached by its own address."""
        me, flat = a(lab), lab.places["flat-db"]
        virtual, ip = (VIRTUAL6, "ip6") if six else (VIRTUAL4, "ip")
        end = _open(lab, [Opening(virtual, "udp", PORT)])
        to = f"[{flat.six}]:5353" if six else f"{flat.four}:5353"
        hook = "type nat hook prerouting priority -100;"
        lab.host.run(
            "nft",
            f"table {ip} zlt_kube {{ chain pre {{ {hook} {ip} daddr {virtual} udp dport {PORT} dnat to {to}; }}; }}",
        )

        def undo() -> None:
            lab.host.run("nft", "delete", "table", ip, "zlt_kube")
            end()

        evil = [_udp(me, of(flat), 5353, EVIL)]
        return Case(me.space, evil, [eth(flat)], [_udp(me, virtual, PORT, HONEST)], eth(flat), undo=undo)

    def listed_host_is_reached(lab: Lab) -> Case:
        """An API server at an address of the host's."""
        me, host = a(lab), HOST6 if six else HOST4
        undo = _open(lab, [Opening(host, "udp", PORT)])
        evil = [_udp(me, host, OTHER, EVIL)]
        return Case(me.space, evil, [Ear(lab.host)], [_udp(me, host, PORT, HONEST)], Ear(lab.host), undo=undo)

    def listed_address_not_in_use(lab: Lab) -> Case:
        """Closed until a container has it."""
        me, none, flat = a(lab), lab.places["unknown-sh2"], lab.places["flat-db"]
        undo = _open(lab, [*reach(none), *reach(flat)])
        evil = [_udp(me, of(none), PORT, EVIL)]
        return Case(me.space, evil, [eth(none)], [_udp(me, of(flat), PORT, HONEST)], eth(flat), undo=undo)

    def listed_destination_from_elsewhere(lab: Lab) -> Case:
        """From a member on another node; not from outside."""
        far, flat, other, out = (lab.places[name] for name in ("remote-red", "flat-db", "blue-db", "outside"))
        undo = _open(lab, [*reach(flat), *reach(other)])
        evil = [_from_far(lab, far, of(flat), OTHER, EVIL)]
        its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]
        src = OUTSIDE6 if six else OUTSIDE4
        packet = p.ip(src, of(other), p.UDP, p.udp(src, of(other), next(_sports), PORT, EVIL))
        stranger = [p.frame(mac_of(lab, "up0"), its, p.ethertype(src), packet)]
        before = lambda: send(out.space, "eth0", stranger)  # noqa: E731
        honest = [_from_far(lab, far, of(flat), PORT, HONEST)]
        victims = [eth(flat), eth(other)]
        return Case(far.space, evil, victims, honest, eth(flat), device="wg0", before=before, undo=undo)

    def listed_destination_elsewhere(lab: Lab) -> Case:
        me, far, none = a(lab), lab.places["remote-flat"], lab.places["remote-blue"]
        undo = _open(lab, reach(far))
        wg = Ear(far.space, "wg0")
        evil = [_udp(me, of(far), OTHER, EVIL), _udp(me, of(none), PORT, EVIL)]
        return Case(me.space, evil, [wg], [_udp(me, of(far), PORT, HONEST)], wg, undo=undo)

    def edge_peer_and_what_is_listed(lab: Lab) -> Case:
        """An edge peer has a list of its own, and no flow to it is opened."""
        far, flat, me = lab.places["remote-unknown"], lab.places["flat-db"], a(lab)
        edge = FenceEdge("edge:listed", of(far), (single(lab.places["red-db"]),))
        end = _open(lab, [*reach(flat), *reach(far)], [single(far), single(me)])
        lab.run(fence.create_edge(edge))
        lab.run(change(add=of_edge(edge)))

        def undo() -> None:
            lab.run(change(take=of_edge(edge)))
            lab.run(fence.forget_network(edge.network))
            end()

        wg = Ear(far.space, "wg0")
        evil = [_from_far(lab, far, of(flat), PORT, EVIL)]
        before = lambda: send(me.space, "eth0", [_udp(me, of(far), PORT, EVIL)])  # noqa: E731
        honest = [_from_far(lab, far, of(lab.places["red-db"]), OTHER, HONEST)]
        at = eth(lab.places["red-db"])
        return Case(far.space, evil, [eth(flat), wg], honest, at, device="wg0", before=before, undo=undo)

    def sender_reaches_members(lab: Lab) -> Case:
        """The listed one, and no other; what it reaches answers, and opens nothing."""
        sender, me, flat = lab.places["blue-db"], a(lab), lab.places["flat-db"]
        undo = _open(lab, senders=[single(sender)])
        gate = _gateway_of(lab, sender)
        before = lambda: (  # noqa: E731
            send(me.space, "eth0", [_udp(me, of(sender), PORT, EVIL)]),
            send(flat.space, "eth0", [_udp(flat, of(me), PORT, EVIL, mac=_gateway_of(lab, flat))]),
        )
        honest = [_udp(sender, of(me), PORT, HONEST, mac=gate)]
        victims = [eth(me), eth(sender)]
        return Case(sender.space, [], victims, honest, eth(me), before=before, undo=undo)

    def sender_is_answered(lab: Lab) -> Case:
        sender, me = lab.places["blue-db"], a(lab)
        undo = _open(lab, senders=[single(sender)])
        sport = next(_sports)
        asked = [_udp(sender, of(me), PORT, b"hello", sport=sport, mac=_gateway_of(lab, sender))]
        evil = [_udp(me, of(sender), sport + 5000, EVIL, sport=PORT)]
        answer = [_udp(me, of(sender), sport, HONEST, sport=PORT)]
        before = lambda: send(sender.space, "eth0", asked)  # noqa: E731
        return Case(me.space, evil, [eth(sender)], answer, eth(sender), before=before, undo=undo)

    def sender_on_the_same_bridge(lab: Lab) -> Case:
        sender, me, fellow = x(lab), a(lab), lab.places["blue-db"]
        undo = _open(lab, senders=[single(sender)])
        frame = _udp(sender, of(me), PORT, HONEST if _seen_by_inet(lab) else EVIL, mac=me.mac)
        if _seen_by_inet(lab):
            return Case(sender.space, [], [], [frame], eth(me), undo=undo)
        honest = [_udp(sender, of(fellow), PORT, HONEST)]
        return Case(sender.space, [frame], [eth(me)], honest, eth(fellow), undo=undo)

    def sender_is_answered_on_the_same_bridge(lab: Lab) -> Case:
        sender, me = x(lab), a(lab)
        undo = _open(lab, senders=[single(sender)])
        sport = next(_sports)
        asked = [_udp(sender, of(me), PORT, b"hello", sport=sport, mac=me.mac)]
        before = lambda: send(sender.space, "eth0", asked)  # noqa: E731
        answer = _udp(me, of(sender), sport, HONEST if _seen_by_inet(lab) else EVIL, sport=PORT, mac=sender.mac)
        evil = [_udp(me, of(sender), sport + 5000, EVIL, sport=PORT, mac=sender.mac)]
        if _seen_by_inet(lab):
            return Case(me.space, evil, [eth(sender)], [answer], eth(sender), before=before, undo=undo)
        honest = [_udp(me, of(b(lab)), PORT, HONEST, mac=b(lab).mac)]
        return Case(me.space, [*evil, answer], [eth(sender)], honest, eth(b(lab)), before=before, undo=undo)

    def sender_elsewhere_reaches_members(lab: Lab) -> Case:
        """A node, an API server on it for example; what is in no network there reaches no member."""
        node, far, me = lab.places["remote-unknown"], lab.places["remote-flat"], a(lab)
        undo = _open(lab, senders=[single(node)])
        evil = [_from_far(lab, far, of(me), PORT, EVIL)]
        honest = [_from_far(lab, node, of(me), PORT, HONEST)]
        return Case(node.space, evil, [eth(me)], honest, eth(me), device="wg0", undo=undo)

    def sender_reaches_members_elsewhere(lab: Lab) -> Case:
        sender, other, far = lab.places["blue-db"], lab.places["green-sh"], lab.places["remote-red"]
        undo = _open(lab, senders=[single(sender)])
        wg = Ear(far.space, "wg0")
        gate = _gateway_of(lab, other)
        before = lambda: send(other.space, "eth0", [_udp(other, of(far), PORT, EVIL, mac=gate)])  # noqa: E731
        honest = [_udp(sender, of(far), PORT, HONEST, mac=_gateway_of(lab, sender))]
        return Case(sender.space, [], [wg], honest, wg, before=before, undo=undo)

    def sender_to_an_address_not_in_use(lab: Lab) -> Case:
        sender, none, me = lab.places["blue-db"], lab.places["unknown-sh2"], a(lab)
        undo = _open(lab, senders=[single(sender)])
        gate = _gateway_of(lab, sender)
        evil = [_udp(sender, of(none), PORT, EVIL, mac=gate)]
        honest = [_udp(sender, of(me), PORT, HONEST, mac=gate)]
        return Case(sender.space, evil, [eth(none)], honest, eth(me), undo=undo)

    for work in list(locals().values()):
        if callable(work) and getattr(work, "__annotations__", {}).get("return") == "Case":
            work.__name__ += "_ipv6" if six else ""
            _attack(work)


NAMES: list[str] = []
"""All attacks of this module."""


def _attack(work: Callable[[Lab], Case]) -> None:
    NAMES.append(attack(work).__name__)


def _gateway_of(lab: Lab, place: Place) -> str:
    """The MAC of the bridge on which the container is, or of its host end."""
    assert place.port is not None
    if ROUTED:
        return place.space.gate
    return next(bridge.mac or "" for bridge in lab.bridges.values() if bridge.name == place.port.bridge)


_register(six=False)
_register(six=True)
