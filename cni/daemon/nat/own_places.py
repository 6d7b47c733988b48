"""From where this node's WireGuard port is seen: by STUN servers, and by peers, which say it in their answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from cni.addresses import Address, Network
from cni.daemon.model import nat_behaviour, nat_candidates
from cni.daemon.model.cluster_records import NatWord
from cni.daemon.model.nat_behaviour import Observation, Place
from cni.host.wg_types import join_endpoint

MOST_WITNESSES = 64


@dataclass
class OwnPlaces:
    """The observations of one node. Times in seconds on the monotonic clock. For one thread."""

    _seen: dict[Place, tuple[Observation, float]] = field(default_factory=dict)

    def note(self, witness: Place, mapped: Place, now: float) -> None:
        """Take in from where a server or a peer saw a datagram of WireGuard's port. A witness that sees another
        address than before ends what all witnesses have seen at the former address."""
        before = self._seen.pop(witness, None)
        if before is not None and before[0].mapped[0] != mapped[0]:
            gone = before[0].mapped[0]
            self._seen = {other: seen for other, seen in self._seen.items() if seen[0].mapped[0] != gone}
        self._seen[witness] = (Observation(witness, mapped), now)
        while len(self._seen) > MOST_WITNESSES:
            del self._seen[next(iter(self._seen))]

    def forget(self) -> None:
        """Drop all observations: this node's own addresses have changed."""
        self._seen.clear()

    def word(self, own: Collection[Address], port: int, ranges: Collection[Network]) -> NatWord:
        """What this node publishes. An observation of another version of IP says nothing about this one's mapping, so
        only that of IPv4, which NATs are made for, names the mapping."""
        observed = nat_candidates.current(self._seen)
        outside = nat_candidates.published(observed, own, ranges)
        four = [seen for seen in observed if seen.mapped[0].version == 4]
        mapping = nat_behaviour.mapping_of(own, port, four)
        return NatWord(tuple(join_endpoint(*place) for place in outside), mapping)
