"""The names that exist now, by name and by address. Changed by the threads that attach, read by the server's thread.

Every change counts `generation` up before it returns, so an answer that was made before the change is not used after
it: a name is served once an ADD is answered, and is gone before its address is given out again.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from cni.daemon.events import AttachmentLeaves, AttachmentLive
from cni.daemon.model import dns_members
from cni.daemon.model.dns_members import Member

log = logging.getLogger(__name__)

MOST_TOLD = 1024  # texts that are no labels, of which the log has a line each


class NameBook:
    """Names, and who has them. Thread-safe; no call waits for anything but another call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._by_name: dict[str, dict[str, Member]] = {}  # a service, a container inside a service
        self._by_alias: dict[str, dict[str, Member]] = {}
        self._by_address: dict[str, Member] = {}
        self._registered: dict[str, Mapping[str, tuple[str, ...]]] = {}  # by who registered them
        self._nodes: dict[str, tuple[str, tuple[str, ...]]] = {}  # by identity: the node's label and addresses
        self._interfaces: Counter[str] = Counter()  # of each container
        self._told: set[str] = set()
        self.generation = 0
        """Grows with every change."""

    # --- changes -----------------------------------------------------------------------------------------------------

    def on_attached(self, event: AttachmentLive) -> None:
        """A container is attached."""
        self.put(dns_members.of_attachment(event.attachment))
        for text in dns_members.not_served(event.attachment):
            self._tell(text, event.attachment.service)

    def on_leaving(self, event: AttachmentLeaves) -> None:
        """A container is about to give its addresses back."""
        self.drop(dns_members.of_attachment(event.attachment).key)

    def put(self, member: Member) -> None:
        """Add a member, or replace the one of the same key."""
        with self._lock:
            self._drop(member.key)
            self._put(member)
            self.generation += 1

    def drop(self, key: str) -> None:
        """Remove a member; an unknown one is no error."""
        with self._lock:
            self._drop(key)
            self.generation += 1

    def set_group(self, prefix: str, members: Iterable[Member], before: Iterable[str]) -> None:
        """Replace the members with the keys `before` by `members`, whose keys begin with `prefix`."""
        with self._lock:
            for key in before:
                self._drop(key)
            for member in members:
                if member.key.startswith(prefix):
                    self._put(member)
            self.generation += 1

    def set_registered(self, source: str, names: Mapping[str, tuple[str, ...]]) -> None:
        """Set the names that one source has registered, each with its addresses."""
        with self._lock:
            if names:
                self._registered[source] = names
            else:
                self._registered.pop(source, None)
            self.generation += 1

    def set_node(self, identity: str, name: str, addresses: tuple[str, ...]) -> None:
        """Set the label and the addresses of a node; without addresses it has no name."""
        with self._lock:
            if self._nodes.get(identity) == (name, addresses):
                return
            if addresses and name:
                self._nodes[identity] = (name, addresses)
            else:
                self._nodes.pop(identity, None)
            self.generation += 1

    def _put(self, member: Member) -> None:
        self._members[member.key] = member
        self._interfaces[member.id] += 1
        own = f"{member.container}.{member.service}" if member.container and member.service else ""
        for name in (member.service, own):
            if name:
                self._by_name.setdefault(name, {})[member.key] = member
        for alias in member.aliases:
            self._by_alias.setdefault(alias, {})[member.key] = member
        for address in member.addresses:
            if member.place != "remote" or address not in self._by_address:
                self._by_address[address] = member

    def _drop(self, key: str) -> None:
        member = self._members.pop(key, None)
        if member is None:
            return
        self._interfaces[member.id] -= 1
        if not self._interfaces[member.id]:
            del self._interfaces[member.id]
        own = f"{member.container}.{member.service}"
        tables = ((self._by_name, (member.service, own)), (self._by_alias, member.aliases))
        for table, names in tables:
            for name in names:
                holders = table.get(name)
                if holders is not None and holders.pop(key, None) is not None and not holders:
                    del table[name]
        for address in member.addresses:
            if self._by_address.get(address) is member:
                del self._by_address[address]

    def _tell(self, text: str, service: str) -> None:
        if text not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(text)
            log.warning(
                "service %r: %r is not served as a name: it is no label of letters, digits and -", service, text
            )

    # --- questions ---------------------------------------------------------------------------------------------------

    def named(self, name: str) -> list[Member]:
        """The members of a service, or the containers of a service with that name."""
        with self._lock:
            return list(self._by_name.get(name, {}).values())

    def aliased(self, alias: str) -> list[Member]:
        """The members with that alias."""
        with self._lock:
            return list(self._by_alias.get(alias, {}).values())

    def registered(self, name: str) -> list[str]:
        """The addresses that were registered under a name, each once."""
        with self._lock:
            return list(dict.fromkeys(ip for names in self._registered.values() for ip in names.get(name, ())))

    def node(self, name: str) -> list[str]:
        """The addresses of the nodes with that label."""
        with self._lock:
            return [address for own, addresses in self._nodes.values() if own == name for address in addresses]

    def node_at(self, address: str) -> str:
        """The label of the node that has an address; "" if none has it."""
        with self._lock:
            return next((own for own, addresses in self._nodes.values() if address in addresses), "")

    def at(self, address: str) -> Member | None:
        """The member that has an address."""
        return self._by_address.get(address)

    def has_several_interfaces(self, container: str) -> bool:
        """Whether the container has more than one interface on the overlay."""
        return self._interfaces[container] > 1

    def size(self) -> int:
        """How many members have names."""
        return len(self._members)
