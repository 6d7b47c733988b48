"""The way out: what is for the overlay leaves by a bridge or a tunnel, whatever the host's routes say."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import replace

from cni.daemon.fence import ruleset as fence

from . import packets as p
from .attacks import EVIL, HONEST, Case, Ear, a, attack, datagram, eth, gateway
from .attacks_mesh import _behind
from .lab import LAN4, LAN6, NODE4, NODE6, OUTSIDE4, OUTSIDE6, TUNNEL, Lab

FAR4, FAR6 = "10.200.40.0/26", "fd00:200:0:40::/64"
BOUND = 6103  # of no other attack: the flow is translated anew
OWN = {False: ("10.200.77.1/24", "10.200.77.9/24"), True: ("fd00:200:0:77::1/64", "fd00:200:0:77::9/64")}


def _speak(lab: Lab, to: str, marker: bytes, source: str = "") -> None:
    """The host sends a datagram itself, from port BOUND of the source if that is given; it may be told that it may not
    (EPERM)."""
    with lab.host.socket(p.raw_family(to), socket.SOCK_DGRAM) as speaker, contextlib.suppress(PermissionError):
        if source:
            speaker.bind((source, BOUND))
        speaker.sendto(marker, (to, 9))


def _register(six: bool) -> None:
    def pick(four: str, other: str) -> str:
        return other if six else four

    def by_the_uplink(lab: Lab) -> None:
        """A route of the host's leads the second node's subnet to the uplink."""
        lab.host.ip(f"route replace {pick(FAR4, FAR6)} via {pick(OUTSIDE4, OUTSIDE6)}")

    def by_the_tunnel(lab: Lab) -> None:
        via = pick("169.254.77.2", "fe80::77:2")
        lab.host.ip(f"route replace {pick(FAR4, FAR6)} via {via} dev {TUNNEL}")

    def no_tunnel(lab: Lab) -> None:
        """As when the engine has died: the tunnel's route is gone, and a default route is left."""
        lab.host.ip(f"route del {pick(FAR4, FAR6)} dev {TUNNEL}")
        lab.host.ip(f"route add default via {pick(OUTSIDE4, OUTSIDE6)}")

    def tunnel_again(lab: Lab) -> None:
        lab.host.ip(f"route del default via {pick(OUTSIDE4, OUTSIDE6)}")
        by_the_tunnel(lab)

    def member_without_a_tunnel(lab: Lab) -> Case:
        me, friend, out = a(lab), lab.places["remote-red"], eth(lab.places["outside"])
        no_tunnel(lab)
        evil = datagram(me, gateway(friend.four, friend.six), EVIL, six=six)
        honest = datagram(me, gateway(OUTSIDE4, OUTSIDE6), HONEST, six=six)
        return Case(me.space, [evil], [out], [honest], out, undo=lambda: tunnel_again(lab))

    def flat_mesh_without_a_tunnel(lab: Lab) -> Case:
        me, friend, out = lab.places["flat-web"], lab.places["remote-unknown"], eth(lab.places["outside"])
        undo = _behind(lab)
        no_tunnel(lab)

        def end() -> None:
            tunnel_again(lab)
            undo()

        evil = datagram(me, gateway(friend.four, friend.six), EVIL, six=six)
        honest = datagram(me, gateway(OUTSIDE4, OUTSIDE6), HONEST, six=six)
        return Case(me.space, [evil], [out], [honest], out, undo=end)

    def member_by_a_route_of_the_hosts(lab: Lab) -> Case:
        me, friend, out = a(lab), lab.places["remote-red"], eth(lab.places["outside"])
        by_the_uplink(lab)
        evil = datagram(me, gateway(friend.four, friend.six), EVIL, six=six)
        honest = datagram(me, gateway(OUTSIDE4, OUTSIDE6), HONEST, six=six)
        return Case(me.space, [evil], [out], [honest], out, undo=lambda: by_the_tunnel(lab))

    def node_without_a_tunnel(lab: Lab) -> Case:
        """To a member elsewhere, and to an overlay address without an owner."""
        out = eth(lab.places["outside"])
        no_tunnel(lab)

        def speak() -> None:
            for to in (
                pick(lab.places["remote-red"].four, lab.places["remote-red"].six),
                pick("10.200.99.9", FAR6[:-3]),
            ):
                _speak(lab, to, EVIL)
            _speak(lab, pick(OUTSIDE4, OUTSIDE6), HONEST)

        return Case(a(lab).space, [], [out], [], out, before=speak, undo=lambda: tunnel_again(lab))

    def node_to_its_own_network(lab: Lab) -> Case:
        """The host is on a network inside the overlay's range: it reaches that, and no container does."""
        (here, there), outside = OWN[six], lab.places["outside"]
        lab.host.address("up0", here)
        outside.space.address("eth0", there)
        cidr = pick("10.200.77.0/24", "fd00:200:0:77::/64")
        lab.run(fence.base(replace(lab.node, connected=(cidr,))))
        address = there.partition("/")[0]
        # The neighbour is known beforehand: its advertisement has a source of the overlay's, from elsewhere.
        mac = outside.space.run("ip", "-br", "link", "show", "eth0").split()[2]
        lab.host.ip(f"neigh replace {address} lladdr {mac} dev up0 nud permanent")

        def end() -> None:
            lab.run(fence.base(lab.node))
            lab.host.ip(f"neigh del {address} dev up0", f"addr del {here} dev up0")
            outside.space.ip(f"addr del {there} dev eth0")

        evil = datagram(lab.places["flat-web"], gateway(address, address), EVIL, six=six)
        return Case(
            lab.places["flat-web"].space,
            [evil],
            [eth(outside)],
            [],
            eth(outside),
            before=lambda: _speak(lab, address, HONEST),
            undo=end,
        )

    def node_to_itself(lab: Lab) -> Case:
        host, to = Ear(lab.host), pick(NODE4, NODE6)
        return Case(a(lab).space, [], [], [], host, before=lambda: _speak(lab, to, HONEST))

    def node_leaves_with_the_links_address(lab: Lab) -> Case:
        """A socket of the node's that is bound to the overlay address: no router outside has a route back to it."""
        own, to, out = pick(NODE4, NODE6), pick(OUTSIDE4, OUTSIDE6), eth(lab.places["outside"])
        seen = p.packed(pick(LAN4, LAN6)) + p.packed(to) + struct.pack("!HH", BOUND, 9)
        return Case(a(lab).space, [], [], [], out, honest_needle=seen, before=lambda: _speak(lab, to, HONEST, own))

    for work in (
        node_leaves_with_the_links_address,
        member_without_a_tunnel,
        flat_mesh_without_a_tunnel,
        member_by_a_route_of_the_hosts,
        node_without_a_tunnel,
        node_to_its_own_network,
        node_to_itself,
    ):
        work.__name__ += "_ipv6" if six else ""
        attack(work)


_register(six=False)
_register(six=True)
