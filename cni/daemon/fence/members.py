"""Changes whom the fence lets in: bridges, ports, policies, what is open besides, and the members on other nodes.

A port that was not added is closed, so a failure here opens nothing: the attach fails instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from cni.daemon.fence import compare, elements, policy_changes, ruleset
from cni.daemon.fence.enforcement import FenceEnforcement
from cni.daemon.fence.follower import Follower, endpoints, virtual
from cni.daemon.fence.from_records import RemoteView, bridge_of, change_of_remotes, port_of
from cni.daemon.fence.model import TABLE, FenceNode, FencePort
from cni.daemon.fence.port_table import PortTable
from cni.daemon.fence.tables import FenceTables, listing
from cni.daemon.model.records import Attachment
from cni.daemon.state.state import State
from cni.errors import FenceFailed
from cni.host import nat_reader

log = logging.getLogger(__name__)


class FenceMembers:
    """Adds and removes ports, and all else that changes while the tables are in force. Thread-safe."""

    def __init__(self, tables: FenceTables, enforcement: FenceEnforcement, state: State) -> None:
        """`enforcement` compares all rules where a change of policies fails."""
        self._tables, self._enforcement, self._state = tables, enforcement, state
        self._inventory = tables.inventory
        self._follower = Follower()

    # --- bridges and ports -------------------------------------------------------------------------------------------

    def add_bridge(self, name: str) -> None:
        """A bridge of the overlay is about to be created: packets from it count as a container's. Raises
        FenceFailed.
        """
        with self._tables.lock:
            self._tables.count()
            self._inventory.add_bridge(name)
            self._tables.run(ruleset.open_bridge(bridge_of(name)))

    def remove_bridge(self, name: str) -> None:
        """A bridge of the overlay was deleted."""
        with self._tables.lock:
            self._tables.count()
            self._inventory.remove_bridge(name)
            self._tables.remove(ruleset.close_bridge(bridge_of(name)))

    def add_port(self, attachment: Attachment) -> None:
        """Lets the attachment's port reach its network, and isolates it by the policies that select it, before the
        port's link comes up. Raises FenceFailed."""
        tables = self._tables
        with tables.lock:
            tables.count()
            # The chains of a network that has members only on other nodes may exist, or may have been refused.
            network = attachment.isolation
            if network is not None and not self._inventory.has_local_members(network):
                tables.run(ruleset.create_network(network))
            opened, policies = self._opened_by(port_of(attachment)), self._inventory.before_policies()
            port = self._inventory.add_port(attachment)
            text, change = policy_changes.between(policies, self._inventory.policies())
            if text:
                tables.run(text)
            tables.run(elements.joined(ruleset.add_port(port), change))
            self._reopen(opened)

    def remove_port(self, attachment: Attachment) -> None:
        """The port was deleted: removes all its elements, so its established flows end too. No effect without
        tables.
        """
        tables = self._tables
        with tables.lock:
            tables.count()
            port = self._inventory.port(attachment)
            opened, policies = self._opened_by(port), self._inventory.before_policies()
            was_recorded = self._inventory.remove_port(port.name) is not None
            text, change = policy_changes.between(policies, self._inventory.policies())
            tables.remove(elements.joined(ruleset.remove_port(port), change))
            tables.remove(text)
            self._reopen(opened)
            if was_recorded and port.network is not None and not self._inventory.has_members(port.network):
                tables.remove(ruleset.forget_network(port.network))

    # --- what is open besides ----------------------------------------------------------------------------------------

    def _opened_by(self, port: FencePort) -> FenceNode | None:
        """The node's values, if the port's service is listed, or if its network list opens something that no other
        port's does."""
        inventory = self._inventory
        return (
            inventory.node() if port.service in inventory.openings.services() or inventory.opens_alone(port) else None
        )

    def _reopen(self, before: FenceNode | None) -> None:
        """Brings what is open up to date after a port came or went. What fails is left to the next load."""
        if before is not None:
            after = self._inventory.node()
            if after.openings and not before.openings:
                self._add_openings()
                return
            self._tables.remove(elements.change_of_openings(before, after))
            self._tables.follow_node(before, after)

    def _add_openings(self) -> None:
        """Loads the rules for what network lists open, which are there from the first such list on."""
        loader = self._tables.in_force
        if loader is None:
            return
        try:
            self._tables.mend(loader, listing(loader), loader.mark())
            self._tables.note_node(self._inventory.node())
        except FenceFailed as error:
            log.warning("what the network list opens is not open yet: %s: %s", error.msg, error.details)

    def follow(self) -> None:
        """Follows the listed virtual addresses (`isolation.reach`) through this node's DNAT, if the rules of another
        program changed. Raises FenceFailed."""
        loader, clusters = self._tables.in_force, self._state.cidrs
        entries = virtual(self._inventory.openings, clusters)
        if loader is None or not (entries or self._inventory.followed):
            return
        version, began = (nat_reader.version(loader.nft), entries), time.monotonic()
        if not self._follower.is_due(version):
            return
        bases, _ = nat_reader.read(loader.nft, TABLE)
        followed = endpoints(bases, entries, clusters)
        self._follower.took(version, time.monotonic() - began)
        with self._tables.lock:
            before = self._inventory.node()
            if self._inventory.set_followed(followed):
                self._tables.count()
                after = self._inventory.node()
                self._tables.run(elements.change_of_openings(before, after))
                self._tables.follow_node(before, after)

    # --- policies ----------------------------------------------------------------------------------------------------

    def change_policies(self, work: Callable[[PortTable], None]) -> None:
        """Changes policies, or what is known of pods and namespaces, and puts the change in force in one transaction.
        Where the tables are not in force, the next load has it. Raises FenceFailed if all of it cannot be loaded."""
        try:
            self._change_policies(work)
        except FenceFailed as error:
            log.warning("all rules are compared, because a change of policies failed: %s: %s", error.msg, error.details)
            self._enforcement.load()
            if self._tables.trouble:
                raise

    def _change_policies(self, work: Callable[[PortTable], None]) -> None:
        tables = self._tables
        with tables.lock:
            before = self._inventory.before_policies()
            work(self._inventory.table)
            text, change = policy_changes.between(before, self._inventory.policies())
            tables.count()
            if tables.in_force is not None and not tables.ended and (text or change):
                tables.run(text or change)

    # --- other nodes -------------------------------------------------------------------------------------------------

    def connect(self, beyond: RemoteView) -> None:
        """Sets what lies behind the tunnels. What cannot be loaded now is kept for the next load; `FenceStatus.refused`
        has what the fence leaves out.
        """
        tables = self._tables
        with tables.lock:
            before = self._inventory.desired()
            self._inventory.set_beyond(beyond)
            after = self._inventory.desired()
            tables.count()
            loader = tables.in_force
            if before == after or loader is None:
                return
            try:
                if replace(before, remotes=()) != replace(after, remotes=()):
                    since = loader.mark()
                    tables.mend(loader, listing(loader), since)
                    tables.note_node(after.node)
                else:
                    old, new = (RemoteView(remotes=state.remotes) for state in (before, after))
                    for part in change_of_remotes(old, new, self._inventory.has_local_members):
                        loader.run(part)
            except FenceFailed as error:
                log.warning("members on other nodes are loaded one by one: %s: %s", error.msg, error.details)
                loader.add_records(compare.records(None, after))
