"""What the rest of the daemon reads of the fence: whether the tables are in force, what is wrong, what they hold."""

from __future__ import annotations

from collections.abc import Mapping

from cni.daemon.durations import Times
from cni.daemon.fence import compare, ruleset
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.from_records import RemoteView
from cni.daemon.fence.model import FenceNode
from cni.daemon.fence.tables import NEVER_LOADED, FenceTables, listing
from cni.daemon.model.records import Attachment
from cni.daemon.policy.decide import Decision, Flow
from cni.daemon.state.state import State
from cni.errors import FenceFailed
from cni.host import services


class FenceStatus:
    """Only reads the kernel and the inventory. Thread-safe."""

    def __init__(self, tables: FenceTables, state: State) -> None:
        self._tables, self._state = tables, state
        self._inventory = tables.inventory

    # --- the tables --------------------------------------------------------------------------------------------------

    def trouble(self) -> str:
        """Why the tables are not in force, as of the last load; empty when they are."""
        return self._tables.trouble

    def faults(self) -> list[str]:
        """What is wrong with tables, chains and rules, one line each; empty if they are in force."""
        tables = self._tables
        loader = tables.in_force
        if loader is None:
            return [tables.trouble or NEVER_LOADED]
        try:
            with tables.lock:
                if loader.rules_are_right():
                    return []
                if tables.alone():
                    return [fault.text for fault in loader.faults(self._inventory.desired())]
                desired = self._inventory.desired()
            return compare.faults(listing(loader, terse=True), desired, alone=False)
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def missing(self, attachment: Attachment) -> list[str]:
        """What of the attachment's fence is not in the kernel: its elements, or the tables themselves."""
        loader = self._tables.in_force
        if loader is None:
            return [self._tables.trouble or NEVER_LOADED]
        try:
            return loader.nft.absent(ruleset.add_port(self._inventory.port(attachment)))
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def repaired(self) -> str:
        """The text for the problem that other programs changed the tables in the last minute and they were repaired; or
        empty.
        """
        with self._tables.lock:
            return self._tables.repairs.text()

    def repairs(self) -> int:
        """How many times the tables were repaired since the daemon's start."""
        return self._tables.repairs.total

    def changes_took(self) -> Mapping[tuple[str, ...], Times]:
        """How long the transactions took since the daemon's start, by what they changed: elements alone, or rules."""
        return self._tables.took.read()

    def unanswered_services(self) -> str:
        """Why containers do not reach one another on their own bridge by a service; empty if they do, or if this node's
        services are routed."""
        loader = self._tables.loader
        if loader is None or self._inventory.is_routed():
            return ""
        return services.unanswered(self._state.versions(), loader.nft)

    # --- what the tables should hold ---------------------------------------------------------------------------------

    @property
    def desired(self) -> DesiredState:
        """What the tables should hold now."""
        with self._tables.lock:
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
        loader = self._tables.loader
        return {**self._inventory.refused, **(loader.refused if loader is not None else {})}

    def judge(self, client: str, server: str, protocol: str, port: int) -> Decision:
        """What the network policies say of a flow between these addresses."""
        with self._tables.lock:
            table = self._inventory.table.book.table
            return table.decide(Flow(table.end(client), table.end(server), protocol, port))
