"""How this node is seen from outside: by STUN servers, by peers, and by what its router has mapped."""

from __future__ import annotations

import socket
from collections.abc import Collection

import msgspec

from cni.addresses import Address, Network
from cni.daemon.model import nat_candidates
from cni.daemon.model.cluster_records import NatWord
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.nat.own_places import OwnPlaces
from cni.daemon.nat.port_mapper import PortMapper
from cni.daemon.nat.rules import NatRules
from cni.daemon.nat.server_round import ServerRound
from cni.host.wg_types import join_endpoint


class Outside:
    """What is known of one node. Times in seconds on the monotonic clock. For one thread, except `mapping`."""

    def __init__(self, servers: ServerRound) -> None:
        self._servers, self._seen, self._mapper = servers, OwnPlaces(), PortMapper()
        self.mapping = self._mapper.words()
        """What is known of the router's mapping, for people."""

    def configure(self, rules: NatRules, own: Collection[Address], port: int, is_new: bool, now: float) -> None:
        """Take in rules, and this node's own addresses; `is_new`: they have changed."""
        if is_new:
            self._seen.forget()
            self._servers.begin(rules.stun, now)
        self._servers.refresh(rules.stun, rules.refresh, now)
        self._mapper.configure(rules.maps_port, own, port, now)

    def ask_anew(self, rules: NatRules, now: float) -> None:
        """Ask the servers now, unless the last round has just begun: this node may be seen from elsewhere."""
        self._servers.ask_anew(rules.stun, now)

    def next_round(self, rules: NatRules) -> float:
        """When `configure` should be called next."""
        return self._servers.next_round(rules.stun, rules.refresh)

    def close(self) -> None:
        """Leave the router's mapping, which lasts for its lifetime."""
        self._mapper.close()

    def remove(self) -> None:
        """Remove the router's mapping."""
        self._mapper.remove()

    def sockets(self) -> list[socket.socket]:
        """What becomes readable with an answer of the router."""
        return self._mapper.sockets()

    def due(self) -> float:
        """When something is to be sent."""
        return min(self._servers.due(), self._mapper.due())

    def requests(self, now: float) -> list[tuple[Place, bytes]]:
        """The requests to STUN servers that are due."""
        return self._servers.requests(now)

    def ask_router(self, now: float) -> bool:
        """Keep the router's mapping; returns whether it has changed."""
        has_changed = self._mapper.work(now)
        self.mapping = self._mapper.words()
        return has_changed

    def take(self, message: bytes, now: float) -> bool:
        """Take in a STUN server's answer; returns whether it was one that counts."""
        reply = self._servers.take(message, now)
        if reply is None or reply.answer.mapped is None:
            return False
        self._seen.note(reply.query.server, reply.answer.mapped, now)
        return True

    def note(self, witness: Place, seen: Place, now: float) -> None:
        """Take in from where a peer has seen this node."""
        self._seen.note(witness, seen, now)

    def word(self, own: Collection[Address], port: int, ranges: Collection[Network]) -> NatWord:
        """What this node publishes. What the router has mapped comes first: it lets in every sender."""
        word, mapped = self._seen.word(own, port, ranges), self._mapper.place()
        if mapped is None or nat_candidates.refusal(mapped, ranges):
            return word
        outside = dict.fromkeys((join_endpoint(*mapped), *word.outside))
        return msgspec.structs.replace(word, outside=tuple(outside)[: nat_candidates.MOST_OUTSIDE])
