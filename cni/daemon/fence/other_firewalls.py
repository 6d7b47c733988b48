"""Other programs' firewalls on this node, which may drop what containers send or get whatever the fence allows."""

from __future__ import annotations

import contextlib
import logging
import threading

from cni.daemon.fence.model import TABLE
from cni.daemon.fence.tables import FenceTables
from cni.daemon.state.state import State
from cni.errors import FenceFailed
from cni.host import iptables
from cni.host.nft_forward import firewall_obstacles

log = logging.getLogger(__name__)


class OtherFirewalls:
    """Thread-safe; its lock is its own, since iptables takes milliseconds."""

    def __init__(self, tables: FenceTables, state: State) -> None:
        self._tables, self._state = tables, state
        self._lock = threading.Lock()
        self._closed = False
        self._chains = frozenset({"FORWARD", iptables.CHAIN})

    def forward_chains(self) -> frozenset[str]:
        """iptables' chains that decide on forwarded packets, as of the last `open_forwarding`. Waits for nothing."""
        return self._chains

    def open_forwarding(self) -> str:
        """Lets containers through iptables' FORWARD where that denies. Returns why that failed, or an empty string."""
        try:
            with self._lock:
                if self._closed:
                    return ""
                opened = iptables.ensure_forward_accept(self._state.cidrs)
                self._chains = opened.chains
            if opened.wrote:
                log.info("iptables' FORWARD denies: one jump lets the overlay's containers through")
        except FenceFailed as error:
            return f"{error.msg}: {error.details}"
        return ""

    def reopen(self) -> None:
        """Lets `open_forwarding` work again after `close_forwarding`."""
        self._closed = False

    def close_forwarding(self) -> None:
        """Deletes the jump in iptables' FORWARD, which stays deleted. Raises FenceFailed."""
        self._closed = True
        with self._lock:
            iptables.remove_forward_accept()

    def obstacles(self) -> dict[str, str]:
        """Other programs' chains that drop what containers send, which our tables cannot override: by chain, what drops
        and what lets it through. Of iptables' filter table see `open_forwarding`.
        """
        found: dict[str, str] = {}
        loader, clusters = self._tables.loader, self._state.cidrs
        with contextlib.suppress(FenceFailed):
            if loader is not None:
                for obstacle in firewall_obstacles(loader.nft, clusters, TABLE):
                    found[obstacle.chain] = obstacle.describe(clusters)
        with contextlib.suppress(FenceFailed):
            for chain, rule in iptables.legacy_denials(clusters).items():
                found[chain] = iptables.describe_denial(chain, rule)
        return found
