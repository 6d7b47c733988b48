"""The peers that are searched for: each with its wanted state, its paths, and whether it answers probes."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping

from cni.addresses import Address, Network
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model import nat_candidates
from cni.daemon.model.peer_paths import Kind, PeerPaths, Place
from cni.daemon.model.wireguard import Target
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.relay_talk import RelayTalk
from cni.daemon.nat.user_relays import UserRelays
from cni.host.wg_types import DeviceSeen, join_endpoint, split_endpoint

HOLD = 15.0  # seconds for which a peer that answers probes is not called elsewhere, while no path is found
SEARCHING = 0.5  # seconds between two looks at a peer without a path: when a relay is asked, when it is called in turn
RELAY_AFTER = 1.0  # seconds without a direct path until a relay is asked
TRIES = 20.0  # seconds for which a peer is probed of which it is not known whether it answers probes


class SoughtPeers:
    """The peers of the global device. Times in seconds on the monotonic clock. For one thread, except `targets`."""

    def __init__(self, mesh: Mesh, pair_keys: PairKeys, relays: RelayTalk, user_relays: UserRelays) -> None:
        self._mesh, self._keys, self._relays, self._user_relays = mesh, pair_keys, relays, user_relays
        self._targets: Mapping[str, Target] = {}
        self._paths: dict[str, PeerPaths] = {}
        self._sources: dict[str, tuple[object, ...]] = {}  # what the places of each peer were last made of
        self._answers: set[str] = set()  # peers that have answered a probe
        self._own: Collection[Address] = ()
        self._ranges: Collection[Network] = ()
        self._most = 0

    @property
    def targets(self) -> Mapping[str, Target]:
        """The wanted state of each peer, by public key."""
        return self._targets

    @property
    def paths(self) -> Mapping[str, PeerPaths]:
        """The paths to each peer, by public key."""
        return self._paths

    # --- who they are ------------------------------------------------------------------------------------------------

    def update(
        self,
        targets: Mapping[str, Target],
        own: Collection[Address],
        ranges: Collection[Network],
        most: int,
        now: float,
    ) -> None:
        """Take in the peers. `own`: this node's addresses; `ranges`: the overlay's; `most`: how many places of a peer
        are tried."""
        self._targets, self._own, self._ranges, self._most = targets, own, ranges, most
        for gone in self._paths.keys() - targets.keys():
            del self._paths[gone]
            self._sources.pop(gone, None)
        for key in targets:
            self.name(key, now)

    def clear(self) -> None:
        """End the search for every peer."""
        self._paths, self._sources = {}, {}

    def begin(self, now: float) -> None:
        """Try every peer anew: this node's addresses have changed."""
        for paths in self._paths.values():
            paths.begin(now)

    def name(self, key: str, now: float) -> None:
        """Name the places at which a peer may be reached; different ones begin an attempt. To make places of texts is
        most of what an idle node would do for its peers, so it is left out while the texts are the same."""
        target = self._targets[key]
        called, by_relay = self._mesh.called_at(target), self._relays.places(key)
        is_forwarded = bool(self._user_relays.sockets())  # then the forwarder's places count too
        source = (target, called, self._own, self._ranges, self._most, by_relay, is_forwarded)
        if self._sources.get(key) == source and not is_forwarded:
            return
        self._sources[key] = source
        outside = [_place(text) for text in target.nat.outside] if target.nat is not None else []
        named = [_place(text) for text in called]
        paths = self._paths.get(key)
        if paths is None:
            paths = self._paths[key] = PeerPaths(now, target.relay)
            if (heard := self._heard_at(key)) is not None:
                paths.called_from(heard, now)
        own = [place for place in named if place not in outside]
        places = nat_candidates.places_of(own, outside, self._own, self._ranges, self._most)
        relayed: dict[Place, Kind] = dict.fromkeys(by_relay, "relay")
        paths.name({**places, **relayed, **dict.fromkeys(self._user_relays.places(target, called), "turn")}, now)

    def _heard_at(self, key: str) -> Place | None:
        """Where the device has heard a peer that is not searched for yet: an earlier daemon may have found that path,
        and a peer with a path sends no probes. A relay's port is none: the relay is asked for it again."""
        device = self._mesh.last_reading()
        seen = device.peers.get(key) if device is not None else None
        if seen is None or not seen.endpoint or not seen.last_handshake:
            return None
        place = _place(seen.endpoint)
        return None if self._relays.is_relay(place[0], key) or nat_candidates.refusal(place, self._ranges) else place

    # --- what happens ------------------------------------------------------------------------------------------------

    def pinged(self, key: str, place: Place, now: float) -> bool:
        """Take in a peer's authenticated ping from a place; returns whether to answer it. A peer that may not use that
        path gets no answer, which would make it one."""
        paths = self._paths.get(key)
        kind: Kind = self._kind_of(key, place) if key in self._targets else "outside"
        if paths is not None and not paths.may_use(kind):
            return False
        self._answers.add(key)
        if paths is not None and (kind == "turn" or not nat_candidates.refusal(place, self._ranges)):
            paths.called_from(place, now, kind)
        return True

    def answered(self, key: str, place: Place, seconds: float, now: float) -> None:
        """Take in the answer of a peer to a probe, after its round trip in seconds."""
        self._answers.add(key)
        self._paths[key].answered(place, seconds, now)

    def note_traffic(self, device: DeviceSeen, now: float) -> bool:
        """Take in the device's counters. Returns whether a path has become suspect."""
        suspect = False
        for key, seen in device.peers.items():
            if key in self._paths and self._paths[key].note_traffic(seen.sent, seen.received, now):
                suspect = True
        return suspect

    def _kind_of(self, key: str, place: Place) -> Kind:
        """What a place is from which a peer has sent."""
        if self._relays.relay_at(place):
            return "relay"
        return "turn" if self._user_relays.is_beyond(place, self._targets[key]) else "outside"

    # --- what follows ------------------------------------------------------------------------------------------------

    def chosen(self, key: str) -> Place | None:
        """The path in use to a peer; None while there is none."""
        return self._paths[key].chosen

    def probed(self, now: float) -> list[str]:
        """The peers to which probes are sent."""
        return [key for key in self._paths if self._is_probed(key, now)]

    def due(self, now: float) -> float:
        """When something is to be sent to a peer or decided next, unless something arrives; infinite for never."""
        times = [float("inf")]
        for key in self.probed(now):
            paths = self._paths[key]
            times.append(paths.due())
            if paths.chosen is None:
                times.append(now + SEARCHING)
        return min(times)

    def ask_relays_for(self, now: float) -> list[str]:
        """The peers that have no direct path, for which relays are asked for ports."""
        wanted = []
        for key, paths in self._paths.items():
            is_late = paths.searched_for(now) >= (0.0 if self._targets[key].relay == "only" else RELAY_AFTER)
            searches = paths.chosen is None and is_late and self._is_probed(key, now)
            if paths.may_use("relay") and (searches or paths.kind == "relay"):
                wanted.append(key)
        return wanted

    def forward_to(self, now: float) -> list[str]:
        """The peers that have no better path than one through a relay in user space."""
        return [
            key
            for key, paths in self._paths.items()
            if paths.may_use("turn")
            and (paths.kind == "turn" or (paths.chosen is None and paths.searched_for(now) >= RELAY_AFTER))
        ]

    def proven(self) -> dict[str, str]:
        """The endpoint in use of each peer that has a path."""
        return {key: join_endpoint(*paths.chosen) for key, paths in self._paths.items() if paths.chosen is not None}

    def held(self, now: float) -> frozenset[str]:
        """The peers that the mesh should not call elsewhere: a path to them is looked for."""
        return frozenset(
            key
            for key, paths in self._paths.items()
            if self._speaks(key) and paths.chosen is None and paths.searched_for(now) < HOLD
        )

    def _is_probed(self, key: str, now: float) -> bool:
        speaks = self._speaks(key) or self._paths[key].searched_for(now) < TRIES
        return speaks and key in self._keys.by_peer

    def _speaks(self, key: str) -> bool:
        """Whether a peer is known to answer probes."""
        return self._targets[key].nat is not None or key in self._answers


def _place(endpoint: str) -> Place:
    address, port = split_endpoint(endpoint)
    return ipaddress.ip_address(str(address)), port
