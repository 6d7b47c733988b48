"""The overlay's addresses on lo: the node's own, and those of processes of the host. What is no longer wanted goes.

An address that stayed would answer for another node, whose traffic this one would swallow. Which addresses are ours is
known by the records, and by IFA_PROTO (Linux 5.18) where the records were lost; of a version that did neither, by its
records without such notes and the shape of a node address.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Collection, Iterable

from cni.daemon.model.overlap import of_ours
from cni.daemon.state.state import State
from cni.errors import InputOutput
from cni.host.kernel import Kernel
from cni.host.links import Address
from cni.host.own_networks import HeldAddress

log = logging.getLogger(__name__)


class OwnAddresses:
    """Puts them there and takes them away. Safe from any thread."""

    def __init__(self, state: State, kernel: Kernel, alone: Callable[[], bool]) -> None:
        """`alone` tells whether no other daemon of ours works in this namespace: only then IFA_PROTO says whose an
        address is."""
        self._state, self._kernel, self._alone = state, kernel, alone

    def wanted(self) -> set[Address]:
        """The node's addresses, and every address that is leased to what is no container: a process of the host has
        its on lo."""
        return {*self._state.node_addresses(), *map(ipaddress.ip_address, list(self._state.leases))}

    def known(self, held: Iterable[HeldAddress]) -> set[Address]:
        """Those on lo that are the overlay's, former ones included."""
        by_shape = () if self._state.notes_own_addresses else self._state.cidrs
        return of_ours(held, self._state.own_addresses, self._alone(), by_shape) | self.wanted()

    def ensure(self) -> dict[str, str]:
        """lo has the node's addresses, and no former one; returns those that it cannot have, and why. Idempotent.
        Raises OSError."""
        wanted = self.wanted()
        former = self.known(self._kernel.held_addresses()) - wanted
        self._note(self._state.own_addresses | set(self._state.node_addresses()))
        faults = {}
        for address in self._state.node_addresses():
            try:
                self._kernel.ensure_node_address(address)
            except OSError as error:  # its family may be switched off: the other one is not concerned
                faults[str(address)] = str(error)
        self._remove(former)
        return faults

    def remove_all(self) -> None:
        """lo has none of the overlay's addresses. Idempotent. Raises OSError."""
        self._remove(self.known(self._kernel.held_addresses()))

    def _remove(self, addresses: Iterable[Address]) -> None:
        gone = set(addresses)
        for address in gone:
            log.info("%s is no address of this node any more: taking it off lo", address)
            self._kernel.remove_node_address(address)
        self._note(self._state.own_addresses - gone)

    def _note(self, addresses: Collection[Address]) -> None:
        """Write down which they are. Without room on the disk IFA_PROTO says so."""
        try:
            self._state.note_own_addresses(addresses)
        except InputOutput as error:
            log.warning("the addresses on lo could not be written down: %s", error.msg)
