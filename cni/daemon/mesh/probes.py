"""Asks peers for a sign of life through their tunnels."""

from __future__ import annotations

from collections.abc import Mapping

from cni.daemon.mesh.answers import Answers
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.state.state import boot_clock
from cni.host.tunnels import Tunnels


class TunnelProbes:
    """The probes of the global device's peers. For one thread at a time."""

    def __init__(self, mesh: Mesh, tunnels: Tunnels) -> None:
        self._mesh, self._tunnels = mesh, tunnels
        self._answers = Answers()

    def answering(self, probes: Mapping[str, str]) -> set[str]:
        """The peers that answer through their tunnels, regardless of the cluster's records. `probes`: an address behind
        each peer, by key. A datagram is sent to the address, and the peer's WireGuard answers within ten seconds."""
        device = self._mesh.device()
        if device is None:
            return set()
        self._answers.note({key: seen.received for key, seen in device.peers.items()}, boot_clock())
        for key, address in probes.items():
            if key in device.peers:
                self._tunnels.probe(address)
        return {key for key in probes if self._answers.answers(key, boot_clock())}
