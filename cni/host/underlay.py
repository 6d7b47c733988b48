"""The underlay: the addresses at which this node can be reached."""

from __future__ import annotations

from collections.abc import Iterator

from cni.host import addressing, links
from cni.host.netlink import RTM_GETROUTE, Message, Netlink, attributes


def addresses() -> list[links.Address]:
    """The addresses of the links of the default routes, without link-local ones."""
    with Netlink() as socket:
        ways = set(_ways_out(socket))
        candidates = [address.ip for at, address in addressing.list_addresses(socket) if at in ways]
    return [address for address in candidates if not address.is_link_local]


def _ways_out(socket: Netlink) -> Iterator[int]:
    """The link indices of the default routes. A node of a large mesh has thousands of other routes, which are not
    decoded."""
    body = addressing.ROUTE.pack(*[0] * 9)
    for answer in socket.dump(Message(RTM_GETROUTE, 0, body, "list routes")):
        family, prefix, _, _, _, _, _, _, _ = addressing.ROUTE.unpack_from(answer.body)
        if prefix == 0 and family in (links.AF_INET, links.AF_INET6):
            attrs = attributes(answer.body[12:])
            if links.number(attrs.get(addressing.RTA_TABLE)) == addressing.RT_MAIN and addressing.RTA_OIF in attrs:
                yield links.number(attrs[addressing.RTA_OIF])
