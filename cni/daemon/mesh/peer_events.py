"""The events about peers that agents receive (contract 2.5): what changed between two readings of a device. Pure.

A peer is healthy if its last handshake is younger than a session can live, as in `status` and `peers`. The first
reading of a peer causes no event, nor does an endpoint that this node itself has set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cni.daemon.model.wireguard import DEAD
from cni.host.wg_types import PeerChange, PeerSeen
from cni.overlay import wire


@dataclass(frozen=True, slots=True)
class _PeerState:
    healthy: bool
    endpoint: str


class PeerEvents:
    """The state of the peers of all devices at the last reading. For one thread at a time."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, _PeerState]] = {}

    def update(self, device: str, peers: Mapping[str, PeerSeen], ages: Mapping[str, float]) -> list[wire.AnyEvent]:
        """The events since the last reading. `peers`: as read from the device; `ages`: seconds since each peer's last
        handshake."""
        before = self._states.get(device, {})
        now = self._states[device] = {key: _PeerState(ages[key] < DEAD, seen.endpoint) for key, seen in peers.items()}
        events: list[wire.AnyEvent] = []
        for key, state in now.items():
            earlier = before.get(key, state)
            if state.endpoint and state.endpoint != earlier.endpoint:
                events.append(wire.NatEndpointChanged(key, state.endpoint))
            if state.healthy != earlier.healthy:
                events.append(wire.PeerHealthChanged(key, state.healthy))
        return events

    def configured(self, device: str, changes: Iterable[PeerChange]) -> None:
        """Record endpoints that this node has set on the device, so that they cause no event."""
        states = self._states.get(device, {})
        for change in changes:
            if change.endpoint and change.public_key in states:
                states[change.public_key] = replace(states[change.public_key], endpoint=change.endpoint)

    def forget(self, device: str) -> None:
        """Drop the state of a device that was removed."""
        self._states.pop(device, None)
