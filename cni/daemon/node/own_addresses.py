"""The overlay's addresses on lo: the node's own, and those of processes of the host. Former ones are removed.

A former address that stayed would answer in place of another node, and this node would swallow that node's traffic. The
records tell which addresses on lo are the overlay's; where the records were lost, IFA_PROTO does (Linux 5.18). For a
version that wrote neither, its records lack such notes, and the shape of a node address decides.
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
    """Adds and removes the overlay's addresses on lo. Thread-safe."""

    def __init__(self, state: State, kernel: Kernel, alone: Callable[[], bool]) -> None:
        """`alone`: whether no other zlayer-cni daemon works in this network namespace; only then IFA_PROTO identifies
        this daemon's addresses."""
        self._state, self._kernel, self._alone = state, kernel, alone

    def wanted(self) -> set[Address]:
        """The node's addresses, and every address that is leased without a container: a process of the host has its
        address on lo."""
        return {*self._state.node_addresses(), *map(ipaddress.ip_address, self._state.leases)}

    def known(self, on_lo: Iterable[HeldAddress]) -> set[Address]:
        """Those of `on_lo` that are the overlay's, former ones included, and `wanted`."""
        by_shape = () if self._state.notes_own_addresses else self._state.cidrs
        return of_ours(on_lo, self._state.own_addresses, self._alone(), by_shape) | self.wanted()

    def ensure(self) -> dict[str, str]:
        """Put the node's addresses on lo, and remove former ones. Returns the reason by address for each that could
        not be added. Idempotent. Raises OSError."""
        needed = self.wanted()
        former = self.known(self._kernel.held_addresses()) - needed
        self._note(self._state.own_addresses | set(self._state.node_addresses()))
        faults = {}
        for address in self._state.node_addresses():
            try:
                self._kernel.ensure_node_address(address)
            except OSError as error:  # its family may be disabled: go on with the other
                faults[str(address)] = str(error)
        self._remove(former)
        return faults

    def remove_all(self) -> None:
        """Remove all of the overlay's addresses from lo. Idempotent. Raises OSError."""
        self._remove(self.known(self._kernel.held_addresses()))

    def _remove(self, addresses: Iterable[Address]) -> None:
        gone = set(addresses)
        for address in gone:
            log.info("%s is no longer an address of this node: removing it from lo", address)
            self._kernel.remove_node_address(address)
        self._note(self._state.own_addresses - gone)

    def _note(self, addresses: Collection[Address]) -> None:
        """Record the overlay's addresses on lo. If the disk is full, IFA_PROTO still identifies them."""
        try:
            self._state.note_own_addresses(addresses)
        except InputOutput as error:
            log.warning("the addresses on lo could not be recorded: %s", error.msg)
