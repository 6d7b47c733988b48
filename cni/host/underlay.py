"""The network below the overlay: where this node can be reached."""

from __future__ import annotations

from collections.abc import Iterator

from cni.host import addressing, links
from cni.host.netlink import RTM_GETROUTE, Message, Netlink, attributes


def addresses() -> list[links.Address]:
    """The addresses of the links that the default routes leave by, those good on the link alone left out."""
    with Netlink() as socket:
        ways = set(_ways_out(socket))
        found = [address.ip for at, address in addressing.list_addresses(socket) if at in ways]
    return [address for address in found if not address.is_link_local]


def _ways_out(socket: Netlink) -> Iterator[int]:
    """The links of the default routes. A node of a large mesh has thousands of others: those are not looked into."""
    body = addressing.ROUTE.pack(*[0] * 9)
    for answer in socket.dump(Message(RTM_GETROUTE, 0, body, "list routes")):
        family, prefix, _, _, _, _, _, _, _ = addressing.ROUTE.unpack_from(answer.body)
        if prefix == 0 and family in (links.AF_INET, links.AF_INET6):
            said = attributes(answer.body[12:])
            if links.number(said.get(addressing.RTA_TABLE)) == addressing.RT_MAIN and addressing.RTA_OIF in said:
                yield links.number(said[addressing.RTA_OIF])
