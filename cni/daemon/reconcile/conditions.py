"""The conditions of the node outside the records: forwarding, own addresses, other firewalls, other daemons.

What may be repaired is repaired; what is wrong becomes a problem.
"""

from __future__ import annotations

from collections.abc import Callable

from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.status import FenceStatus
from cni.daemon.node.node_settings import NodeSettings
from cni.daemon.node.ranges import Ranges
from cni.daemon.problem_board import ProblemBoard
from cni.problems import Problem


class NodeConditions:
    """The conditions of one node. Thread-safe."""

    def __init__(
        self,
        *,
        fence: FenceStatus,
        other_firewalls: OtherFirewalls,
        ranges: Ranges,
        node_settings: NodeSettings,
        board: ProblemBoard,
        alone: Callable[[], bool],
    ) -> None:
        """`alone`: whether no other zlayer-cni daemon works in this network namespace."""
        self._fence, self._other_firewalls = fence, other_firewalls
        self._ranges, self._node_settings = ranges, node_settings
        self._board, self._alone = board, alone

    def problems(self) -> list[Problem]:
        """The problems of the node now."""
        self._note_conditions()
        return self._board.problems()

    def _note_conditions(self) -> None:
        """Update the problems whose conditions are only read on request."""
        note = self._board.set
        shared = "another zlayer-cni daemon works in this network namespace: they share tables and bridges"
        note("second-daemon", "", "" if self._alone() else shared)
        trouble = "" if self._ranges.refusal else self._fence.trouble()
        note("fence-not-in-force", "", trouble and f"the isolation fence is not in force: {trouble}")
        self._node_settings.note(serving=not self._ranges.refusal)
        self.note_repairs()

    def note_repairs(self) -> None:
        """Update the problems about repairs of the fence's tables."""
        self._board.set("fence-repaired", "", self._fence.repaired())
        self._board.set_all("member-refused", self._fence.refused())

    def repair(self) -> None:
        """Restore the node's settings and addresses; a failure becomes a problem. Update the problems about the fence
        and about other firewalls. Never raises."""
        self._node_settings.repair()
        self.note_repairs()
        self.look_for_obstacles()

    def look_for_obstacles(self) -> None:
        """Find other firewalls that drop forwarded traffic of containers: open iptables' FORWARD for the overlay, and
        note the nftables chains of other programs as problems. Never raises."""
        with self._board.step("look-incomplete", "firewalls", "the host's firewalls could not be read"):
            self._note_obstacles()

    def _note_obstacles(self) -> None:
        denial = self._other_firewalls.open_forwarding()
        self._board.set("forward-denied-iptables", "", denial and f"iptables' FORWARD: {denial}")
        self._board.set_all("forward-denied-nftables", self._other_firewalls.obstacles())
        self._board.set("service-same-bridge", "", self._fence.unanswered_services())
