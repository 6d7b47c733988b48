"""The fence between containers, and between containers and the rest: our nftables tables, kept in step with the
attachments.

`ruleset.py` writes the nft text and `loader.py` runs it; the controller records which ports were added, and which
networks have members. A port that was not added is closed, so a failure here opens nothing: the attach fails instead.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from cni.daemon.durations import Durations, Times
from cni.daemon.fence import compare, elements, policy_changes, ruleset
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.follower import Follower, endpoints, virtual
from cni.daemon.fence.from_records import (
    Network,
    RemoteView,
    bridge_of,
    bridges,
    change_of_remotes,
    on_the_hosts_networks,
    port_of,
)
from cni.daemon.fence.inventory import Inventory
from cni.daemon.fence.loader import Loader
from cni.daemon.fence.model import TABLE, FenceNode, FencePort
from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.port_table import PortTable
from cni.daemon.fence.repairs import Repairs
from cni.daemon.model.records import Attachment
from cni.daemon.policy.decide import Decision, Flow
from cni.daemon.state.state import State
from cni.errors import FenceFailed
from cni.host import nat_reader, services
from cni.host.nft import Nft
from cni.host.nft_elements import Change

log = logging.getLogger(__name__)

CHANGE_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)  # seconds
PRIMED = 100  # ports per call of `prime`: an attach waits up to 25 ms for it

__all__ = ["FenceController", "RemoteView", "bridges", "port_of"]


class FenceController:
    """Loads the tables, adds and removes ports. Thread-safe.

    `alone` tells whether no other daemon of ours works in this network namespace. Only then the controller deletes
    what it has not recorded itself. `alone` is called after the tables were read, so that a daemon that wrote into them
    is seen by then.
    """

    def __init__(
        self,
        state: State,
        inventory: Inventory,
        alone: Callable[[], bool],
        host_networks: Callable[[], Iterable[Network]],
    ) -> None:
        """`host_networks` lists the networks of the host's links that are not the overlay's; each `load` calls it
        anew.
        """
        self._host_networks = host_networks
        self._state = state
        self._alone = alone
        self._inventory = inventory
        self._others = OtherFirewalls()
        self._lock = threading.Lock()
        self._loader: Loader | None = None
        self._trouble = "the tables were never loaded"
        self._ended = False
        self._node_loaded: FenceNode | None = None  # the node's values at the last load
        self._changes = 0
        self._primed = -1  # the value of `_changes` up to which all messages are packed
        self._repairs, self._took = Repairs(), Durations(CHANGE_BOUNDS)
        self._follower = Follower()

    # --- all tables ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Takes the ports, networks and bridges from the records, before the first load."""
        with self._lock:
            self._ended = False
            self._others.reopen()
            self._inventory.reset(self._state.snapshot(), bridges(self._state.services.values()))

    def load(self) -> bool:
        """Brings the tables into force for every added port, repairing in place; True if anything had to be changed.

        What is right is left alone, so nothing is open for a moment and no flow of a member ends. On failure the reason
        is kept for `trouble`. Costs next to nothing while only this daemon changes nftables.
        """
        try:
            self._state.set_connected(on_the_hosts_networks(self._host_networks(), self._state.cidrs))
        except OSError as error:
            log.warning("the host's own networks cannot be listed; the last list stays in use: %s", error)
        try:
            with self._lock:
                if self._ended:
                    return False
                self._loader = self._loader or Loader(Nft(), self._took)
                loader, node = self._loader, self._inventory.node()
                changed, same = False, node == self._node_loaded
                if not same or not loader.is_settled():
                    changed = self._alone() and loader.mend_rules(self._inventory.desired())
                settled = same and loader.is_settled()
            if not settled:
                changed = self._compare(loader) or changed
            with self._lock:
                if changed and node == self._node_loaded:
                    self._repairs.happened("")
                self._node_loaded = node
        except FenceFailed as error:
            self._note(f"{error.msg}: {error.details}")
            return False
        self._note("")
        return changed

    def _compare(self, loader: Loader) -> bool:
        """Compares every element. Attaches go on while the tables are read: if one changed them meanwhile, they are
        read again, the last time with attaches waiting.
        """
        if self._holds(loader):
            return False
        for _ in range(2):
            before, since, listing = self._changes, loader.mark(), _listing(loader)
            with self._lock:
                if before == self._changes:
                    return self._mend(loader, listing, since)
        with self._lock:
            since = loader.mark()
            return self._mend(loader, _listing(loader), since)

    def _holds(self, loader: Loader) -> bool:
        """Whether rules and elements are exactly as desired; then they are known to be right."""
        with self._lock:
            before, since, desired = self._changes, loader.mark(), self._inventory.desired()
        if not self._alone() or not loader.holds(desired):
            return False
        with self._lock:
            if before != self._changes:
                return False
            loader.settle_whole(since)
            return True

    def restore(self, sets: frozenset[tuple[str, str]], generations: Iterable[int], by: str) -> bool:
        """Repairs what another program, `by`, changed in our tables in the transactions with these generations: the
        rules and `sets`, at once; True if anything had to be changed. The next `load` compares everything. Never raises
        FenceFailed.

        The daemon's own transactions are recognized by their generations and need no repair.
        """
        with self._lock:
            loader, numbers = self._loader, tuple(generations)
            if self._ended or loader is None or (numbers and all(loader.made(number) for number in numbers)):
                return False
            try:
                if not self._trouble and self._alone():
                    changed = self._restore(loader, sets)
                    if changed:
                        self._repairs.happened(by)
                    return changed
                # Another daemon's changes are left alone; otherwise the two daemons would trigger each other for ever.
                local = self._inventory.desired().local()
                if not self._trouble and not compare.faults(_listing(loader, terse=True), local, alone=False):
                    return False
            except FenceFailed as error:
                log.debug("the fence could not be repaired at once: %s: %s", error.msg, error.details)
        return self.load()

    def prime(self) -> None:
        """Packs the messages that restore the ports added since the last call, at most `PRIMED` per call."""
        with self._lock:
            if (
                self._loader is not None
                and self._primed != self._changes
                and self._loader.prime(self._inventory.desired(), PRIMED)
            ):
                self._primed = self._changes

    def is_settled(self) -> bool:
        """Whether the tables are known to be right, and only this daemon changed nftables since."""
        with self._lock, contextlib.suppress(FenceFailed):
            return not self._trouble and self._loader is not None and self._loader.is_settled()
        return False

    def repaired(self) -> str:
        """The text for the problem that other programs changed the tables in the last minute and they were repaired; or
        empty.
        """
        with self._lock:
            return self._repairs.text()

    def repairs(self) -> int:
        """How many times the tables were repaired since the daemon's start."""
        return self._repairs.total

    def changes_took(self) -> Mapping[tuple[str, ...], Times]:
        """How long the transactions took since the daemon's start, by what they changed: elements alone, or rules."""
        return self._took.read()

    def portid(self) -> int:
        """The netlink port that attaches send their changes from; 0 before the first load."""
        return self._loader.nft.portid if self._loader is not None else 0

    def _restore(self, loader: Loader, sets: frozenset[tuple[str, str]]) -> bool:
        self._changes += 1
        desired = self._inventory.desired()
        changed = bool(loader.faults(desired)) and loader.mend_rules(desired)
        if sets and not loader.is_settled():
            changed = loader.mend_sets(desired, sets) or changed
        return changed

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("the fence is not in force: %s", trouble)
        elif self._trouble and not trouble:
            log.info("the fence is in force")
        self._trouble = trouble

    def _mend(self, loader: Loader, listing: compare.Listing, since: tuple[int, int]) -> bool:
        desired = self._inventory.desired()
        self._changes += 1
        if not self._alone():
            local = desired.local()
            wrong = compare.faults(listing, local, alone=False)
            if wrong:
                loader.run(compare.reload(listing, local))
            loader.run(elements.change(add=local.elements()))
            loader.add_records(compare.records(None if wrong else listing, desired))
            return bool(wrong)
        changed = loader.mend_elements(listing, desired)
        loader.settle(since)
        return changed

    @property
    def desired(self) -> DesiredState:
        """What the tables should hold now."""
        with self._lock:
            return self._inventory.desired()

    @property
    def beyond(self) -> RemoteView:
        """What lies behind the tunnels, as far as the fence accepts it: another object after each change. Waits for
        nothing."""
        return self._inventory.beyond

    @property
    def followed(self) -> object:
        """What the settings open behind virtual addresses: another object after each change. Waits for nothing."""
        return self._inventory.followed

    def node(self) -> FenceNode:
        """This node, as the fence sees it. Waits for nothing."""
        return self._inventory.node()

    def refused(self) -> dict[str, str]:
        """What other nodes and agents published that the fence leaves out: subject and reason."""
        return {**self._inventory.refused, **(self._loader.refused if self._loader is not None else {})}

    def unload(self) -> None:
        """Deletes our tables and the jump in iptables' FORWARD; only `uninstall` calls it. Raises FenceFailed."""
        with self._lock:
            self._ended = True
            self._loader = self._loader or Loader(Nft(), self._took)
            self._loader.run(ruleset.uninstall())
            self._trouble = "the tables were taken down"
        self._others.close_forwarding()

    def faults(self) -> list[str]:
        """What is wrong with tables, chains and rules, one line each; empty if they are in force. Only reads."""
        loader = self._loader
        if loader is None or self._trouble:
            return [self._trouble or "the tables were never loaded"]
        try:
            with self._lock:
                if loader.rules_are_right():
                    return []
                if self._alone():
                    return [fault.text for fault in loader.faults(self._inventory.desired())]
                desired = self._inventory.desired()
            return compare.faults(_listing(loader, terse=True), desired, alone=False)
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def trouble(self) -> str:
        """Why the tables are not in force, as of the last load; empty when they are."""
        return self._trouble

    def open_forwarding(self) -> str:
        """Lets containers through iptables' FORWARD where that denies. Returns why that failed, or an empty string."""
        return self._others.open_forwarding(self._state.cidrs)

    def forward_chains(self) -> frozenset[str]:
        """iptables' chains that decide on forwarded packets. Waits for nothing."""
        return self._others.forward_chains()

    def foreign(self) -> dict[str, str]:
        """Other programs' native nft chains that drop what containers send, with a sentence about each."""
        return self._others.obstacles(self._loader.nft, self._state.cidrs) if self._loader is not None else {}

    def unanswered_services(self) -> str:
        """Why containers do not reach one another on their own bridge by a service; empty if they do, or if this node's
        services are routed."""
        if self._inventory.is_routed():
            return ""
        return services.unanswered(self._state.versions(), self._loader.nft) if self._loader is not None else ""

    # --- log rules ---------------------------------------------------------------------------------------------------

    def sample_drops(self) -> None:
        """Has each rule that drops log a sample of its packets (drop_log.py). Idempotent. Raises FenceFailed."""
        with self._lock:
            loader = self._loader
            if loader is None or self._trouble:
                raise FenceFailed("the fence is not in force", self._trouble)
            if not self._alone():
                raise FenceFailed("another daemon works in this network namespace", "its fence has the same tables")
            loader.sample(self._inventory.desired())

    def end_sample(self) -> None:
        """Deletes the log rules. Idempotent; what cannot be deleted now, the next load deletes."""
        with self._lock:
            if self._loader is not None and not self._ended:
                try:
                    self._loader.end_sample()
                except FenceFailed as error:
                    log.warning("the log rules of `drops` could not be deleted: %s: %s", error.msg, error.details)

    # --- bridges and ports -------------------------------------------------------------------------------------------

    def add_bridge(self, name: str) -> None:
        """A bridge of the overlay is about to be created: packets from it count as a container's. Raises
        FenceFailed.
        """
        with self._lock:
            self._changes += 1
            self._inventory.add_bridge(name)
            self._run(ruleset.open_bridge(bridge_of(name)))

    def remove_bridge(self, name: str) -> None:
        """A bridge of the overlay was deleted."""
        with self._lock:
            self._changes += 1
            self._inventory.remove_bridge(name)
            self._try(ruleset.close_bridge(bridge_of(name)))

    def add_port(self, attachment: Attachment) -> None:
        """Lets the attachment's port reach its network, and isolates it by the policies that select it, before the
        port's link comes up. Raises FenceFailed."""
        with self._lock:
            self._changes += 1
            # The chains of a network that has members only on other nodes may exist, or may have been refused.
            network = attachment.isolation
            if network is not None and not self._inventory.has_local_members(network):
                self._run(ruleset.create_network(network))
            opened, policies = self._opened_by(port_of(attachment)), self._inventory.before_policies()
            port = self._inventory.add_port(attachment)
            text, change = policy_changes.between(policies, self._inventory.policies())
            if text:
                self._run(text)
            self._run(elements.joined(ruleset.add_port(port), change))
            self._reopen(opened)

    def remove_port(self, attachment: Attachment) -> None:
        """The port was deleted: removes all its elements, so its established flows end too. No effect without
        tables.
        """
        with self._lock:
            self._changes += 1
            port = self._inventory.port(attachment)
            opened, policies = self._opened_by(port), self._inventory.before_policies()
            was_recorded = self._inventory.remove_port(port.name) is not None
            text, change = policy_changes.between(policies, self._inventory.policies())
            self._try(elements.joined(ruleset.remove_port(port), change))
            self._try(text)
            self._reopen(opened)
            if was_recorded and port.network is not None and not self._inventory.has_members(port.network):
                self._try(ruleset.forget_network(port.network))

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
            self._try(elements.change_of_openings(before, after))
            self._node_loaded = after if self._node_loaded == before else self._node_loaded

    def _add_openings(self) -> None:
        """Loads the rules for what network lists open, which are there from the first such list on."""
        loader = self._loader
        if loader is None or self._trouble:
            return
        try:
            self._mend(loader, _listing(loader), loader.mark())
            self._node_loaded = self._inventory.node()
        except FenceFailed as error:
            log.warning("what the network list opens is not open yet: %s: %s", error.msg, error.details)

    def change_policies(self, work: Callable[[PortTable], None]) -> None:
        """Changes policies, or what is known of pods and namespaces, and puts the change in force in one transaction.
        Where the tables are not in force, the next load has it. Raises FenceFailed if all of it cannot be loaded."""
        try:
            self._change_policies(work)
        except FenceFailed as error:
            log.warning("all rules are compared, because a change of policies failed: %s: %s", error.msg, error.details)
            self.load()
            if self._trouble:
                raise

    def _change_policies(self, work: Callable[[PortTable], None]) -> None:
        with self._lock:
            before = self._inventory.before_policies()
            work(self._inventory.table)
            text, change = policy_changes.between(before, self._inventory.policies())
            self._changes += 1
            if self._loader is not None and not self._trouble and not self._ended and (text or change):
                self._run(text or change)

    def judge(self, client: str, server: str, protocol: str, port: int) -> Decision:
        """What the network policies say of a flow between these addresses."""
        with self._lock:
            table = self._inventory.table.book.table
            return table.decide(Flow(table.end(client), table.end(server), protocol, port))

    def follow(self) -> None:
        """Follows the listed virtual addresses (`isolation.reach`) through this node's DNAT, if the rules of another
        program changed. Raises FenceFailed."""
        loader, clusters = self._loader, self._state.cidrs
        entries = virtual(self._inventory.openings, clusters)
        if loader is None or self._trouble or not (entries or self._inventory.followed):
            return
        version, began = (nat_reader.version(loader.nft), entries), time.monotonic()
        if not self._follower.is_due(version):
            return
        bases, _ = nat_reader.read(loader.nft, TABLE)
        followed = endpoints(bases, entries, clusters)
        self._follower.took(version, time.monotonic() - began)
        with self._lock:
            before = self._inventory.node()
            if self._inventory.set_followed(followed):
                self._changes += 1
                after = self._inventory.node()
                self._run(elements.change_of_openings(before, after))
                self._node_loaded = after if self._node_loaded == before else self._node_loaded

    # --- other nodes -------------------------------------------------------------------------------------------------

    def connect(self, beyond: RemoteView) -> None:
        """Sets what lies behind the tunnels. What cannot be loaded now is kept for the next load; what the fence leaves
        out is in `refused`.
        """
        with self._lock:
            before = self._inventory.desired()
            self._inventory.set_beyond(beyond)
            after = self._inventory.desired()
            self._changes += 1
            loader = self._loader
            if before == after or loader is None or self._trouble:
                return
            try:
                if replace(before, remotes=()) != replace(after, remotes=()):
                    since = loader.mark()
                    self._mend(loader, _listing(loader), since)
                    self._node_loaded = after.node
                else:
                    old, new = (RemoteView(remotes=state.remotes) for state in (before, after))
                    for part in change_of_remotes(old, new, self._inventory.has_local_members):
                        loader.run(part)
            except FenceFailed as error:
                log.warning("members on other nodes are loaded one by one: %s: %s", error.msg, error.details)
                loader.add_records(compare.records(None, after))

    def missing(self, attachment: Attachment) -> list[str]:
        """What of the attachment's fence is not in the kernel: its elements, or the tables themselves."""
        loader = self._loader
        if loader is None or self._trouble:
            return [self._trouble or "the tables were never loaded"]
        try:
            return loader.nft.absent(ruleset.add_port(self._inventory.port(attachment)))
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def _run(self, part: str | Change) -> None:
        loader = self._loader
        if loader is None or self._trouble:
            raise FenceFailed("the isolation fence cannot be put in force", self._trouble)
        try:
            loader.run(part)
        except FenceFailed:
            if not self._alone() or not loader.faults(self._inventory.desired()):
                raise
            log.warning("another program changed the fence's tables; they are repaired before the port is added")
            loader.mend_rules(self._inventory.desired())
            self._repairs.happened("")
            loader.run(part)

    def _try(self, part: str | Change) -> None:
        """Runs a removal. If it fails, an element too many stays: it opens nothing to others, and the next load removes
        it.
        """
        if self._loader is None or self._trouble:
            return
        try:
            self._loader.run(part)
        except FenceFailed as error:
            log.warning("could not remove fence elements: %s", error.details)


def _listing(loader: Loader, terse: bool = False) -> compare.Listing:
    return {family: loader.nft.list_table(family, TABLE, terse=terse) for family in ruleset.FAMILIES}
