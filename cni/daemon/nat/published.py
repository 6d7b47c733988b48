"""What this node says of itself and of its paths: its word to the cluster, and the views for people."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import msgspec

from cni.addresses import Address, Network
from cni.daemon.events import Events, NodeFactsChanged
from cni.daemon.model.cluster_records import NatWord
from cni.daemon.model.nat_words import PathView, RelayView
from cni.daemon.model.peer_paths import RELAYED, Place
from cni.daemon.nat.outside import Outside
from cni.daemon.nat.relay_talk import RelayTalk
from cni.daemon.nat.sought_peers import SoughtPeers
from cni.daemon.nat.user_relays import UserRelays
from cni.host.wg_types import join_endpoint

log = logging.getLogger(__name__)


class Published:
    """What one node says. Written by the thread that searches, read by any."""

    def __init__(
        self, peers: SoughtPeers, relays: RelayTalk, user_relays: UserRelays, outside: Outside, events: Events
    ) -> None:
        self._peers, self._relays, self._user_relays = peers, relays, user_relays
        self._outside, self._events = outside, events
        self.word: NatWord | None = None
        """What the cluster is told of this node; None while it searches for no path."""
        self.views: Mapping[str, PathView] = {}
        """The path to each peer, by public key."""

    def update(self, own: Collection[Address], port: int, ranges: Collection[Network]) -> None:
        """Tell the cluster if this node is seen from elsewhere than before. `own`: this node's addresses; `port`:
        WireGuard's; `ranges`: the overlay's."""
        word = self._outside.word(own, port, ranges)
        word = msgspec.structs.replace(word, relay=self._relays.address, relayed=self._user_relays.published())
        if word != self.word:
            log.info(
                "this node is seen from %s; mapping: %s", ", ".join(word.outside) or "no other place", word.mapping
            )
            self.word = word
            self._events.publish(NodeFactsChanged())

    def withdraw(self) -> None:
        """Say nothing any more: no path is searched for."""
        self.word, self.views = None, {}

    def show(self) -> None:
        """Renew the views of all peers."""
        self.views = {key: self._view(key) for key in self._peers.paths}

    def show_one(self, key: str) -> None:
        """Renew the view of one peer."""
        self.views = {**self.views, key: self._view(key)}

    def relays(self) -> list[RelayView]:
        """The relays that this node may use."""
        views = [
            RelayView(seen.id, seen.relayed, seen.seconds if seen.relayed else None, seen.fault)
            for seen in self._user_relays.seen()
        ]
        for key, target in list(self._peers.targets.items()):
            if target.nat is not None and target.nat.relay:
                view = self.views.get(key)
                fault = "" if view is not None and view.kind else "there is no path to this node"
                views.append(RelayView(target.name or key, "", view.seconds if view is not None else None, fault))
        return views

    def _view(self, key: str) -> PathView:
        paths, target = self._peers.paths[key], self._peers.targets[key]
        chosen = paths.chosen
        return PathView(
            kind=paths.kind or "",
            endpoint=join_endpoint(*chosen) if chosen is not None else "",
            seconds=paths.candidates[chosen].seconds if chosen is not None else None,
            tried=tuple(join_endpoint(*place) for place, seen in paths.candidates.items() if seen.kind not in RELAYED),
            own=self.word.mapping if self.word is not None else "",
            theirs=target.nat.mapping if target.nat is not None else "",
            relay=self._relay_name(chosen) if chosen is not None else "",
            use=target.relay,
        )

    def _relay_name(self, place: Place) -> str:
        """Who relays at a place, for people."""
        relay, targets = self._relays.relay_at(place), self._peers.targets
        return targets[relay].name if relay in targets else self._user_relays.name_at(place)
