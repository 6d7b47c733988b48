"""The kernel as the daemon sees it: one object, made once, used from any thread.

It adds nothing to the modules beside it but a netlink socket per thread and the reaper; a fake with the same methods
stands in for it where a test needs a kernel that fails on command.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence

from cni.host import addressing, links, netns, own_networks, ports, sysctl
from cni.host.conntrack_flusher import ConntrackFlusher
from cni.host.link_deleter import LinkDeleter
from cni.host.netlink import Netlink
from cni.host.worker import Crew

OURS = ("zl-", "veth-")  # how the names of our bridges, devices and ports begin
ROUTED = ("bridge", "tun", "wireguard")  # the kinds of links of ours by which packets come that the node routes
# Documentation addresses (RFC 5737, RFC 3849): only a default route leads there.
OUTSIDE = (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1"))
DEFAULT_UNDERLAY_MTU = 1500  # where no default route says which device carries the overlay


class Kernel:
    """Links, ports and settings in the network namespace the daemon was started in."""

    def __init__(self, crew: Crew | None = None) -> None:
        self.own = netns.own()
        self._local = threading.local()
        self._reaper = LinkDeleter(crew)
        self._forgetter = ConntrackFlusher(crew)

    @property
    def _socket(self) -> Netlink:
        socket: Netlink | None = getattr(self._local, "socket", None)
        if socket is None:
            socket = self._local.socket = Netlink()
        return socket

    # --- the node ------------------------------------------------------------------------------------------------

    def enable_forwarding(self, versions: Sequence[int]) -> None:
        """The node routes packets of these IP versions.

        IPv6 forwarding makes the kernel ignore router advertisements unless accept_ra is 2, so that is set first on
        links that accept them: the node's own default route must survive us.
        """
        if 4 in versions:
            sysctl.ensure("ipv4/ip_forward", "1")
        if 6 in versions and sysctl.read("ipv6/conf/all/forwarding") == "0":
            for link in links.list_links(self._socket):
                if sysctl.read(f"ipv6/conf/{link.name}/accept_ra") == "1" and not link.name.startswith(OURS):
                    sysctl.ensure(f"ipv6/conf/{link.name}/accept_ra", "2")
            sysctl.ensure("ipv6/conf/all/forwarding", "1")
        for link in links.list_links(self._socket):
            if link.name.startswith(OURS) and link.kind in ROUTED:
                sysctl.forward(link.name)

    def ensure_node_address(self, address: links.Address) -> None:
        """The node answers to `address` whatever bridges come and go: it is on lo, for this host alone to route."""
        addressing.ensure_address(self._socket, links.LOOPBACK, ipaddress.ip_interface(address), links.OUR_PROTO)

    def remove_node_address(self, address: links.Address) -> None:
        """lo without that address."""
        addressing.remove_address(self._socket, links.LOOPBACK, ipaddress.ip_interface(address))

    def forwarding(self, version: int) -> bool:
        """Whether the node routes packets of this IP version now."""
        return sysctl.read("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding") == "1"

    def not_forwarding(self) -> list[str]:
        """The links that lead out, by the default routes, from which the kernel forwards no IPv4 packet: it asks the
        link by which a packet came in (IN_DEV_FORWARD), whatever ip_forward says. IPv6 asks `all` alone."""
        route = addressing.route_to(self._socket, OUTSIDE[0])
        link = links.find_link(self._socket, index=route.oif) if route is not None and route.oif else None
        off = link is not None and sysctl.read(f"ipv4/conf/{link.name}/forwarding") == "0"
        return [link.name] if link is not None and off else []

    def arp_ignore(self) -> int:
        """What arp_ignore of our bridges comes to: the larger of theirs, which is 1, and of that of `all`."""
        return max(1, int(sysctl.read("ipv4/conf/all/arp_ignore") or 0))

    def underlay_mtu(self) -> int:
        """The MTU of the link that leads out: the one a packet to nobody in particular would take."""
        for outside in OUTSIDE:
            route = addressing.route_to(self._socket, outside)
            if route is not None and route.type == links.RTN_UNICAST:
                link = links.find_link(self._socket, index=route.oif)
                if link is not None:
                    return link.mtu
        return DEFAULT_UNDERLAY_MTU

    def find(self, name: str = "", index: int = 0) -> links.Link | None:
        """The link of that name or index, or None."""
        return links.find_link(self._socket, name, index)

    def all_links(self) -> list[links.Link]:
        """Every link: for start-up and resync only."""
        return links.list_links(self._socket)

    def addresses(self, index: int) -> list[links.Interface]:
        """The addresses of one link of the node."""
        return [address for _, address in addressing.list_addresses(self._socket, index)]

    def all_addresses(self) -> dict[int, set[links.Interface]]:
        """Every address of the node by link index: for resync only."""
        found: dict[int, set[links.Interface]] = {}
        for index, address in addressing.list_addresses(self._socket):
            found.setdefault(index, set()).add(address)
        return found

    def way_out(self, address: links.Address) -> str:
        """The name of the link by which a packet of the node's to that address leaves now; empty for none."""
        route = addressing.route_to(self._socket, address)
        link = links.find_link(self._socket, index=route.oif) if route is not None and route.oif else None
        return "" if link is None else link.name

    def surroundings(self) -> own_networks.Surroundings:
        """The host's own addresses, routes and resolvers. Costs as much as there are routes. Raises OSError."""
        return own_networks.read()

    def held_addresses(self) -> tuple[own_networks.HeldAddress, ...]:
        """Every address of the host. Raises OSError."""
        return own_networks.held_addresses()

    # --- segments ------------------------------------------------------------------------------------------------

    def ensure_bridge(self, name: str, mac: str, mtu: int, addresses: Sequence[links.Interface]) -> links.Link:
        """The service bridge, up, with its gateways. Raises NetlinkError(EEXIST) if another kind of link is there."""
        bridge = links.ensure_bridge(self._socket, name, mac, mtu)
        if not any(address.version == 6 for address in addresses):
            sysctl.ensure(f"ipv6/conf/{name}/disable_ipv6", "1")  # no link-local door into the host
        else:
            sysctl.ensure(f"ipv6/conf/{name}/disable_ipv6", "0")
            sysctl.ensure(f"ipv6/conf/{name}/accept_ra", "0")
            # Before its first port: while its link-local address is tentative, the host asks for no neighbour there.
            for setting in sysctl.NO_DAD:
                sysctl.ensure(f"ipv6/conf/{name}/{setting}", "0")
        sysctl.ensure(f"ipv4/conf/{name}/arp_ignore", "1")  # nobody learns there which other addresses the host has
        # Two slots of a service talk through the gateway. Where it is on for `all`, the fence drops what is sent.
        sysctl.ensure(f"ipv4/conf/{name}/send_redirects", "0")
        sysctl.forward(name)
        for address in addresses:
            addressing.ensure_address(self._socket, bridge.index, address)
        return bridge

    def ensure_gateway(self, bridge: str, address: links.Interface) -> None:
        """One more gateway on a bridge: its service took a further slot."""
        link = links.find_link(self._socket, bridge)
        if link is not None:
            addressing.ensure_address(self._socket, link.index, address)

    def remove_gateway(self, bridge: str, address: links.Interface) -> None:
        """The bridge without that gateway; a bridge that is gone has none."""
        link = links.find_link(self._socket, bridge)
        if link is not None:
            addressing.remove_address(self._socket, link.index, address)

    def remove_link(self, name: str) -> bool:
        """No link of that name afterwards; False if there was none. Returns as soon as it can be seen no more."""
        return self._reaper.remove(self._socket, name)

    def forget_neighbour(self, bridge: int, address: str) -> None:
        """What the kernel learned about a released address goes with it."""
        addressing.remove_neighbour(self._socket, bridge, ipaddress.ip_address(address))

    # --- ports ---------------------------------------------------------------------------------------------------

    def create_port(self, port: links.Port, netns_fd: int) -> tuple[int, int]:
        """The veth, both ends down: (index of the host end, index of the container's end)."""
        return links.create_port(self._socket, port, netns_fd)

    def configure_inside(
        self,
        netns_fd: int,
        index: int,
        ifname: str,
        addresses: Sequence[links.Interface],
        routes: Sequence[links.Route],
    ) -> list[links.Route]:
        """The container's end, up and addressed; returns the routes that were there already."""
        return ports.configure(netns_fd, index, ifname, addresses, routes)

    def raise_port(self, index: int, owner: str = "") -> None:
        """Bring the host end up, with its owner's mark: from here on packets flow."""
        links.raise_port(self._socket, index, owner)

    def mark(self, index: int, owner: str) -> None:
        """Say on the link itself whose it is."""
        links.mark(self._socket, index, owner)

    def enslave(self, index: int, bridge: int) -> None:
        """Put a link on a bridge."""
        links.set_master(self._socket, index, bridge)

    def rename_link(self, index: int, name: str) -> None:
        """Give a link a name, and bring it up."""
        links.rename_link(self._socket, index, name)

    def has_interface(self, netns_fd: int, ifname: str) -> bool:
        """Whether the container has an interface of that name."""
        return ports.has_interface(netns_fd, ifname)

    def inspect(self, netns_fd: int, ifname: str, sought: ports.Sought) -> ports.ContainerView:
        """What the container has under that name of what is sought. Reads only, and within a bound."""
        return ports.inspect(netns_fd, ifname, sought)

    def has_default_route(self, netns_fd: int, version: int) -> bool:
        """Whether the container has a default route of that IP version. Raises OSError where it has too many routes."""
        return ports.has_default_route(netns_fd, links.AF_INET if version == 4 else links.AF_INET6)

    def forget_flows(self, addresses: Sequence[str]) -> None:
        """Have the tracked flows of released addresses forgotten, soon."""
        self._forgetter.forget(addresses)

    def close(self) -> None:
        """End the threads; what they were asked is done first."""
        self._forgetter.close()
        self._reaper.close()
