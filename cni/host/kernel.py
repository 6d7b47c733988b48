"""The daemon's interface to the kernel: one object, created once, usable from any thread.

It adds to the modules beside it only a netlink socket for each thread, the link deleter and the conntrack flusher. A
test that needs a kernel with failures uses a fake with the same methods.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence

from cni.host import (
    addressing,
    advertisements,
    forwarding,
    links,
    netconf,
    netns,
    own_networks,
    ports,
    routed_ports,
    source_routes,
    sysctl,
)
from cni.host.announce import Announcer
from cni.host.conntrack_flusher import ConntrackFlusher
from cni.host.forwarding import OURS, OUTSIDE, is_routed
from cni.host.interface_ioctl import InterfaceLookup
from cni.host.link_deleter import LinkDeleter
from cni.host.link_table import LinkTable
from cni.host.netlink import Netlink
from cni.host.networks_reader import NetworksReader
from cni.host.worker import Crew

DEFAULT_UNDERLAY_MTU = 1500  # bytes; used if no default route names the link that carries the overlay


class Kernel:
    """Links, ports and settings in the network namespace in which the daemon was started."""

    def __init__(self, crew: Crew | None = None) -> None:
        self.own = netns.own()
        self._hears_routers = False
        self._local = threading.local()
        self._link_deleter = LinkDeleter(crew)
        self._conntrack_flusher = ConntrackFlusher(crew)
        self._announcer = Announcer(crew)
        self._lookup = InterfaceLookup()
        self._table, self._networks = LinkTable(), NetworksReader()

    @property
    def _socket(self) -> Netlink:
        socket: Netlink | None = getattr(self._local, "socket", None)
        if socket is None:
            socket = self._local.socket = Netlink()
        return socket

    # --- the node ------------------------------------------------------------------------------------------------

    def enable_forwarding(self, versions: Sequence[int]) -> None:
        """Let the node route packets of these IP versions.

        With IPv6 forwarding the kernel ignores router advertisements unless accept_ra is 2. So accept_ra is set first
        on the links that accept them; otherwise the node would lose its own default route.
        """
        if 4 in versions:
            self._forward_ipv4()
        if 6 in versions and sysctl.read("ipv6/conf/all/forwarding") == "0":
            sysctl.refuse_read_only("ipv6/conf/all/forwarding", "1")
            self._hears_routers = True
            for link in self._table.now():
                if not link.name.startswith(OURS):
                    advertisements.keep(link)
            sysctl.ensure("ipv6/conf/all/forwarding", "1")
        off = {index for version in versions for index in netconf.not_forwarding(self._socket, version)}
        for link in self._table.now() if off else ():
            if link.index in off and is_routed(link):
                sysctl.forward(link.name, six=6 in versions)

    def _forward_ipv4(self) -> None:
        """Let every link forward IPv4; if /proc/sys is read-only, those that matter, by netlink."""
        try:
            sysctl.ensure("ipv4/ip_forward", "1")
        except sysctl.Unwritable:
            for name in self.not_forwarding():
                sysctl.ensure(f"ipv4/conf/{name}/forwarding", "1")

    def keep_advertisements(self) -> list[str]:
        """Let the host's links accept router advertisements although the node forwards IPv6; returns the names of the
        links that were changed. Only on a host that accepts them anyway: this daemon switched forwarding on, or
        accept_ra is 2 on a link. Raises OSError."""
        uplinks = advertisements.uplinks(self._table.now(), OURS)
        self._hears_routers = self._hears_routers or any(advertisements.accepts(link.name) == "2" for link in uplinks)
        changed = [link for link in uplinks if self._hears_routers and advertisements.keep(link)]
        for link in changed:
            advertisements.solicit(link)
        return [link.name for link in changed]

    def ensure_node_address(self, address: links.Address) -> None:
        """Put `address` on lo, so that the node answers to it without any bridge; only this host routes it."""
        addressing.ensure_address(self._socket, links.LOOPBACK, ipaddress.ip_interface(address), links.OUR_PROTO)

    def remove_node_address(self, address: links.Address) -> None:
        """Remove the address from lo."""
        addressing.remove_address(self._socket, links.LOOPBACK, ipaddress.ip_interface(address))

    def forwarding(self, version: int) -> bool:
        """Whether the node routes packets of this IP version now."""
        return sysctl.read("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding") == "1"

    def not_forwarding(self) -> list[str]:
        """The links from which the kernel forwards no IPv4 packet and should: the overlay's, and those by which the
        host reaches other networks. The kernel reads the setting of the link by which a packet came in
        (IN_DEV_FORWARD), whatever ip_forward is; for IPv6 it reads only that of `all`. Raises OSError."""
        return forwarding.not_forwarding(self._socket, self._table.now)

    def arp_ignore(self) -> int:
        """The effective arp_ignore of our bridges: the larger of their own value, 1, and the value of `all`."""
        return max(1, int(sysctl.read("ipv4/conf/all/arp_ignore") or 0))

    def underlay_mtu(self) -> int:
        """The MTU in bytes of the link of the default route; DEFAULT_UNDERLAY_MTU if there is none."""
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

    def index_of(self, name: str) -> int:
        """The index of the link of that name, 0 if there is none. Does not wait while other links are changed."""
        return self._lookup.index(name)

    def mac_of(self, name: str) -> str:
        """The MAC of the link of that name, "" if there is none. Does not wait either."""
        return self._lookup.mac(name)

    def all_links(self) -> list[links.Link]:
        """Every link, as after the last change before the call. Costs O(links), and seldom a list of them in the
        kernel: see cni/host/link_table.py. Raises OSError."""
        return self._table.now()

    def addresses(self, index: int) -> list[links.Interface]:
        """The addresses of one link of the node."""
        return [address for _, address in addressing.list_addresses(self._socket, index)]

    def all_addresses(self) -> dict[int, set[links.Interface]]:
        """Every address of the node by link index: for resync only."""
        by_link: dict[int, set[links.Interface]] = {}
        for index, address in addressing.list_addresses(self._socket):
            by_link.setdefault(index, set()).add(address)
        return by_link

    def way_out(self, address: links.Address) -> str:
        """The name of the link by which the node now sends packets to that address; empty if there is no route."""
        route = addressing.route_to(self._socket, address)
        link = links.find_link(self._socket, index=route.oif) if route is not None and route.oif else None
        return "" if link is None else link.name

    def surroundings(self) -> own_networks.Surroundings:
        """The host's own addresses, routes and resolvers. They are read again only if they may have changed. Raises
        OSError."""
        return self._networks.now()

    def held_addresses(self) -> tuple[own_networks.HeldAddress, ...]:
        """Every address of the host's own links. Raises OSError."""
        return self._networks.now().addresses

    # --- segments ------------------------------------------------------------------------------------------------

    def ensure_bridge(self, name: str, mac: str, mtu: int, addresses: Sequence[links.Interface]) -> links.Link:
        """Ensure the service bridge, up, with its gateways. Raises NetlinkError(EEXIST) if another kind of link has the
        name."""
        _announce_changes(name)  # before an existing bridge gets its MAC back
        bridge = links.ensure_bridge(self._socket, name, mac, mtu)
        _announce_changes(name)
        six = any(address.version == 6 for address in addresses)
        if not six:
            sysctl.ensure(f"ipv6/conf/{name}/disable_ipv6", "1")  # no link-local address of the host
        else:
            sysctl.ensure(f"ipv6/conf/{name}/disable_ipv6", "0")
            sysctl.wish(f"ipv6/conf/{name}/accept_ra", "0")
            # Before the bridge has a port: the host resolves no neighbour while its link-local address is tentative.
            for setting in sysctl.NO_DAD:
                sysctl.wish(f"ipv6/conf/{name}/{setting}", "0")
        sysctl.ensure(f"ipv4/conf/{name}/arp_ignore", "1")  # containers cannot probe the host's other addresses
        # Two slots of a service communicate through the gateway, which must not send redirects. If the setting is on
        # for `all`, the fence drops the redirects.
        sysctl.ensure(f"ipv4/conf/{name}/send_redirects", "0")
        sysctl.forward(name, six=six)
        for address in addresses:
            addressing.ensure_address(self._socket, bridge.index, address)
        return bridge

    def ensure_gateway(self, bridge: str, address: links.Interface) -> None:
        """Add a gateway to a bridge, after its service has claimed another slot."""
        link = links.find_link(self._socket, bridge)
        if link is not None:
            addressing.ensure_address(self._socket, link.index, address)

    def remove_gateway(self, bridge: str, address: links.Interface) -> None:
        """Remove the gateway from the bridge; no error if there is no such bridge."""
        link = links.find_link(self._socket, bridge)
        if link is not None:
            addressing.remove_address(self._socket, link.index, address)

    def close_subnets(self, subnets: Sequence[links.Network]) -> None:
        """Make subnets unreachable on the node, except for the routes of routed ports. Idempotent."""
        routed_ports.close_subnets(self._socket, subnets)

    def open_subnets(self, subnets: Sequence[links.Network]) -> None:
        """Remove the routes of `close_subnets`. Idempotent."""
        routed_ports.open_subnets(self._socket, subnets)

    def closed_subnets(self) -> set[links.Network]:
        """The networks that the node's routes make unreachable: for resync only."""
        return routed_ports.closed_subnets()

    def remove_link(self, name: str) -> bool:
        """Remove the link; False if there was none. Returns as soon as the link is no longer visible."""
        return self._link_deleter.remove(name)

    def forget_neighbour(self, bridge: int, address: str) -> None:
        """Remove the neighbour entry of a released address."""
        addressing.remove_neighbour(self._socket, bridge, ipaddress.ip_address(address))

    # --- ports ---------------------------------------------------------------------------------------------------

    def create_port(self, port: links.Port, netns_fd: int) -> links.PortEnds:
        """Create the veth, both ends down."""
        return links.create_port(self._socket, port, netns_fd)

    def configure_inside(
        self,
        netns_fd: int,
        index: int,
        ifname: str,
        addresses: Sequence[links.Interface],
        routes: Sequence[links.Route],
        *,
        gateway: ports.GatewayEnd | None = None,
    ) -> list[links.Route]:
        """Bring the container's end up with its addresses; returns the routes that existed already. `gateway`: of a
        routed port."""
        return ports.configure(netns_fd, index, ifname, addresses, routes, gateway=gateway)

    def route_by_source(
        self, netns_fd: int, index: int, addresses: Sequence[links.Interface], routes: Sequence[links.Route]
    ) -> None:
        """Let the container's packets from these addresses leave by this interface of several. Raises OSError."""
        source_routes.ensure(netns_fd, index, addresses, routes)

    def forget_sources(self, path: str, container: netns.NetnsId, addresses: Sequence[links.Address]) -> None:
        """Remove the rules of `route_by_source`, if the namespace is still there. Raises OSError."""
        source_routes.remove(path, container, addresses)

    def raise_port(self, index: int, owner: str = "") -> None:
        """Bring the host end up, with its owner as alias; packets flow from then on."""
        links.raise_port(self._socket, index, owner)

    def raise_routed(self, end: routed_ports.RoutedEnd, owner: str = "") -> None:
        """Bring the host end of a routed port up, with its gateways, routes and neighbours; packets flow from then on.
        Idempotent."""
        routed_ports.configure(end)
        routed_ports.raise_port(self._socket, end, owner)

    def set_gateway(self, netns_fd: int, index: int, gateway: ports.GatewayEnd) -> None:
        """Restore the gateways' neighbour entries in the container of a routed port."""
        ports.set_gateway(netns_fd, index, gateway)

    def set_neighbours(self, index: int, addresses: Sequence[links.Address], mac: str) -> None:
        """Give the container of a routed port another MAC."""
        routed_ports.set_neighbours(self._socket, index, addresses, mac)

    def routed_lacks(self, ends: Sequence[routed_ports.RoutedEnd]) -> dict[str, list[str]]:
        """What is missing on the node for each routed port that is not whole, by the name of its host end. Reads
        only."""
        seen = routed_ports.views(ends[0].index if len(ends) == 1 else 0) if ends else {}
        return routed_ports.lacking(ends, seen)

    def announce(self, host: int, netns_fd: int, ifname: str, mac: str, addresses: Sequence[links.Address]) -> None:
        """Have the addresses of the container's end announced to its neighbours, soon. `host`: the index of the host
        end."""
        self._announcer.announce(host, netns_fd, ifname, mac, addresses)

    def mark(self, index: int, owner: str) -> None:
        """Store the owner in the link's alias."""
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
        """The interface of that name, and those of the sought addresses and routes that it has. Reads only, with a
        bound."""
        return ports.inspect(netns_fd, ifname, sought)

    def has_default_route(self, netns_fd: int, version: int) -> bool:
        """Whether the container has a default route of that IP version. Raises OSError if it has too many routes."""
        return ports.has_default_route(netns_fd, links.AF_INET if version == 4 else links.AF_INET6)

    def forget_flows(self, addresses: Sequence[str]) -> None:
        """Have the conntrack entries of released addresses deleted, soon."""
        self._conntrack_flusher.forget(addresses)

    def finish_flows(self, addresses: Sequence[str]) -> None:
        """Return when the conntrack entries of those of `addresses` that `forget_flows` had queued are deleted."""
        self._conntrack_flusher.finish(addresses)

    def close(self) -> None:
        """End the threads after they have finished their queues."""
        self._conntrack_flusher.close()
        self._link_deleter.close()
        self._announcer.close()
        self._lookup.close()
        self._table.close()
        self._networks.close()


def _announce_changes(bridge: str) -> None:
    """Have the kernel announce the addresses of a bridge whose MAC changes; does nothing without such a bridge. Where
    /proc/sys is read-only the neighbours learn the new MAC later, so that is no error."""
    for setting in (f"ipv4/conf/{bridge}/arp_notify", f"ipv6/conf/{bridge}/ndisc_notify"):
        if sysctl.read(setting) not in (None, "1"):
            sysctl.wish(setting, "1")
