"""What stands between containers and everybody else: our nftables tables, kept in step with the attachments."""

from __future__ import annotations

import logging
import threading

from cni.daemon.records import Attachment
from cni.daemon.settings import Settings
from cni.daemon.state import State
from cni.errors import FenceFailed
from cni.host.nft import Nft, NftError

log = logging.getLogger(__name__)


class Barrier:
    """Loads the tables, admits ports, expels them. Every change is one transaction."""

    def __init__(self, state: State, settings: Settings) -> None:
        self._state = state
        self._settings = settings
        self._lock = threading.Lock()
        self._nft: Nft | None = None
        self._trouble = ""

    def load(self) -> None:
        """Put the tables in force, or note why that cannot be."""
        try:
            self._nft = Nft()
            self._nft.run(self._egress())
        except NftError as error:
            self._trouble = f"{error.msg}: {error.details}"
            log.error("the tables are not in force: %s", self._trouble)

    def _egress(self) -> str:
        cidr = self._state.node.cluster_cidr
        return f"""
add table inet zlayer
delete table inet zlayer
table inet zlayer {{
  chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
    ip saddr {cidr} ip daddr != {cidr} masquerade
  }}
}}
"""

    def unload(self) -> None:
        """No table of ours afterwards."""
        if self._nft is not None:
            self._nft.run("add table inet zlayer\ndelete table inet zlayer\n")

    def trouble(self) -> str:
        """Why the tables are not in force; empty when they are."""
        return self._trouble

    def add_bridge(self, name: str) -> None:
        """A bridge of ours is about to appear."""

    def remove_bridge(self, name: str) -> None:
        """A bridge of ours has gone."""

    def admit(self, attachment: Attachment) -> None:
        """Let the attachment's port through, as far as its network reaches. Raises FenceFailed."""
        if self._trouble:
            raise FenceFailed("the isolation fence cannot be put in force", self._trouble)
        if attachment.isolation is not None:
            raise FenceFailed(f"isolation network {attachment.isolation!r} is not supported yet")

    def expel(self, attachment: Attachment) -> None:
        """The port is gone: nothing of it stays."""

    def missing(self, attachment: Attachment) -> list[str]:
        """What of the attachment's fence is not in the kernel."""
        return []
