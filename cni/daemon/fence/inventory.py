"""What the fence knows: the ports that were added, the bridges, and what lies behind the tunnels. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network

from cni import openings
from cni.daemon.fence.believed import believed, without
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.from_records import RemoteView, bridge_of, port_of
from cni.daemon.fence.model import FenceNode, FencePort
from cni.daemon.fence.policy_changes import State as PolicyState
from cni.daemon.fence.port_table import PortTable
from cni.daemon.model.records import Attachment
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.defaults import ROUTED
from cni.openings import ListedOpenings, Opening, Openings


class Inventory:
    """One thread at a time; the lock of `FenceTables` ensures that. Its ports are not the records: at a detach they
    outlive the port briefly.
    """

    def __init__(self, state: State, settings: Settings, bridge_names: bool) -> None:
        """`bridge_names`: whether the kernel's nftables can match a frame by its bridge."""
        self._state, self._settings, self._bridge_names = state, settings, bridge_names
        self._table = PortTable()
        self._networks: Counter[str | None] = Counter()
        self._bridges: dict[str, None] = {}
        self._beyond = RemoteView()
        self._of_settings = openings.read(settings.isolation.reach, settings.isolation.from_)
        self._of_lists: Counter[ListedOpenings] = Counter()
        self._openings = self._of_settings
        self._has_opened = bool(self._openings)
        self._followed: tuple[Opening, ...] = ()
        self.refused: dict[str, str] = {}
        """What of the remote view the fence leaves out, and why."""

    def reset(self, attachments: Iterable[Attachment], bridges: Iterable[str]) -> None:
        """Replaces ports and bridges by those of the records."""
        self._table.reset(attachments)
        self._networks = Counter(port.network for port in self._table.ports.values())
        self._of_lists = Counter(port.opens for port in self._table.ports.values() if port.opens)
        self._take_openings()
        self._bridges = dict.fromkeys(bridges)

    def add_bridge(self, name: str) -> None:
        """Records a bridge of the overlay."""
        self._bridges[name] = None

    def remove_bridge(self, name: str) -> None:
        """Forgets a bridge, recorded or not."""
        self._bridges.pop(name, None)

    def add_port(self, attachment: Attachment) -> FencePort:
        """Records the attachment's port, in place of one of the same name."""
        self.remove_port(attachment.host_veth)
        port = self._table.add(attachment)
        self._networks[port.network] += 1
        if port.opens:
            self._of_lists[port.opens] += 1
            self._take_openings()
        return port

    def remove_port(self, name: str) -> FencePort | None:
        """Forgets a port; None if it was not recorded."""
        port = self._table.remove(name)
        if port is None:
            return None
        self._networks[port.network] -= 1
        if port.opens:
            self._of_lists[port.opens] -= 1
            self._take_openings()
        return port

    def port(self, attachment: Attachment) -> FencePort:
        """The attachment's port, as recorded; without policies where it is not."""
        return self._table.ports.get(attachment.host_veth) or port_of(attachment)

    @property
    def table(self) -> PortTable:
        """The ports, and the policies that isolate them."""
        return self._table

    def before_policies(self) -> PolicyState:
        """What `policies` is compared with after a change."""
        return self._table.mark(self.node)

    def policies(self) -> PolicyState:
        """The rules of policies and the ports that they lead from, as they should be now."""
        return self._table.state(self.node)

    def _take_openings(self) -> None:
        """What is open now. The rules for it stay once something was open, with empty sets: they are removed when the
        daemon starts and nothing is listed."""
        listed = [openings.of_list(each) for each, ports in self._of_lists.items() if ports > 0]
        self._openings = openings.together([self._of_settings, *listed])
        self._has_opened = self._has_opened or bool(self._openings)

    def opens_alone(self, port: FencePort) -> bool:
        """Whether the port's network list opens something, and no other port has the same list."""
        known = self._table.ports.get(port.name)
        others = self._of_lists[port.opens] - (known is not None and known.opens == port.opens)
        return bool(port.opens) and others <= 0

    def set_beyond(self, beyond: RemoteView) -> None:
        """Records what lies behind the tunnels, as far as the fence accepts it."""
        self._beyond, self.refused = believed(beyond, self._state.cidrs)

    @property
    def beyond(self) -> RemoteView:
        """What lies behind the tunnels, as far as the fence accepts it."""
        return self._beyond

    @property
    def openings(self) -> Openings:
        """What the settings open, and the network lists of the ports."""
        return self._openings

    @property
    def followed(self) -> tuple[Opening, ...]:
        """The endpoints to which this node translates listed destinations."""
        return self._followed

    def set_followed(self, followed: tuple[Opening, ...]) -> bool:
        """Records the endpoints to which this node translates listed destinations; whether they changed."""
        changed = self._followed != followed
        self._followed = followed
        return changed

    def has_local_members(self, network: str | None) -> bool:
        """Whether the network has members on this node."""
        return self._networks[network] > 0

    def has_members(self, network: str) -> bool:
        """Whether the network has members, here or on other nodes."""
        return self.has_local_members(network) or network in self._beyond.networks()

    def is_routed(self) -> bool:
        """Whether this node has no bridge, because its services are attached without one."""
        routed = self._settings.attach == ROUTED or any(s.is_routed for s in self._state.services.values())
        return routed and not self._bridges

    def desired(self) -> DesiredState:
        """What the tables should hold now."""
        node = self.node()
        ports = tuple(self._table.ports.values())
        taken = frozenset([*node.addresses, *(address for port in ports for address in port.addresses)])
        return DesiredState(
            node=node,
            bridges=tuple(bridge_of(name) for name in self._bridges),
            ports=ports,
            remotes=without(self._beyond, taken),
            edges=self._beyond.edges,
            policies=self._table.rules(lambda: node),
        )

    def node(self) -> FenceNode:
        """This node, as the fence sees it."""
        state = self._state
        return FenceNode(
            clusters=state.cidrs,
            addresses=tuple(str(address) for address in state.node_addresses()),
            connected=tuple(map(str, state.connected)),
            masquerade=self._settings.masquerade,
            routed=self._settings.underlay == "routed",
            tunnels=self._beyond.tunnels,
            far=self._beyond.far,
            bridge_names=self._bridge_names,
            openings=self._has_opened,
            reach=self._reach(),
            senders=self._senders(),
        )

    def _reach(self) -> tuple[Opening, ...]:
        """The listed destinations of the overlay's families, with the containers of listed services."""
        versions = {ip_network(cidr).version for cidr in self._state.cidrs}
        found = set(self._followed)
        for entry in self._openings.reach:
            addresses = self._of_service(entry.service) if entry.service else (entry.address,)
            found.update(entry.at(address) for address in addresses)
        return tuple(sorted(opening for opening in found if ip_address(opening.address).version in versions))

    def _senders(self) -> tuple[str, ...]:
        """The listed senders as CIDRs, without overlaps."""
        found = []
        for entry in self._openings.senders:
            if entry.cidr:
                found.append(ip_network(entry.cidr))
            else:
                addresses = self._of_service(entry.service) if entry.service else self._beyond.nodes
                found += map(ip_network, addresses)
        four = [network for network in found if isinstance(network, IPv4Network)]
        six = [network for network in found if isinstance(network, IPv6Network)]
        return (*map(str, collapse_addresses(four)), *map(str, collapse_addresses(six)))

    def _of_service(self, name: str) -> set[str]:
        """The addresses of a service's containers, on this node and on others."""
        ports = tuple(self._table.ports.values())  # at once: the DNS server's thread does not hold the tables' lock
        here = (port.addresses for port in ports if port.service == name)
        elsewhere = (addresses for service, addresses in self._beyond.services if service == name)
        return {address for addresses in (*here, *elsewhere) for address in addresses}
