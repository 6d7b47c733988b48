"""Lets programs of the host resolve the overlay's names, where systemd-resolved runs (`dns: {host: true}`).

systemd-resolved gets a link of its own with the node's address as server and the zones as its only domains: every other
name of the host goes its former way, and no file of the host changes. What it was told ends with the link.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from cni import naming
from cni.daemon.model.dns_names import Zone
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.defaults import DNS_PORT
from cni.host import resolved
from cni.host.worker import beat
from cni.overlay.address import join_host_port

CODE = "dns-host-not-set"
AGAIN = 60.0  # seconds after which what is right is compared again; a failure, at every call


class HostResolver:
    """The setting of one node. For one thread at a time."""

    def __init__(
        self, settings: Settings, zone: Callable[[], Zone], served: Callable[[], tuple[str, ...]], board: ProblemBoard
    ) -> None:
        """`zone`: the overlay's, now; `served`: the addresses at which the node answers DNS."""
        self._settings, self._zone, self._served, self._board = settings, zone, served, board
        names = (settings.deployment, str(settings.instance_id))
        self._link, self._peer = naming.resolver_link(*names), naming.resolver_link(*names, peer=True)
        self._right: tuple[object, ...] = ()
        self._compared = float("-inf")

    def repair(self) -> None:
        """Make the setting what it must be; what prevents it becomes a problem. Never raises."""
        if not self._settings.dns.host:
            if not self._right:
                self.remove()
                self._right = ("off",)
            return
        wanted, now = (self._served(), self._zone()), time.monotonic()
        if wanted == self._right and now - self._compared < AGAIN:
            return
        self._right = ()
        beat(9 * resolved.PATIENCE)
        with self._board.step(CODE, "", "programs of the host cannot resolve the overlay's names"):
            self._set(*wanted)
            self._right, self._compared = wanted, now

    def remove(self) -> None:
        """Take the setting away. Never raises: the link is a leftover at most."""
        with self._board.step(CODE, "", f"{self._link} could not be removed"):
            resolved.remove_link(self._link)

    def _set(self, served: tuple[str, ...], zone: Zone) -> None:
        if not resolved.is_running():
            raise OSError("systemd-resolved does not run on this node")
        if not served:
            raise OSError("the node serves no DNS at present")
        resolved.ensure_link(self._link, self._peer, [ipaddress.ip_interface(address) for address in served])
        port = self._settings.dns.port
        servers = [address if port == DNS_PORT else join_host_port(address, port) for address in served]
        resolved.configure(self._link, servers, zone.served())
        if not resolved.is_asked():
            raise OSError(
                "/etc/resolv.conf names other servers than systemd-resolved (127.0.0.53), and nsswitch.conf has no"
                " `resolve`: systemd-resolved knows the zone, and programs do not ask it"
            )
