"""The names that exist now, by name and by address. Changed by the threads that attach, read by the server's thread.

Every change counts `generation` up before it returns, so an answer that was made before the change is not used after
it: a name is served once an ADD is answered, and is gone before its address is given out again.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cni.daemon.events import AttachmentLeaves, AttachmentLive
from cni.daemon.model import dns_members
from cni.daemon.model.dns_members import Member

if TYPE_CHECKING:
    from cni.daemon.cluster.name_records import NameRecords

log = logging.getLogger(__name__)

MOST_TOLD = 1024  # texts that are no labels, of which the log has a line each


class NameBook:
    """Names, and who has them. Thread-safe; no call waits for anything but another call."""

    def __init__(self, elsewhere: NameRecords | None) -> None:
        """`elsewhere`: the names of other nodes; None outside a cluster."""
        self._elsewhere = elsewhere
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._by_name: dict[str, dict[str, Member]] = {}  # a service, a container inside a service
        self._by_alias: dict[str, dict[str, Member]] = {}
        self._by_address: dict[str, Member] = {}
        self._registered: dict[str, Mapping[str, tuple[str, ...]]] = {}  # by who registered them
        self._own_node: tuple[str, tuple[str, ...]] = ("", ())
        self._interfaces: Counter[str] = Counter()  # of each container
        self._told: set[str] = set()
        self._generation = 0

    @property
    def generation(self) -> int:
        """Grows with every change."""
        return self._generation + (self._elsewhere.generation if self._elsewhere is not None else 0)

    @property
    def is_whole(self) -> bool:
        """Whether the names of other nodes are known, where there are any."""
        return self._elsewhere is None or self._elsewhere.loaded

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
            self._generation += 1

    def drop(self, key: str) -> None:
        """Remove a member; an unknown one is no error."""
        with self._lock:
            self._drop(key)
            self._generation += 1

    def set_group(self, prefix: str, members: Iterable[Member], before: Iterable[str]) -> None:
        """Replace the members with the keys `before` by `members`, whose keys begin with `prefix`."""
        with self._lock:
            for key in before:
                self._drop(key)
            for member in members:
                if member.key.startswith(prefix):
                    self._put(member)
            self._generation += 1

    def set_registered(self, source: str, names: Mapping[str, tuple[str, ...]]) -> None:
        """Set the names that one source has registered, each with its addresses."""
        with self._lock:
            if names:
                self._registered[source] = names
            else:
                self._registered.pop(source, None)
            self._generation += 1

    def set_own_node(self, name: str, addresses: tuple[str, ...]) -> None:
        """Set the label of this node, "" for none, and its addresses."""
        with self._lock:
            if self._own_node != (name, addresses):
                self._own_node = (name, addresses)
                self._generation += 1

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
            found = list(self._by_name.get(name, {}).values())
        if self._elsewhere is not None:
            container, _, service = name.rpartition(".")
            found += (m for m in self._elsewhere.of_service(service) if not container or m.container == container)
        return found

    def aliased(self, alias: str) -> list[Member]:
        """The members with that alias."""
        with self._lock:
            found = list(self._by_alias.get(alias, {}).values())
        return found + (self._elsewhere.aliased(alias) if self._elsewhere is not None else [])

    def registered(self, name: str) -> list[str]:
        """The addresses that were registered under a name, each once."""
        with self._lock:
            return list(dict.fromkeys(ip for names in self._registered.values() for ip in names.get(name, ())))

    def node(self, name: str) -> list[str]:
        """The addresses of the nodes with that label."""
        return [address for own, addresses in self._nodes() if own == name for address in addresses]

    def node_at(self, address: str) -> str:
        """The label of the node that has an address; "" if none has it."""
        return next((own for own, addresses in self._nodes() if address in addresses), "")

    def _nodes(self) -> list[tuple[str, tuple[str, ...]]]:
        return [self._own_node, *(self._elsewhere.nodes() if self._elsewhere is not None else [])]

    def at(self, address: str) -> Member | None:
        """The member that has an address."""
        member = self._by_address.get(address)
        return member or (self._elsewhere.at(address) if self._elsewhere is not None else None)

    def registered_elsewhere(self) -> Mapping[str, tuple[str, ...]]:
        """The names that agents have registered on other nodes, as they wrote them."""
        return self._elsewhere.registered() if self._elsewhere is not None else {}

    def has_several_interfaces(self, container: str) -> bool:
        """Whether the container has more than one interface on the overlay."""
        return self._interfaces[container] > 1

    def size(self) -> int:
        """How many members have names."""
        return len(self._members)
