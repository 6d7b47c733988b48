"""Brings the fence's tables into force, and keeps them: compares them with what is recorded, and repairs in place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable

from cni.daemon.fence import compare
from cni.daemon.fence.from_records import Network, bridges, on_the_hosts_networks
from cni.daemon.fence.loader import Loader
from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.tables import FenceTables, listing
from cni.daemon.state.state import State
from cni.errors import FenceFailed

log = logging.getLogger(__name__)

PRIMED = 100  # ports per call of `prime`: an attach waits up to 25 ms for it


class FenceEnforcement:
    """Loads, repairs and deletes all tables. Thread-safe."""

    def __init__(
        self,
        tables: FenceTables,
        others: OtherFirewalls,
        state: State,
        host_networks: Callable[[], Iterable[Network]],
    ) -> None:
        """`host_networks` lists the networks of the host's links that are not the overlay's; each `load` calls it
        anew.
        """
        self._tables, self._others, self._state = tables, others, state
        self._host_networks = host_networks
        self._primed = -1  # the count of changes up to which all messages are packed

    def begin(self) -> None:
        """Takes the ports, networks and bridges from the records, before the first load."""
        with self._tables.lock:
            self._tables.begin()
            self._others.reopen()
            self._tables.inventory.reset(self._state.snapshot(), bridges(self._state.services.values()))

    def load(self) -> bool:
        """Brings the tables into force for every added port, repairing in place; True if anything had to be changed.

        What is right is left alone, so nothing is open for a moment and no flow of a member ends. On failure the reason
        is kept as the tables' trouble. Costs next to nothing while only this daemon changes nftables.
        """
        tables = self._tables
        try:
            self._state.set_connected(on_the_hosts_networks(self._host_networks(), self._state.cidrs))
        except OSError as error:
            log.warning("the host's own networks cannot be listed; the last list stays in use: %s", error)
        try:
            with tables.lock:
                if tables.ended:
                    return False
                loader, node = tables.open(), tables.inventory.node()
                changed, same = False, node == tables.node_loaded
                if not same or not loader.is_settled():
                    changed = tables.alone() and loader.mend_rules(tables.inventory.desired())
                settled = same and loader.is_settled()
            if not settled:
                changed = self._compare(loader) or changed
            with tables.lock:
                if changed and node == tables.node_loaded:
                    tables.repairs.happened("")
                tables.note_node(node)
        except FenceFailed as error:
            tables.note(f"{error.msg}: {error.details}")
            return False
        tables.note("")
        return changed

    def _compare(self, loader: Loader) -> bool:
        """Compares every element. Attaches go on while the tables are read: if one changed them meanwhile, they are
        read again, the last time with attaches waiting.
        """
        tables = self._tables
        if self._holds(loader):
            return False
        for _ in range(2):
            before, since, found = tables.changes, loader.mark(), listing(loader)
            with tables.lock:
                if before == tables.changes:
                    return tables.mend(loader, found, since)
        with tables.lock:
            since = loader.mark()
            return tables.mend(loader, listing(loader), since)

    def _holds(self, loader: Loader) -> bool:
        """Whether rules and elements are exactly as desired; then they are known to be right."""
        tables = self._tables
        with tables.lock:
            before, since, desired = tables.changes, loader.mark(), tables.inventory.desired()
        if not tables.alone() or not loader.holds(desired):
            return False
        with tables.lock:
            if before != tables.changes:
                return False
            loader.settle_whole(since)
            return True

    def restore(self, sets: frozenset[tuple[str, str]], generations: Iterable[int], by: str) -> bool:
        """Repairs what another program, `by`, changed in our tables in the transactions with these generations: the
        rules and `sets`, at once; True if anything had to be changed. The next `load` compares everything. Never raises
        FenceFailed.

        The daemon's own transactions are recognized by their generations and need no repair.
        """
        tables = self._tables
        with tables.lock:
            loader, numbers = tables.loader, tuple(generations)
            if tables.ended or loader is None or (numbers and all(loader.made(number) for number in numbers)):
                return False
            try:
                if not tables.trouble and tables.alone():
                    changed = self._restore(loader, sets)
                    if changed:
                        tables.repairs.happened(by)
                    return changed
                # Another daemon's changes are left alone; otherwise the two daemons would trigger each other for ever.
                local = tables.inventory.desired().local()
                if not tables.trouble and not compare.faults(listing(loader, terse=True), local, alone=False):
                    return False
            except FenceFailed as error:
                log.debug("the fence could not be repaired at once: %s: %s", error.msg, error.details)
        return self.load()

    def _restore(self, loader: Loader, sets: frozenset[tuple[str, str]]) -> bool:
        self._tables.count()
        desired = self._tables.inventory.desired()
        changed = bool(loader.faults(desired)) and loader.mend_rules(desired)
        if sets and not loader.is_settled():
            changed = loader.mend_sets(desired, sets) or changed
        return changed

    def prime(self) -> None:
        """Packs the messages that restore the ports added since the last call, at most `PRIMED` per call."""
        tables = self._tables
        with tables.lock:
            if (
                tables.loader is not None
                and self._primed != tables.changes
                and tables.loader.prime(tables.inventory.desired(), PRIMED)
            ):
                self._primed = tables.changes

    def is_settled(self) -> bool:
        """Whether the tables are known to be right, and only this daemon changed nftables since."""
        with self._tables.lock, contextlib.suppress(FenceFailed):
            loader = self._tables.in_force
            return loader is not None and loader.is_settled()
        return False

    def portid(self) -> int:
        """The netlink port that attaches send their changes from; 0 before the first load."""
        loader = self._tables.loader
        return loader.nft.portid if loader is not None else 0

    def unload(self) -> None:
        """Deletes our tables and the jump in iptables' FORWARD. Raises FenceFailed."""
        with self._tables.lock:
            self._tables.end()
        self._others.close_forwarding()
