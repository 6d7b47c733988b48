"""The relays that forward in user space: those that this node uses by its forwarder, and the one that it serves."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from cni.addresses import Address, Network
from cni.daemon.model import nat_candidates
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.wireguard import Target
from cni.daemon.nat.forwarder_client import ForwarderClient, place_of
from cni.daemon.nat.forwarder_words import SeenRelay
from cni.daemon.nat.rules import NatRules, ServerRules
from cni.daemon.nat.zlayer_server import ZlayerServer

LINGER = 60.0  # seconds for which a peer is reached through a relay after the path in use is another one
MOST_RELAYED, MOST_REMOTES = 4, 6  # of a peer: its addresses at relays; the others at which a relay reaches it


class UserRelays:
    """Both roles of one node. Times in seconds on the monotonic clock. For one thread."""

    def __init__(self, forwarder: ForwarderClient, server: ZlayerServer) -> None:
        self._forwarder, self._server = forwarder, server
        self._ranges: Collection[Network] = ()
        self._until: dict[str, float] = {}  # until when each peer is reached

    def configure(
        self, rules: NatRules, own: Iterable[Address], ranges: Collection[Network], port: int, mark: int
    ) -> None:
        """Take in rules and this node's addresses. `port`, `mark`: of WireGuard."""
        self._ranges = ranges
        self._forwarder.configure(rules.relays, port, mark)
        self._server.configure(_server_rules(rules, own))

    def close(self) -> None:
        """Leave the forwarder, which works on."""
        self._forwarder.close()

    def stop(self) -> None:
        """End the server."""
        self._server.stop()

    def remove(self) -> None:
        """End the forwarder and the server."""
        self._forwarder.remove()
        self._server.configure(None)

    def sockets(self) -> list[socket.socket]:
        """What becomes readable with news."""
        return self._forwarder.sockets()

    def due(self) -> float:
        """When `reach` should be called next."""
        return self._forwarder.due()

    def published(self) -> tuple[str, ...]:
        """This node's addresses at relays."""
        return tuple(self._forwarder.relayed()[:MOST_RELAYED])

    def seen(self) -> tuple[SeenRelay, ...]:
        """Every relay in use."""
        return self._forwarder.relays()

    def reach(
        self, wanted: Iterable[str], targets: Mapping[str, Target], called: Mapping[str, list[str]], now: float
    ) -> list[str] | None:
        """Have the relays lead to the peers `wanted`, which have no better path. `called`: the endpoints of each peer.
        Returns the peers whose places may have changed; None if nothing has."""
        self._until |= dict.fromkeys(wanted, now + LINGER)
        self._until = {key: until for key, until in self._until.items() if key in targets and until > now}
        self._forwarder.reach(
            place for key in self._until for place in self._remotes(targets[key], called.get(key, []))
        )
        return list(self._until) if self._forwarder.work(now) else None

    def reached(self) -> Collection[str]:
        """The peers to which relays lead."""
        return self._until.keys()

    def places(self, target: Target, called: list[str]) -> list[Place]:
        """The places by which a peer is reached through a relay: its addresses at its own relays, and the local ports
        that lead through this node's."""
        return [*self._relayed(target), *self._forwarder.places(self._remotes(target, called))]

    def is_beyond(self, place: Place, target: Target) -> bool:
        """Whether a peer that sends from a place has sent through a relay. From this machine only the forwarder sends
        what only the peer can make."""
        is_forwarded = place[0].is_loopback and bool(self._forwarder.sockets())
        return is_forwarded or place in self._relayed(target)

    def name_at(self, place: Place) -> str:
        """Who relays at a place, for people."""
        behind = self._forwarder.behind(place)
        return f"{behind[0]}, which leads to {behind[1]}," if behind is not None else "a relay of the peer"

    def _relayed(self, target: Target) -> list[Place]:
        named = [place_of(text) for text in target.nat.relayed] if target.nat is not None else []
        return [place for place in named if not nat_candidates.refusal(place, self._ranges)][:MOST_RELAYED]

    def _remotes(self, target: Target, called: list[str]) -> list[Place]:
        """Where a peer is reached from a relay, and may send to it from: outside its NAT, if it is behind one."""
        outside = target.nat.outside if target.nat is not None else ()
        places = [place_of(text) for text in outside or called]
        usable = [place for place in places if not nat_candidates.refusal(place, self._ranges)]
        return [*usable[:MOST_REMOTES], *self._relayed(target)]


def _server_rules(rules: NatRules, own: Iterable[Address]) -> ServerRules | None:
    """The rules of the server with an address at which others reach this node; None without one."""
    address = next((str(address) for address in own if address.version == 4), "")
    if rules.server is None or not (rules.server.external or address):
        return None
    return replace(rules.server, external=rules.server.external or address)
