"""The network below the overlay: where this node can be reached."""

from __future__ import annotations

from cni.host import links
from cni.host.netlink import Netlink


def addresses() -> list[links.Address]:
    """The addresses of the links that the default routes leave by, those good on the link alone left out."""
    with Netlink() as socket:
        ways = {route.oif for route in links.list_routes(socket) if route.dst.prefixlen == 0 and route.oif}
        found = [address.ip for at, address in links.list_addresses(socket) if at in ways]
    return [address for address in found if not address.is_link_local]
