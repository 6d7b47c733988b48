"""Overlaps of the overlay's ranges with the host's networks: refused at the start, excepted when they come later.

At a start without containers an overlap keeps the node out of service: nothing is loaded, no call changes anything, and
the node starts by itself when the overlap is gone. If the node serves already, or has containers of an earlier daemon,
the host keeps its networks: the fence excepts them (`FenceEnforcement`), no slot that touches them is given out
(`State`), no tunnel route leads into them (cni/daemon/mesh/), and the overlap is a problem.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence

from cni.daemon.model import overlap
from cni.daemon.model.overlap import HostNetwork, Overlap
from cni.daemon.node.own_addresses import OwnAddresses
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.state import State
from cni.errors import InvalidConfig
from cni.host.kernel import Kernel
from cni.host.links import Network

PATIENCE = 5.0  # seconds that a caller of `reconsider` waits for the comparison
REFUSED, LATER = "overlay-range-refused", "overlay-range-overlap"


class Ranges:
    """The overlaps of one node, as last compared. Thread-safe."""

    def __init__(self, state: State, kernel: Kernel, own: OwnAddresses, board: ProblemBoard) -> None:
        self._state, self._kernel, self._own, self._board = state, kernel, own, board
        self._refusal = ""
        self._inside: tuple[Network, ...] = ()
        self.news = threading.Event()
        """Set when the host's networks or the ranges may have changed. `RangeWatch` clears it, compares, and calls
        `looked`."""
        self._comparisons = 0
        self._compared = threading.Condition()

    @property
    def refusal(self) -> str:
        """Why the node is not in service, with both ranges named; empty if it is in service."""
        return self._refusal

    def decide(self) -> bool:
        """Whether the node may go into service now. Raises OSError."""
        overlaps = [*overlap.reserved(self._state.cidrs), *overlap.overlaps(self._state.cidrs, self._read())]
        busy = bool(self._state.attachments or self._state.leases)
        self._refusal = "" if busy else overlap.told(overlaps)
        self._board.set(REFUSED, "", self._refusal and f"{self._refusal}: nothing of the overlay is loaded")
        return not self._refusal

    def reconsider(self) -> None:
        """Request a comparison because the ranges changed, and wait for it, at most `PATIENCE` seconds."""
        with self._compared:
            before = self._comparisons
            self.news.set()
            self._compared.wait_for(lambda: self._comparisons > before, PATIENCE)

    def looked(self) -> None:
        """Called after each comparison: wake the callers of `reconsider`."""
        with self._compared:
            self._comparisons += 1
            self._compared.notify_all()

    def refuse(self) -> None:
        """Raises InvalidConfig (7) while the node is not in service."""
        if self._refusal:
            raise InvalidConfig(
                f"cluster_cidr: {self._refusal}", "give the overlay another range, the same on every node"
            )

    def judge(self, cidrs: Sequence[str]) -> None:
        """Raises InvalidConfig if `cidrs` cannot be the overlay's ranges on this host, OSError."""
        overlaps = [*overlap.reserved(cidrs), *overlap.overlaps(cidrs, self._read())]
        if overlaps:
            raise InvalidConfig(overlap.told(overlaps))

    def networks(self) -> list[Network]:
        """The host's networks that overlap the ranges now; each is noted as a problem. Raises OSError."""
        overlaps = overlap.overlaps(self._state.cidrs, self._read())
        self._inside = inside(overlaps)
        self._board.set_all(LATER, {str(overlap.host.network): self._problem_text(overlap) for overlap in overlaps})
        return [overlap.host.network for overlap in overlaps]

    def inside(self) -> tuple[Network, ...]:
        """The overlapping networks of the last comparison that are no larger than the range they are in: no tunnel
        route leads into them."""
        return self._inside

    def _read(self) -> tuple[HostNetwork, ...]:
        surroundings = self._kernel.surroundings()
        return overlap.host_networks(surroundings, self._own.known(surroundings.addresses))

    def _problem_text(self, overlap: Overlap) -> str:
        used = [
            f"{subnet} of service {service.name}"
            for service in self._state.services.values()
            for subnet in service.subnets
            if _overlap(ipaddress.ip_network(subnet), overlap.host.network)
        ]
        used += [f"{own} of the node" for own in self._state.node_addresses() if own in overlap.host.network]
        text = f"{overlap}: it stays the host's, and no subnet in it is given out"
        return f"{text}; but in use: {', '.join(used)}" if used else text


def inside(overlaps: Sequence[Overlap]) -> tuple[Network, ...]:
    """The host's networks that are no larger than the range they overlap. A larger one keeps the part that the overlay
    does not use, because the overlay's routes are more specific."""
    return tuple(
        dict.fromkeys(
            overlap.host.network for overlap in overlaps if overlap.host.network.prefixlen >= overlap.range.prefixlen
        )
    )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)
