"""A mesh without WireGuard devices: the peers that agents recorded, none of them on a device."""

from __future__ import annotations

from cni.daemon.model import peer_table
from cni.daemon.model.fleet import GLOBAL
from cni.daemon.model.wireguard import Target
from cni.daemon.state.tables import Tables
from cni.host.wg_types import DeviceSeen


class FakeMesh:
    """What operations use of `Mesh`, over the records alone."""

    def __init__(self, registry: Tables) -> None:
        self._registry = registry

    def sync(self) -> None:
        """There is no device to bring up to date."""

    def wanted(self) -> bool:
        return False

    def interface(self) -> str | None:
        return None

    def device(self) -> DeviceSeen | None:
        return None

    def targets(self, service: str = GLOBAL) -> dict[str, Target]:
        """The recorded peers of a device, by public key."""
        book = peer_table.of_device(self._registry.peers.all(), None if service == GLOBAL else service)
        return {
            peer.public_key: Target(
                peer.public_key, (peer.endpoint,) if peer.endpoint else (), peer.allowed_ips, peer.keepalive
            )
            for peer in book
        }
