"""Builds this node's document: its endpoints, the subnets behind it, and the members of its isolation networks."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cni import __version__, openings, proc
from cni.daemon.cluster.store import ClusterStore
from cni.daemon.cluster.store_records import publishable
from cni.daemon.model.cluster_records import Dedicated, NatWord, NodeDocument
from cni.daemon.model.endpoints import split_endpoint
from cni.daemon.settings import Settings
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.daemon.state.tables import Tables
from cni.host import netns, underlay
from cni.host.own_networks import is_own
from cni.overlay.address import join_host_port

STALE = 10.0  # seconds for which the underlay's addresses are cached


class NodeDocumentBuilder:
    """Builds the document of one node."""

    def __init__(
        self,
        *,
        settings: Settings,
        state: State,
        identity: Identity,
        registry: Tables,
        store: ClusterStore,
        nat_word: Callable[[], NatWord | None],
    ) -> None:
        """`nat_word`: what this node publishes for NAT traversal, None if that is off."""
        self._settings, self._state, self._identity = settings, state, identity
        self._registry, self._store, self._nat_word = registry, store, nat_word
        self._opened = openings.read(settings.isolation.reach, settings.isolation.from_)
        self._underlay_seen: list[str] = []
        self._seen_at = -STALE

    def document(self, public_key: str = "") -> tuple[NodeDocument, tuple[str, ...]]:
        """The present document, and the parts left out because the other nodes would otherwise refuse the document.
        `public_key`: the key that the node is about to use; "" for the present one."""
        return publishable(self._whole(public_key or self._identity.public_key()))

    def _whole(self, public_key: str) -> NodeDocument:
        state = self._state
        lost = state.lost
        subnets: list[str] = []
        dedicated = {}
        for service in state.services.values():
            if service.mode == "dedicated":
                own = self._identity.dedicated(service.name)
                subnets_of_service = tuple(cidr for cidr in service.subnets if cidr not in lost)
                dedicated[service.name] = Dedicated(own.public_key, own.port, subnets_of_service)
            else:
                # A shared service has no subnets: the record of the shared bridge has them.
                subnets += (cidr for cidr in service.subnets if cidr not in lost)
        members: dict[str, set[str]] = {}
        attachments = state.snapshot()
        listed = map(openings.of_list, {attachment.opens for attachment in attachments})
        services: dict[str, set[str]] = {name: set() for name in openings.together([self._opened, *listed]).services()}
        for attachment in attachments:
            if attachment.service in services:
                services[attachment.service].update(attachment.ips)
            if attachment.isolation is not None:
                members.setdefault(attachment.isolation, set()).update(attachment.ips)
        for guest in self._registry.guests.all().values():
            if guest.isolation is not None:
                members.setdefault(guest.isolation, set()).add(guest.held.ip)
        endpoints = self._reached_at()
        port, hosts = _of_one_port(endpoints, self._state.node.wg_port)
        member, nat = self._identity.member(), self._nat_word()
        if nat is not None and nat.mapping == "endpoint-independent":
            endpoints = tuple(dict.fromkeys((*endpoints, *nat.outside)))  # for nodes that know no `nat`
        return NodeDocument(
            identity=member.identity,
            name=socket.gethostname(),
            place=self.place(),
            node_id=member.node_id,
            public_key=public_key,
            port=port,
            hosts=hosts,
            slices=member.slices,
            subnets=tuple(sorted(subnets)),
            dedicated=dedicated,
            members={network: tuple(sorted(addresses)) for network, addresses in sorted(members.items())},
            version=__version__,
            signer=self._identity.signer().name,
            endpoints=endpoints,
            ranges=tuple(state.cidrs),
            nat=nat,
            services={name: tuple(sorted(addresses)) for name, addresses in sorted(services.items()) if addresses},
        )

    def _reached_at(self) -> tuple[str, ...]:
        """The endpoints at which other nodes can call this node, the best first."""
        if self._settings.advertise:
            return tuple(join_host_port(*split_endpoint(endpoint)) for endpoint in self._settings.advertise)
        towards_store = self._store.local_address
        is_place = towards_store and not ipaddress.ip_address(towards_store).is_loopback
        hosts = [towards_store] if is_place and is_own(towards_store) else []
        hosts += self._underlay()
        return tuple(join_host_port(host, self._state.node.wg_port) for host in dict.fromkeys(hosts))

    def forget_addresses(self) -> None:
        """Read the underlay's addresses again for the next document."""
        self._seen_at = -STALE

    def _underlay(self) -> list[str]:
        """The underlay's addresses, cached for `STALE` seconds: reading them means reading all routes."""
        if time.monotonic() - self._seen_at >= STALE:
            self._underlay_seen = [str(address) for address in underlay.addresses(self._state.cidrs)]
            self._seen_at = time.monotonic()
        return self._underlay_seen

    def place(self) -> str:
        """A digest of the machine's boot, the network namespace and the run directory. It distinguishes this daemon
        from one with a copy of its data directory."""
        boot = proc.boot_id()
        text = f"{boot} {netns.own()} {Path(self._settings.run_dir).resolve()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_one_port(endpoints: tuple[str, ...], default: int) -> tuple[int, tuple[str, ...]]:
    """The port of the first endpoint, and the hosts of all endpoints with that port: what earlier versions read."""
    split = [split_endpoint(endpoint) for endpoint in endpoints]
    port = split[0][1] if split else default
    return port, tuple(dict.fromkeys(host for host, of in split if of == port))
