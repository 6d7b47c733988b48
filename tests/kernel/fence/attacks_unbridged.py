"""Attacks that there are without a bridge: ports that the fence does not know, and what the host learns from a link."""

from __future__ import annotations

from functools import partial

from . import packets as p
from .attacks import EVIL, GATEWAY4, HONEST, PORT, Case, Ear, a, attack, b, datagram, eth, gateway
from .lab import HOST4, NODE4, OUTSIDE4, OUTSIDE6, ROUTED, Lab

FOREIGN4, FOREIGN6 = "203.0.113.9", "2001:db8:113::9"


def _of_routed_ports(work: object) -> object:
    """Register an attack for containers without a bridge only."""
    return attack(work) if ROUTED else work  # type: ignore[arg-type]


@_of_routed_ports
def unknown_routed_port(lab: Lab) -> Case:
    """A port of our name that was not admitted: with its own address, a member's, and one from elsewhere."""
    me, fellow = lab.places["unknown-web"], lab.places["flat-web"]
    targets = [(fellow.four, fellow.six), (OUTSIDE4, OUTSIDE6), (HOST4, ""), (NODE4, "")]
    frames = []
    for source4, source6 in ((me.four, me.six), (fellow.four, fellow.six), (FOREIGN4, FOREIGN6)):
        for four, six in targets:
            frames.append(datagram(me, gateway(four, six), EVIL, source=source4))
            frames += [datagram(me, gateway(four, six), EVIL, source=source6, six=True)] if six else []
    victims = [eth(fellow), eth(lab.places["outside"]), Ear(lab.host)]
    honest = [datagram(a(lab), b(lab), HONEST)]
    return Case(me.space, frames, victims, honest, eth(b(lab)), honest=a(lab).space)


@_of_routed_ports
def entries_in_the_hosts_neighbour_table(lab: Lab) -> Case:
    """ARP requests with senders that are not behind this link: each answered one would add an entry."""
    me, device = a(lab), lab.way_in("red-web")
    liars = [f"10.200.5.{n}" for n in range(100, 140)] + [f"203.0.113.{n}" for n in range(1, 40)]
    frames = [p.frame(p.BROADCAST, me.mac, p.ARP, p.arp(1, (me.mac, liar), (p.BROADCAST, GATEWAY4))) for liar in liars]

    def harm() -> str:
        shown = lab.host.run("ip", "-4", "neigh", "show", "dev", device).splitlines()
        strange = [line for line in shown if not line.startswith(f"{me.four} ")]
        return f"the host has learned {len(strange)} entries: {strange[:2]}" if strange else ""

    lab.host.sysctl(**{f"net__ipv4__conf__{device}__rp_filter": 1})  # as the daemon sets it
    undo = partial(lab.host.sysctl, **{f"net__ipv4__conf__{device}__rp_filter": 0})
    return Case(me.space, frames, [], [datagram(me, b(lab), HONEST)], eth(b(lab)), harm=harm, undo=undo)


@_of_routed_ports
def link_local_addresses_are_not_routed(lab: Lab) -> Case:
    """To and from link-local addresses, by the host: no neighbour is on the link."""
    me, it = a(lab), b(lab)
    own, its = p.link_local(me.mac), p.link_local(it.mac)
    pairs = ((own, it.six), (me.six, its), (own, its))
    frames = [
        p.frame(it.mac, me.mac, p.IPV6, p.ip6(src, dst, p.UDP, p.udp(src, dst, PORT, PORT, EVIL))) for src, dst in pairs
    ]
    return Case(me.space, frames, [eth(it)], [datagram(me, it, HONEST, six=True)], eth(it))


@_of_routed_ports
def dhcpv6_server_by_its_own_address(lab: Lab) -> Case:
    me, it = a(lab), b(lab)
    packet = p.ip6(me.six, it.six, p.UDP, p.udp(me.six, it.six, 547, 546, EVIL))
    honest = [datagram(me, it, HONEST, six=True)]
    return Case(me.space, [p.frame(it.mac, me.mac, p.IPV6, packet)], [eth(it)], honest, eth(it))


@_of_routed_ports
def the_table_bridge_is_not_needed(lab: Lab) -> Case:
    """Without it a member reaches no other network all the same."""
    me, it = a(lab), lab.places["blue-web"]
    lab.nft.run("delete table bridge zlayer_cni")
    frames = [datagram(me, it, EVIL, six=six) for six in (False, True)]
    case = Case(me.space, frames, [eth(it)], [datagram(me, b(lab), HONEST)], eth(b(lab)))
    case.undo = lab.load
    return case
