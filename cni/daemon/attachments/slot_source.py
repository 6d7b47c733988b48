"""Where a segment's subnets come from: on a node alone from its own records, in a cluster from claims in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni.addresses import Network
from cni.daemon.state.state import State
from cni.errors import TryAgainLater

if TYPE_CHECKING:
    from cni.daemon.cluster.claims import Claims


class SlotSource:
    """Chooses the slots that a segment gets next."""

    def __init__(self, state: State, claims: Claims | None) -> None:
        """`claims`: the claims in the cluster's store, which exclude the other nodes; None outside a cluster."""
        self._state, self._claims = state, claims

    def first(self, segment: str) -> dict[int, Network]:
        """The claimed slots that the segment lacks, by IP version; empty outside a cluster, where the records choose.
        Raises PoolExhausted, TryAgainLater."""
        claims = self._claims
        if claims is None:
            return {}
        return {version: self._claim(claims, segment, version, 0) for version in self._state.lacks(segment)}

    def further(self, segment: str, version: int) -> Network | None:
        """The claimed slot for one more subnet of the segment; None outside a cluster, where the records choose.
        Raises PoolExhausted, TryAgainLater."""
        if self._claims is None:
            return None
        return self._claim(self._claims, segment, version, self._state.next_slot(segment, version))

    def _claim(self, claims: Claims, segment: str, version: int, n: int) -> Network:
        """Claim a slot, so that no other node has it or can take it; the segment's `n`th of that IP version, 0 the
        first. Raises PoolExhausted, TryAgainLater."""
        refused: list[Network] = []
        record = self._state.service(segment)
        own = [] if record is None else record.networks(version)
        try:
            for network in claims.held(segment, version):
                usable = network not in own and self._state.may_take(network)
                if usable and claims.claim(network, segment):
                    return network
            while True:
                network = self._state.propose(segment, version, n, refused)
                if claims.claim(network, segment):
                    return network
                refused.append(network)
        except TryAgainLater:
            spare = claims.take_spare(version, segment, self._state.may_take)
            if spare is None:
                raise
            return spare
