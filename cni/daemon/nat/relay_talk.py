"""The messages about relays in the kernel: those of the relays that this node uses, and of the one that it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cni.addresses import Address
from cni.daemon.model import keys, probe_message
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.probe_message import Probe
from cni.daemon.model.wireguard import Target
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.relay import Relay
from cni.daemon.nat.relay_client import Node, RelayClient
from cni.daemon.nat.rules import NatRules
from cni.host.relay_port import RelayPort
from cni.host.wg_port import PortSocket


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a message has changed: the peer of which a relay's port is new, and the peer to which one has opened; "" for
    none."""

    granted: str = ""
    opened: str = ""


class RelayTalk:
    """Both roles of one node. For one thread, except `remove`, for which the thread has ended."""

    def __init__(self, relay: Relay, pair_keys: PairKeys) -> None:
        self._relay, self._keys, self._client = relay, pair_keys, RelayClient()
        self._nodes: dict[str, Node] = {}
        self.address = ""
        """The address at which this node relays for others; "" if it does not, or if the host's firewalls deny."""
        self.obstacles: list[str] = []
        """What of the host's firewalls drops what this node relays."""

    def configure(self, rules: NatRules, targets: Mapping[str, Target], own: Iterable[Address], now: float) -> None:
        """Take in rules and peers."""
        self._client.keep(targets)
        self._nodes = {key: _node(target) for key, target in targets.items()}
        self._relay.configure(rules.relay)
        self.obstacles = self._relay.obstacles(now)
        self.address = _relay_address(rules, own) if not self.obstacles else ""

    def close(self) -> None:
        """Close the ports; what is joined stays joined."""
        self._relay.close()

    def remove(self) -> None:
        """Remove what relays for others, for `uninstall`."""
        self._relay.remove()

    def ports(self) -> list[RelayPort]:
        """What becomes readable when a side of a relayed pair speaks that is not joined yet."""
        return self._relay.ports()

    def serve(self, now: float) -> None:
        """Take in what has arrived at the relay's ports, and drop the pairs that no side asks for."""
        self._relay.receive(self._keys.by_peer, self._keys.peer_of, self._keys.own)
        self._relay.expire(now)

    def name_of(self, key: str) -> bytes:
        """A peer's name in probes."""
        return self._nodes[key].name

    def is_relay(self, address: Address, key: str) -> bool:
        """Whether another node than the peer `key` relays at an address."""
        return any(node.relay == str(address) for node in self._nodes.values() if node.key != key)

    def places(self, key: str) -> list[Place]:
        """The relays' ports that lead to a peer."""
        return self._client.places(key)

    def relay_at(self, place: Place) -> str:
        """The public key of the relay that gave a place; "" if none did."""
        return self._client.relay_at(place)

    def take(self, sock: PortSocket, key: str, probe: Probe, sender: Place) -> Outcome:
        """Take in an authenticated message about relays."""
        if probe.kind == "ask" and self._keys.peer_of(probe.word):
            port = self._relay.asked(probe.sender, probe.word)
            grant = Probe("grant", probe.sender, self._keys.own, probe.transaction, port=port, word=probe.word)
            sock.send(sender, probe_message.encode(grant, self._keys.by_peer[key]))
        elif probe.kind == "grant":
            peer = self._keys.peer_of(probe.word)
            if peer in self._nodes and self._client.granted(self._nodes[key], peer, probe):
                return Outcome(granted=peer)
        elif probe.kind == "check":
            peer = self._client.checked(sender, probe)
            if peer in self._nodes:
                self.bind(sock, sender)
                return Outcome(opened=peer)
        return Outcome()

    def bind(self, sock: PortSocket, place: Place) -> None:
        """Bind this node to a relay's port, if the place is one."""
        relay = self._client.relay_at(place)
        if relay in self._keys.by_peer:
            bind = self._client.bind(self._keys.own, self._nodes[relay].name, place)
            sock.send(place, probe_message.encode(bind, self._keys.by_peer[relay]))

    def ask(self, sock: PortSocket, peer: str, way: Callable[[str], Place | None], now: float) -> None:
        """Ask relays for ports towards a peer, if that is due. `way`: the path to a relay."""
        for relay, probe in self._client.requests(self._keys.own, self._nodes[peer], self._nodes.values(), now):
            place = way(relay)
            if place is not None and relay in self._keys.by_peer:
                sock.send(place, probe_message.encode(probe, self._keys.by_peer[relay]))


def _node(target: Target) -> Node:
    name = probe_message.name_of(keys.decode(target.public_key))
    return Node(target.public_key, name, target.nat.relay if target.nat is not None else "")


def _relay_address(rules: NatRules, own: Iterable[Address]) -> str:
    """The address at which this node relays: the configured one, else its first IPv4 address."""
    if rules.relay is None:
        return ""
    return rules.relay.external or next((str(address) for address in own if address.version == 4), "")
