"""What of this node has names: its records at the start, its addresses, guests, and what agents have registered."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping

from cni.daemon.dns.book import NameBook
from cni.daemon.events import GuestsChanged, NamesRegistered
from cni.daemon.model import dns_members, dns_names
from cni.daemon.model.dns_names import Zone
from cni.daemon.state.state import State
from cni.daemon.state.tables import Tables
from cni.host.links import Link

OWN, ELSEWHERE = "own", "elsewhere"  # who has registered names


class NodeNames:
    """Keeps this node's part of the book. Thread-safe, as the book is."""

    def __init__(
        self, book: NameBook, state: State, registry: Tables, zone: str, links: Callable[[], Iterable[Link]]
    ) -> None:
        """`zone`: of the settings; "" for the default; `links`: those of the node, now."""
        self._book, self._state, self._registry, self._zone = book, state, registry, zone.lower().rstrip(".")
        self._guests: set[str] = set()
        self._elsewhere: tuple[Zone | None, Mapping[str, tuple[str, ...]]] = (None, {})
        self._zone_then = self.zone()
        self._links = links

    def take_in(self) -> None:
        """Take in what is recorded. A container whose link is gone has no name: a plugin has removed it while no daemon
        ran, and its deletion is queued."""
        links = {link.name for link in self._links()}
        for attachment in self._state.snapshot():
            if attachment.state == "live" and attachment.host_veth in links:
                self._book.put(dns_members.of_attachment(attachment))
        self.on_guests_changed(GuestsChanged())
        self.on_names_registered(NamesRegistered())

    def current(self) -> Zone:
        """The zone now, once the names that were registered on other nodes are taken in."""
        zone, names = self.zone(), self._book.registered_elsewhere()
        if (zone, names) != self._elsewhere:
            self._elsewhere = (zone, names)
            self._book.set_registered(ELSEWHERE, registered_in(zone, names.items()))
        return zone

    def zone(self) -> Zone:
        """The zone as the node is now: an agent may set deployment and ranges."""
        node = self._state.node
        name = self._zone or dns_names.default_zone(node.deployment)
        deployment = dns_names.label(node.deployment) or ""
        return Zone(name, deployment, agent=node.set_up, ranges=tuple(node.cidrs))

    def addresses(self) -> list[str]:
        """The node's own addresses. Called regularly: it follows a change of the node's settings as well."""
        if self.zone() != self._zone_then:
            self.on_names_registered(NamesRegistered())
        addresses = [str(address) for address in self._state.node_addresses()]
        self._book.set_own_node(dns_names.label(socket.gethostname().partition(".")[0]) or "", tuple(addresses))
        return addresses

    def on_guests_changed(self, _: GuestsChanged) -> None:
        """Take in the guests of the node."""
        members = [
            dns_members.of_guest(guest.id, guest.service, guest.held.ip, guest.isolation)
            for guest in self._registry.guests.all().values()
        ]
        before, self._guests = self._guests, {member.key for member in members}
        self._book.set_group("guest:", members, before)

    def on_names_registered(self, _: NamesRegistered) -> None:
        """Take in the names that agents have registered."""
        self._zone_then = self.zone()
        names = {name.name: name.addresses for name in self._registry.names.all().values()}
        self._book.set_registered(OWN, registered_in(self._zone_then, names.items()))


def registered_in(zone: Zone, names: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """Registered names as they are looked up: relative to the zone if they are in it, else as they are. What is no name
    is left out."""
    found: dict[str, tuple[str, ...]] = {}
    for text, addresses in names:
        name = dns_names.dotted(text)
        if name is None:
            continue
        subject = zone.subject(name.split("."))
        inside = subject.relative if subject is not None else None
        found[inside or name] = tuple(dict.fromkeys((*found.get(inside or name, ()), *addresses)))
    return found
