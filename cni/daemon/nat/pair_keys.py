"""The keys of probes: one for each peer, computed once, because X25519 takes 50 us."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping

from cni.daemon import public_keys
from cni.daemon.model import keys, probe_message

log = logging.getLogger(__name__)


class PairKeys:
    """The peers' names and keys, by public key. For one thread."""

    def __init__(self) -> None:
        self._private = ""
        self.own = b""
        self._by_key: dict[str, bytes] = {}
        self._by_name: dict[bytes, str] = {}

    def update(self, private: str, peers: Iterable[str]) -> None:
        """Set this node's private key and the public keys of the peers, base64."""
        if private != self._private:
            self._private, self._by_key = private, {}
            self.own = probe_message.name_of(base64.b64decode(public_keys.public_of(private)))
        wanted = set(peers)
        self._by_key = {peer: key for peer, key in self._by_key.items() if peer in wanted}
        for peer in wanted - self._by_key.keys():
            try:
                shared = public_keys.agreement()(keys.decode(private), keys.decode(peer))
            except (OSError, ValueError) as error:
                log.warning("no probes are exchanged with the peer %s: %s", peer, error)
                continue
            self._by_key[peer] = probe_message.key_of(shared)
        self._by_name = {probe_message.name_of(keys.decode(peer)): peer for peer in self._by_key}

    def peer_of(self, name: bytes) -> str:
        """The public key of the peer with that name; "" if there is none."""
        return self._by_name.get(name, "")

    @property
    def by_peer(self) -> Mapping[str, bytes]:
        """The key of each peer's probes."""
        return self._by_key
