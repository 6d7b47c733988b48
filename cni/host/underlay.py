"""The underlay: the addresses at which this node can be reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from cni.host import addressing, links
from cni.host.forwarding import OURS, OUTSIDE
from cni.host.netlink import RTM_GETROUTE, Message, Netlink, attributes
from cni.host.own_networks import RTA_MULTIPATH, next_hops

OVERLAYS = ("tun", "wireguard", "vxlan", "geneve", "dummy", "ipvlan")  # kinds of links that lead into other networks


def addresses(ranges: Iterable[str]) -> list[links.Address]:
    """The addresses at which other nodes may reach this one, the likeliest first.

    First the source addresses of packets to the outside, as the kernel chooses them now: this covers next hop groups,
    policy rules, and an address on lo. Then the addresses of the links of every default route, and those on lo. Only if
    there are none of these: the addresses of all links that are neither the overlay's nor tunnels, bridges last.
    Addresses for one link or for this host alone are left out, and those in the overlay's `ranges`. Raises OSError.
    """
    overlay = [ipaddress.ip_network(cidr) for cidr in ranges]
    with Netlink() as socket:
        usable = [
            (at, address.ip)
            for at, address in addressing.list_addresses(socket)
            if _is_usable(address.ip) and not any(address.ip in range_ for range_ in overlay)
        ]
        chosen = [source for outside in OUTSIDE if (source := addressing.source_to(socket, outside)) is not None]
        ways = set(_ways_out(socket))
        by_index = {link.index: link for link in links.list_links(socket)}
    uplinks = {index for index, link in by_index.items() if _is_uplink(link)}
    own = {address for _, address in usable}
    likely = [address for address in chosen if address in own]
    likely += [address for at, address in usable if at == links.LOOPBACK or at in ways & uplinks]
    if not likely:
        others = [(by_index[at].kind == "bridge", address) for at, address in usable if at in uplinks]
        likely = [address for _, address in sorted(others, key=lambda by_bridge: by_bridge[0])]
    return list(dict.fromkeys(likely))


def _is_usable(address: links.Address) -> bool:
    return not (address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified)


def _is_uplink(link: links.Link) -> bool:
    return link.up and not link.name.startswith(OURS) and link.kind not in OVERLAYS


def _ways_out(socket: Netlink) -> Iterator[int]:
    """The link indices of the default routes of every table. A node of a large mesh has thousands of other routes,
    which are not decoded."""
    body = addressing.ROUTE.pack(*[0] * 9)
    for answer in socket.dump(Message(RTM_GETROUTE, 0, body, "list routes")):
        family, prefix, _, _, _, _, _, kind, _ = addressing.ROUTE.unpack_from(answer.body)
        if prefix == 0 and family in (links.AF_INET, links.AF_INET6) and kind == links.RTN_UNICAST:
            attrs = attributes(answer.body[12:])
            if addressing.RTA_OIF in attrs:
                yield links.number(attrs[addressing.RTA_OIF])
            for hop in next_hops(attrs.get(RTA_MULTIPATH, b"")):
                yield links.number(hop[addressing.RTA_OIF])
