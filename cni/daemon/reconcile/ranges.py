"""The overlay's ranges beside the networks of the host: refused at the start, excepted when they come later.

At a start without containers an overlap keeps the node out of service: nothing is loaded, no call changes anything, and
the node starts by itself when the overlap is gone. Once it serves, or where containers of an earlier daemon are there,
the host keeps its networks: the fence excepts them (`Barrier`), no slot that touches them is given out (`State`), no
route into a tunnel leads inside them (`Ways`), and the overlap is a problem.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence

from cni.daemon.model import overlap
from cni.daemon.model.overlap import HostNetwork, Overlap
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.node_addresses import OwnAddresses
from cni.daemon.state.state import State
from cni.errors import InvalidConfig
from cni.host.kernel import Kernel
from cni.host.links import Network

PATIENCE = 5.0  # seconds that a caller waits for a look
REFUSED, LATER = "overlay-range-refused", "overlay-range-overlap"


class Ranges:
    """What one node knows of it. Safe from any thread."""

    def __init__(self, state: State, kernel: Kernel, own: OwnAddresses, board: ProblemBoard) -> None:
        self._state, self._kernel, self._own, self._board = state, kernel, own, board
        self._refusal = ""
        self._inside: tuple[Network, ...] = ()
        self.news = threading.Event()
        """Set when there may be something new; who looks (`RangeWatch`) clears it, and calls `looked`."""
        self._looks = 0
        self._look = threading.Condition()

    @property
    def refusal(self) -> str:
        """Why the node is not in service, both ranges named; empty when it is."""
        return self._refusal

    def decide(self) -> bool:
        """Whether the node may go into service now. Raises OSError."""
        found = [*overlap.reserved(self._state.cidrs), *overlap.overlaps(self._state.cidrs, self._read())]
        busy = bool(self._state.attachments or self._state.leases)
        self._refusal = "" if busy else overlap.told(found)
        self._board.set(REFUSED, "", self._refusal and f"{self._refusal}: nothing of the overlay is loaded")
        return not self._refusal

    def reconsider(self) -> None:
        """The ranges are others: have them looked at, and wait until that is done, some seconds at most."""
        with self._look:
            before = self._looks
            self.news.set()
            self._look.wait_for(lambda: self._looks > before, PATIENCE)

    def looked(self) -> None:
        """A look is done."""
        with self._look:
            self._looks += 1
            self._look.notify_all()

    def refuse(self) -> None:
        """Raises InvalidConfig (7) while the node is not in service."""
        if self._refusal:
            raise InvalidConfig(
                f"cluster_cidr: {self._refusal}", "give the overlay another range, the same on every node"
            )

    def judge(self, cidrs: Sequence[str]) -> None:
        """Raises InvalidConfig, OSError if these would not do as the overlay's ranges on this host."""
        found = [*overlap.reserved(cidrs), *overlap.overlaps(cidrs, self._read())]
        if found:
            raise InvalidConfig(overlap.told(found))

    def networks(self) -> list[Network]:
        """The networks of the host over the ranges, as they are now; each is noted as a problem. Raises OSError."""
        found = overlap.overlaps(self._state.cidrs, self._read())
        self._inside = inside(found)
        self._board.set_all(LATER, {str(each.host.network): self._told(each) for each in found})
        return [each.host.network for each in found]

    def inside(self) -> tuple[Network, ...]:
        """Those of the last look that are no larger than the range they are in: no tunnel's route leads into them."""
        return self._inside

    def _read(self) -> tuple[HostNetwork, ...]:
        seen = self._kernel.surroundings()
        return overlap.host_networks(seen, self._own.known(seen.addresses))

    def _told(self, each: Overlap) -> str:
        used = [
            f"{subnet} of service {service.name}"
            for service in list(self._state.services.values())
            for subnet in service.subnets
            if _overlap(ipaddress.ip_network(subnet), each.host.network)
        ]
        used += [f"{own} of the node" for own in self._state.node_addresses() if own in each.host.network]
        said = f"{each}: it stays the host's, and no subnet in it is given out"
        return f"{said}; but in use: {', '.join(used)}" if used else said


def inside(found: Sequence[Overlap]) -> tuple[Network, ...]:
    """The host's networks that are no larger than the range they overlap. A larger one keeps what the overlay does not
    use: the overlay's routes are the more specific ones."""
    return tuple(
        dict.fromkeys(each.host.network for each in found if each.host.network.prefixlen >= each.range.prefixlen)
    )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)
