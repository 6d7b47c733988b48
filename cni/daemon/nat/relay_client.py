"""The relays that this node uses: which it has asked, which ports they gave it, and what keeps it bound to them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass

from cni.daemon.model import probe_message, relay_pairs
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.probe_message import Probe

AGAIN = 1.0  # seconds until a relay that has not answered is asked again
RENEW = 180.0  # seconds until a relay is asked again to keep the ports
EACH = 2  # relays for each pair: one takes over when the other is gone


@dataclass(frozen=True, slots=True)
class Node:
    """A node as this one sees it: its public key, its name in probes, and the address at which it relays, if any."""

    key: str
    name: bytes
    relay: str = ""


@dataclass(frozen=True, slots=True)
class _Grant:
    """`relay`: the relay's public key; `place`: its port for this node; `word`: the token for this node's address."""

    relay: str
    place: Place
    word: bytes = bytes(relay_pairs.TOKEN)


class RelayClient:
    """The ports that relays gave this node. Times in seconds on the monotonic clock. For one thread."""

    def __init__(self) -> None:
        self._grants: dict[tuple[str, str], _Grant] = {}  # by the peer's key and the relay's
        self._asked: dict[tuple[str, str], tuple[float, bytes]] = {}  # when, and the transaction

    def keep(self, peers: Iterable[str]) -> None:
        """Forget all that is about other nodes."""
        known = set(peers)
        for book in (self._grants, self._asked):
            for pair in [pair for pair in book if not known.issuperset(pair)]:
                del book[pair]

    def requests(self, own: bytes, peer: Node, nodes: Iterable[Node], now: float) -> list[tuple[str, Probe]]:
        """The requests to send now for a peer without a direct path, each with the relay's public key."""
        relays = {node.name: node for node in nodes if node.relay and node.key != peer.key}
        requests = []
        for name in relay_pairs.chosen(own, peer.name, relays, EACH):
            pair = (peer.key, relays[name].key)
            pause = RENEW if pair in self._grants else AGAIN
            if now - self._asked.get(pair, (float("-inf"), b""))[0] >= pause:
                transaction = os.urandom(probe_message.TRANSACTION)
                self._asked[pair] = (now, transaction)
                requests.append((relays[name].key, Probe("ask", name, own, transaction, word=peer.name)))
        return requests

    def granted(self, relay: Node, peer: str, probe: Probe) -> bool:
        """Take in a relay's answer; returns whether there is a place that was not there before."""
        pair = (peer, relay.key)
        if self._asked.get(pair, (0.0, b""))[1] != probe.transaction or not probe.port or not relay.relay:
            return False
        place = (ipaddress.ip_address(relay.relay), probe.port)
        before = self._grants.get(pair)
        if before is not None and before.place == place:
            return False
        self._grants[pair] = _Grant(relay.key, place)
        return True

    def checked(self, place: Place, probe: Probe) -> str:
        """Take in the token for this node's present address; returns the key of the peer whose path it opens, "" if no
        relay has given this place."""
        for pair, grant in self._grants.items():
            if grant.place == place:
                self._grants[pair] = _Grant(grant.relay, place, probe.word)
                return pair[0]
        return ""

    def places(self, peer: str) -> list[Place]:
        """The places of relays that lead to a peer."""
        return [grant.place for (of, _), grant in self._grants.items() if of == peer]

    def relay_at(self, place: Place) -> str:
        """The public key of the relay that gave a place; "" if none did."""
        return next((grant.relay for grant in self._grants.values() if grant.place == place), "")

    def bind(self, own: bytes, relay: bytes, place: Place) -> Probe:
        """What binds this node to a place. `relay`: the relay's name."""
        word = next(grant.word for grant in self._grants.values() if grant.place == place)
        return Probe("bind", relay, own, os.urandom(probe_message.TRANSACTION), word=word)
