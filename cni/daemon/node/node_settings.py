"""The node's own settings and addresses: restored where the overlay needs them, and read as the kernel applies them."""

from __future__ import annotations

import logging

from cni.daemon.model import sizes
from cni.daemon.node import kernel_settings
from cni.daemon.node.own_addresses import OwnAddresses
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.errors import AttachFailed
from cni.host import rights
from cni.host.kernel import Kernel

log = logging.getLogger(__name__)


class NodeSettings:
    """The settings of one node. Thread-safe; no method raises OSError unless it says so."""

    def __init__(
        self, settings: Settings, state: State, kernel: Kernel, own: OwnAddresses, board: ProblemBoard
    ) -> None:
        self._tunnels = settings.wireguard_engine != "none"
        self._state, self._kernel, self._own, self._board = state, kernel, own, board

    def repair_forwarding(self) -> None:
        """Enable forwarding for each family separately; a failure becomes a problem."""
        for version in self._state.versions():
            with self._board.step("node-setting", f"forwarding {version}", f"forwarding of IPv{version} cannot be set"):
                self._kernel.enable_forwarding([version])
        self.keep_advertisements()

    def refuse(self) -> None:
        """Raises AttachFailed if the daemon's container lacks a right without which no attach succeeds, or if the node
        does not forward IPv6 for the overlay and the setting cannot be written: nothing of an attach is made then."""
        if lacking := rights.refusal():
            raise AttachFailed(lacking)
        if 6 in self._state.versions() and not self._kernel.forwarding(6):
            try:
                self._kernel.enable_forwarding([6])
            except OSError as error:
                raise AttachFailed(str(error)) from error

    def keep_advertisements(self) -> None:
        """Let new links of the host accept router advertisements although the node forwards IPv6; a failure becomes a
        problem."""
        if 6 not in self._state.versions():
            return
        with self._board.step("node-setting", "accept_ra", "a link of the host accepts no router advertisements"):
            for link in self._kernel.keep_advertisements():
                log.info("%s accepts router advertisements: the node forwards IPv6, so accept_ra is 2 now", link)

    def repair(self) -> None:
        """Restore forwarding and the node's own addresses, each family separately; a failure becomes a problem."""
        self.repair_forwarding()
        with self._board.step("look-incomplete", "own addresses", "the node's own addresses could not be compared"):
            faults = self._own.ensure()
            texts = {
                address: f"the node cannot have its own address {address}: {why}" for address, why in faults.items()
            }
            self._board.set_all("node-address", texts)

    def stopped(self, way_in: str = "") -> dict[str, str]:
        """Why packets of containers are not forwarded, by subject; with `way_in`, of those that come in by that bridge
        or port. Raises OSError."""
        forwards = {version: self._kernel.forwarding(version) for version in self._state.versions()}
        closed = self._kernel.not_forwarding() if 4 in forwards else []
        if way_in:
            closed = [link for link in closed if link == way_in or not kernel_settings.is_ours(link)]
        return kernel_settings.forwarding_off(forwards, closed)

    def note(self, serving: bool) -> None:
        """Update the problems about settings as they are now; `serving`: the overlay is in service."""
        with self._board.step("look-incomplete", "settings", "the node's settings could not be read"):
            self._board.set_all("forwarding-off", self.stopped() if serving else {})
            self._board.set_all("kernel-setting", kernel_settings.overruled(self._kernel.arp_ignore()))
            six = 6 in self._state.versions()
            narrow = sizes.narrow(self._kernel.underlay_mtu(), six, self._tunnels)
            self._board.set("underlay-narrow", "", narrow if serving else "")
