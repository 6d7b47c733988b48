"""Who asks, and what the asker may see: exactly what the fence lets it open a flow to.

The fence's own decider (`fence/explain/why.py`) decides. It judges a pair of classes once: of containers, for example,
it compares nothing but their networks. Where the settings open something (`isolation.reach`, `isolation.from`), it
judges each pair of addresses.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from cni.daemon.dns.book import NameBook
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.explain import why
from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView, GuestEndpoint, of_guest
from cni.daemon.fence.explain.translated import PortSpec
from cni.daemon.fence.explain.verdict import Verdict
from cni.daemon.fence.from_records import RemoteView, port_of
from cni.daemon.fence.status import FenceStatus
from cni.daemon.model.dns_members import Member
from cni.daemon.model.records import Attachment
from cni.daemon.state.tables import Tables

Kind = EndpointKind


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks. `member`: its names, if it has some; `klass`: askers of one class see the same; `endpoints`: by IP
    version."""

    endpoints: Mapping[int, Endpoint]
    klass: Hashable
    member: Member | None = None

    @property
    def any_endpoint(self) -> Endpoint:
        return next(iter(self.endpoints.values()))


class Visibility:
    """What each asker may see. For one thread."""

    def __init__(self, book: NameBook, fence: FenceStatus, registry: Tables) -> None:
        self._book, self._fence, self._registry = book, fence, registry
        self._beyond, self._followed = RemoteView(), fence.followed
        self._view = FenceView(desired=DesiredState(node=fence.node()))
        self._verdicts: dict[tuple[Hashable, Hashable], bool] = {}
        self._askers: dict[str, Asker | None] = {}
        self._listed: dict[str | None, frozenset[str]] = {}  # the members beyond the tunnels, by network

    def renew(self) -> None:
        """Take the present state of the fence: after each change of it, or of the book."""
        self._beyond, self._followed = self._fence.beyond, self._fence.followed
        self._listed = {remote.network: remote.addresses for remote in self._beyond.remotes}
        self._view = FenceView(desired=DesiredState(node=self._fence.node(), edges=self._beyond.edges))
        self._verdicts.clear()
        self._askers.clear()

    @property
    def is_current(self) -> bool:
        """Whether nothing beyond the tunnels has changed since `renew`."""
        return self._beyond is self._fence.beyond and self._followed is self._fence.followed

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """The addresses of this node, at which its server answers."""
        return self._view.desired.node.addresses

    # --- the asker ---------------------------------------------------------------------------------------------------

    def asker(self, source: str) -> Asker | None:
        """Who has the source address; None for an address outside the overlay, or one that is not in use."""
        if source not in self._askers:
            if len(self._askers) > 65536:
                self._askers.clear()
            found = self._find(source)
            if found is not None and self._view.desired.node.openings:
                found = replace(found, klass=(found.klass, source))
            self._askers[source] = found
        return self._askers[source]

    def _find(self, source: str) -> Asker | None:
        member = self._book.at(source)
        if member is not None and member.place == "container":
            assert member.attachment is not None
            return self._container(member, member.attachment)
        if source in self._view.desired.node.addresses or self._is_host_process(source):
            return self._of_all_versions(Kind.HOST, source, None, None)
        for edge in self._beyond.edges:
            if edge.address == source:
                endpoint = Endpoint(Kind.EDGE, source, "an edge peer", edge.network, allowed=edge.allowed)
                return Asker({endpoint.version: endpoint}, ("edge", source))
        if (member is not None and member.place == "guest") or self._is_edge(source):
            network = member.network if member is not None else None
            endpoint = self._endpoint_beyond(Kind.CALLER, source, network)
            return Asker({endpoint.version: endpoint}, ("caller", network, endpoint.version, _company(member)), member)
        if not self._is_far(source):
            return None
        network = self._network_beyond(source)
        return self._of_all_versions(Kind.REMOTE, source, network, member)

    def _container(self, member: Member, attachment: Attachment) -> Asker:
        guest = _guest_endpoint(attachment)
        endpoints: dict[int, Endpoint] = {ip_address(ip).version: of_guest(guest, ip) for ip in attachment.ips}
        # Several interfaces of one container reach one another in it, whatever their networks.
        alone = "" if not self._book.has_several_interfaces(member.id) else member.id
        klass = ("container", member.network, member.service, tuple(endpoints), alone)
        return Asker(endpoints, klass, member)

    def _of_all_versions(self, kind: Kind, source: str, network: str | None, member: Member | None) -> Asker:
        """An asker of which this node knows one address: its others are taken to be alike."""
        endpoint = self._endpoint_beyond(kind, source, network)
        return Asker({4: endpoint, 6: endpoint}, (kind, network, _company(member)), member)

    def _endpoint_beyond(self, kind: Kind, address: str, network: str | None) -> Endpoint:
        return Endpoint(kind, address, "", network, listed=network is not None)

    def _is_host_process(self, source: str) -> bool:
        return any(process.ip == source for process in self._registry.hosts.all().values())

    def _is_edge(self, source: str) -> bool:
        return any(edge.held.ip == source for edge in self._registry.edges.all().values())

    def _is_far(self, address: str) -> bool:
        value = ip_address(address)
        return any(value in ip_network(cidr) for cidr in self._beyond.far)

    def _network_beyond(self, address: str) -> str | None:
        """The isolation network of an address behind the tunnels, as the fence has it."""
        return next((remote.network for remote in self._beyond.remotes if address in remote.addresses), None)

    # --- what is seen ------------------------------------------------------------------------------------------------

    def sees(self, asker: Asker, member: Member, address: str) -> bool:
        """Whether the asker may open a flow to that address of a member."""
        version = 6 if ":" in address else 4
        source = asker.endpoints.get(version)
        if source is None:
            return False
        own = member.id if asker.member is not None and member.id == asker.member.id else ""
        return self._decide(asker, source, (member.place, member.network, version, own), member, address)

    def _decide(self, asker: Asker, source: Endpoint, klass: Hashable, member: Member, address: str) -> bool:
        if source.kind is Kind.EDGE:
            return self._may(source, self.endpoint_of(member, address))
        if member.place != "container" and member.network is not None and not self._is_listed(member.network, address):
            return False
        if self._view.desired.node.openings:  # what the settings open goes by addresses
            return self._may(source, self.endpoint_of(member, address))
        known = self._verdicts.get((asker.klass, klass))
        if known is None:
            known = self._verdicts[asker.klass, klass] = self._may(source, self.endpoint_of(member, address))
        return known

    def _is_listed(self, network: str, address: str) -> bool:
        return address in self._listed.get(network, ())

    def sees_address(self, asker: Asker, address: str) -> bool:
        """Whether the asker may open a flow to an address: of a node, or one that was registered."""
        source = asker.endpoints.get(ip_address(address).version)
        return source is not None and self._may(source, self.endpoint_at(address))

    def verdict(self, asker: Asker, address: str, member: Member | None) -> Verdict | None:
        """The decider's verdict on a flow to the address; None if the asker has no address of that IP version."""
        source = asker.endpoints.get(6 if ":" in address else 4)
        target = self.endpoint_of(member, address) if member is not None else self.endpoint_at(address)
        return why.decide(self._view, source, target) if source is not None else None

    def _may(self, source: Endpoint, target: Endpoint) -> bool:
        if why.decide(self._view, source, target).allowed:
            return True
        listed = [each for each in self._view.desired.node.reach if each.port and each.address == target.address]
        ports = [PortSpec(each.port, each.protocol) for each in listed]
        return any(why.decide(self._view, source, target, port).allowed for port in ports)

    def endpoint_of(self, member: Member, address: str) -> Endpoint:
        """The endpoint that an address of a member is."""
        if member.attachment is not None:
            return of_guest(_guest_endpoint(member.attachment), address)
        return self._endpoint_beyond(Kind.CALLER if member.place == "guest" else Kind.REMOTE, address, member.network)

    def endpoint_at(self, address: str) -> Endpoint:
        """The endpoint that has an address, as the fence would take it."""
        member = self._book.at(address)
        if member is not None:
            return self.endpoint_of(member, address)
        edge = next((edge for edge in self._beyond.edges if edge.address == address), None)
        if edge is not None:
            return Endpoint(Kind.EDGE, address, "", edge.network, allowed=edge.allowed)
        kind = self._kind_at(address)
        network = self._network_beyond(address) if kind is Kind.REMOTE else None
        return self._endpoint_beyond(kind, address, network)

    def _kind_at(self, address: str) -> Kind:
        value, node = ip_address(address), self._view.desired.node
        if value.is_loopback:
            return Kind.LOOPBACK
        if address in node.addresses:
            return Kind.HOST
        if not any(value in ip_network(cluster) for cluster in node.clusters):
            return Kind.OUTSIDE
        return Kind.REMOTE if self._is_far(address) else Kind.UNKNOWN


def _company(member: Member | None) -> Hashable:
    """What decides about aliases, beside the network."""
    return member.service if member is not None else ""


def _guest_endpoint(attachment: Attachment) -> GuestEndpoint:
    addresses = tuple(assigned.address for assigned in attachment.addresses)
    return GuestEndpoint(attachment.container, attachment.pod, port_of(attachment), addresses)
