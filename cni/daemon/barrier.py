"""What stands between containers and everybody else: our nftables tables, kept in step with the attachments.

The texts are `fence.py`'s; this runs them, one transaction a change, and remembers which networks have members. Whoever
is not admitted is closed, so a failure here never opens anything: the attach fails instead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from cni.daemon import fence, macs
from cni.daemon.fence_values import Bridge, Node, Port
from cni.daemon.records import Attachment, Service
from cni.daemon.settings import Settings
from cni.daemon.state import State
from cni.errors import FenceFailed
from cni.host.nft import Nft, NftError

log = logging.getLogger(__name__)


class Barrier:
    """Loads the tables, admits ports, expels them. Safe from any thread."""

    def __init__(self, state: State, settings: Settings) -> None:
        self._state = state
        self._settings = settings
        self._lock = threading.Lock()
        self._nft: Nft | None = None
        self._trouble = "the tables were never loaded"
        self._members: dict[str, set[str]] = {}

    def load(self) -> None:
        """Put the tables in force with everybody who is recorded, or note why that cannot be.

        Rules first, then members: those who are fenced already stay so throughout, others are closed until admitted.
        """
        with self._lock:
            try:
                if self._nft is None:
                    self._nft = Nft()
                for text in self._everything():
                    self._nft.run(text)
            except FenceFailed as error:
                self._trouble = f"{error.msg}: {error.details}"
                log.error("the fence is not in force: %s", self._trouble)
            else:
                self._trouble = ""

    def _everything(self) -> list[str]:
        attachments = self._state.snapshot()
        self._members = {}
        for each in attachments:
            if each.isolation is not None:
                self._members.setdefault(each.isolation, set()).add(each.host_veth)
        elements = [fence.open_bridge(_bridge(name)) for name in bridges(self._state.services.values())]
        elements += [fence.admit(port_of(each)) for each in attachments]
        networks = "".join(fence.create_network(network) for network in self._members)
        return [fence.base(self._node()) + networks, "".join(elements)]

    def _node(self) -> Node:
        state = self._state
        return Node(
            clusters=state.cidrs,
            addresses=tuple(str(address) for address in state.node_addresses()),
            masquerade=self._settings.masquerade,
        )

    def unload(self) -> None:
        """No table of ours afterwards: nothing is fenced, nothing masqueraded. Only `uninstall` asks for it."""
        with self._lock:
            if self._nft is not None:
                self._nft.run(fence.uninstall())
            self._trouble = "the tables were taken down"

    def trouble(self) -> str:
        """Why the tables are not in force; empty when they are, as far as we know without looking."""
        return self._trouble

    def add_bridge(self, name: str) -> None:
        """A bridge of ours is about to appear: what comes from behind it is a container's. Raises FenceFailed."""
        self._change(fence.open_bridge(_bridge(name)))

    def remove_bridge(self, name: str) -> None:
        """A bridge of ours has gone."""
        self._forget(fence.close_bridge(_bridge(name)))

    def admit(self, attachment: Attachment) -> None:
        """Let the attachment's port reach its network, before its link comes up. Raises FenceFailed."""
        with self._lock:
            network = attachment.isolation
            if network is not None:
                if network not in self._members:
                    self._run(fence.create_network(network))
                self._members.setdefault(network, set()).add(attachment.host_veth)
            self._run(fence.admit(port_of(attachment)))

    def expel(self, attachment: Attachment) -> None:
        """The port is gone: nothing of it stays, its established flows included. Nothing to do without tables."""
        with self._lock:
            if self._trouble:
                return
            self._try(fence.expel(port_of(attachment)))
            network = attachment.isolation
            if network is not None and network in self._members:
                self._members[network].discard(attachment.host_veth)
                if not self._members[network]:
                    del self._members[network]
                    self._try(fence.forget_network(network))

    def missing(self, attachment: Attachment) -> list[str]:
        """What of the attachment's fence is not in the kernel."""
        return [self._trouble] if self._trouble else []

    def _change(self, text: str) -> None:
        with self._lock:
            self._run(text)

    def _forget(self, text: str) -> None:
        with self._lock:
            if not self._trouble:
                self._try(text)

    def _run(self, text: str) -> None:
        if self._trouble or self._nft is None:
            raise FenceFailed("the isolation fence cannot be put in force", self._trouble)
        self._nft.run(text)

    def _try(self, text: str) -> None:
        """A removal that fails leaves an element too many: closed for others, mended by the next load."""
        try:
            self._run(text)
        except NftError as error:
            log.warning("could not remove fence elements: %s", error.details)


def _bridge(name: str) -> Bridge:
    return Bridge(name, macs.of_bridge(name))


def bridges(services: Iterable[Service]) -> list[str]:
    """The names of the bridges these services are on, each once."""
    return list(dict.fromkeys(service.bridge for service in services))


def port_of(attachment: Attachment) -> Port:
    """The fence's view of an attachment."""
    return Port(
        attachment.host_veth,
        attachment.bridge,
        attachment.mac,
        tuple(held.ip for held in attachment.addresses),
        attachment.isolation,
    )
