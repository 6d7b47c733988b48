"""The fence's nftables tables as this daemon loads them: the loader, the inventory that says what the tables should
hold, and the one lock for both.

`ruleset.py` writes the nft text and `loader.py` runs it. `enforcement.py` brings all tables into force, `members.py`
changes single ports, bridges and policies, `status.py` reads for the rest of the daemon.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cni.daemon.durations import Durations
from cni.daemon.fence import compare, elements, ruleset
from cni.daemon.fence.inventory import Inventory
from cni.daemon.fence.loader import Loader
from cni.daemon.fence.model import TABLE, FenceNode
from cni.daemon.fence.repairs import Repairs
from cni.errors import FenceFailed
from cni.host.nft import Nft
from cni.host.nft_elements import Change

log = logging.getLogger(__name__)

CHANGE_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)  # seconds
NEVER_LOADED = "the tables were never loaded"


class FenceTables:
    """What the parts of the fence share. `lock` guards the inventory and the loader: a thread that changes either holds
    the lock, also for each method here except `note`.

    `alone` tells whether no other daemon of ours works in this network namespace. Only then the daemon deletes what it
    has not recorded itself. `alone` is called after the tables were read, so that a daemon that wrote into them is seen
    by then.
    """

    def __init__(self, inventory: Inventory, alone: Callable[[], bool]) -> None:
        self.lock = threading.Lock()
        self.inventory, self.alone = inventory, alone
        self.loader: Loader | None = None
        self.trouble = NEVER_LOADED
        """Why the tables are not in force, as of the last load; empty when they are."""
        self.ended = False
        self.node_loaded: FenceNode | None = None  # the node's values at the last load
        self.changes = 0  # changes of the tables or of the inventory
        self.repairs, self.took = Repairs(), Durations(CHANGE_BOUNDS)

    @property
    def in_force(self) -> Loader | None:
        """The loader while the tables are in force; else None, and `trouble` says why."""
        return None if self.trouble else self.loader

    def begin(self) -> None:
        """The tables may be loaded, also after `end`."""
        self.ended = False

    def open(self) -> Loader:
        """The loader, made at the first call. Raises FenceFailed."""
        self.loader = self.loader or Loader(Nft(), self.took)
        return self.loader

    def end(self) -> None:
        """Deletes the tables; no load creates them again before `begin`. Raises FenceFailed."""
        self.ended = True
        self.open().run(ruleset.uninstall())
        self.trouble = "the tables were taken down"

    def note(self, trouble: str) -> None:
        """Records why the tables are not in force; empty when they are."""
        if trouble and trouble != self.trouble:
            log.error("the fence is not in force: %s", trouble)
        elif self.trouble and not trouble:
            log.info("the fence is in force")
        self.trouble = trouble

    def count(self) -> None:
        """Counts a change, so that a thread that reads the tables without the lock reads them again."""
        self.changes += 1

    def note_node(self, node: FenceNode) -> None:
        """Records the node's values that the tables hold."""
        self.node_loaded = node

    def follow_node(self, before: FenceNode, after: FenceNode) -> None:
        """Records that the tables hold `after` of the node's values, if they held `before`."""
        self.node_loaded = after if self.node_loaded == before else self.node_loaded

    def mend(self, loader: Loader, listing: compare.Listing, since: tuple[int, int]) -> bool:
        """Makes every element right; True if anything had to be changed. `since`: the loader's mark before the
        listing. Raises FenceFailed."""
        desired = self.inventory.desired()
        self.count()
        if not self.alone():
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

    def run(self, part: str | Change) -> None:
        """Runs an addition, if need be after a repair of the rules. Raises FenceFailed."""
        loader = self.in_force
        if loader is None:
            raise FenceFailed("the isolation fence cannot be put in force", self.trouble)
        try:
            loader.run(part)
        except FenceFailed:
            if not self.alone() or not loader.faults(self.inventory.desired()):
                raise
            log.warning("another program changed the fence's tables; they are repaired before the port is added")
            loader.mend_rules(self.inventory.desired())
            self.repairs.happened("")
            loader.run(part)

    def remove(self, part: str | Change) -> None:
        """Runs a removal. If it fails, an element too many stays: it opens nothing to others, and the next load removes
        it.
        """
        loader = self.in_force
        if loader is None:
            return
        try:
            loader.run(part)
        except FenceFailed as error:
            log.warning("could not remove fence elements: %s", error.details)


def listing(loader: Loader, terse: bool = False) -> compare.Listing:
    """Both families' tables as they are in the kernel; `terse`: without elements. Raises FenceFailed."""
    return {family: loader.nft.list_table(family, TABLE, terse=terse) for family in ruleset.FAMILIES}
