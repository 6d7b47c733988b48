"""The flat mesh on other nodes: reached by the flat mesh here, and by no network; and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cni.daemon import fence

from . import packets as p
from .attacks import EVIL, HONEST, Case, Ear, a, attack, datagram, eth, gateway
from .attacks_edge import mac_of
from .lab import TUNNEL, Lab, Place

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
