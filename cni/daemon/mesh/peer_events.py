"""What has become of peers since the last look at them: the events that agents are told (contract 2.5). Values alone.

A peer answers while it was heard of within the time that a session can live, as `status` and `peers` have it. What is
so at the first look at a peer is no news, nor is an endpoint that this node itself has set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cni.daemon.model.wireguard import DEAD
from cni.host.wg_types import PeerChange, PeerSeen
from cni.overlay import wire


@dataclass(frozen=True, slots=True)
class _Known:
    answers: bool
    endpoint: str


class PeerEvents:
    """Of all devices. One thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, _Known]] = {}

    def look(self, device: str, peers: Mapping[str, PeerSeen], ages: Mapping[str, float]) -> list[wire.AnyEvent]:
        """What has changed. `peers`: as the device has them; `ages`: seconds since each was heard of."""
        before = self._known.get(device, {})
        now = self._known[device] = {key: _Known(ages[key] < DEAD, seen.endpoint) for key, seen in peers.items()}
        found: list[wire.AnyEvent] = []
        for key, known in now.items():
            was = before.get(key, known)
            if known.endpoint and known.endpoint != was.endpoint:
                found.append(wire.NatEndpointChanged(key, known.endpoint))
            if known.answers != was.answers:
                found.append(wire.PeerHealthChanged(key, known.answers))
        return found

    def told(self, device: str, changes: Iterable[PeerChange]) -> None:
        """This node has changed the device so."""
        known = self._known.get(device, {})
        for change in changes:
            if change.endpoint and change.public_key in known:
                known[change.public_key] = replace(known[change.public_key], endpoint=change.endpoint)

    def forget(self, device: str) -> None:
        """The device has gone."""
        self._known.pop(device, None)
