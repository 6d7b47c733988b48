"""Relays for pairs of other nodes: hands out ports, learns from where each side speaks, and has nftables join them.

The kernel carries the datagrams, so they pass while no daemon runs. The pairs are recorded; a daemon that starts takes
the ports again. What a side sends before its port is joined reaches this process, and is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import msgspec

from cni.daemon.fence.model import TABLE as FENCE
from cni.daemon.model import probe_message, relay_pairs
from cni.daemon.model.probe_message import Probe
from cni.daemon.model.relay_pairs import RelayPair
from cni.daemon.nat.rules import RelayRules
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.state import boot_clock
from cni.daemon.state.tables import Tables
from cni.errors import FenceFailed
from cni.host.conntrack import Conntrack
from cni.host.gateway import default_device
from cni.host.nft import Nft
from cni.host.relay_firewall import relay_obstacles
from cni.host.relay_port import RelayPort
from cni.host.wg_types import join_endpoint

log = logging.getLogger(__name__)

LOOK = 60.0  # seconds between two looks at the host's own firewalls
EXPIRE = 60.0  # seconds between two looks for pairs that are no longer asked for


class Relay:
    """The pairs of one node. For one thread, except `remove`, for which the thread has ended."""

    def __init__(self, registry: Tables, board: ProblemBoard, nft: Callable[[], Nft] = Nft) -> None:
        self._pairs, self._board = registry.relay_pairs, board
        self._make_nft = nft
        self._nft: Nft | None = None
        self._rules: RelayRules | None = None
        self._ports: dict[int, RelayPort] = {}
        self._at: dict[int, tuple[str, int]] = {}  # by port: the pair's key, and the side
        self._secret = os.urandom(32)
        self._next_expiry = self._next_look = 0.0
        self._obstacles: list[str] = []

    def configure(self, rules: RelayRules | None) -> None:
        """Set the rules; None: this node relays nothing, and no port is open. Pairs of an earlier daemon go on."""
        if rules == self._rules:
            return
        self._rules = rules
        if rules is None:
            self.close()
            return
        pairs = self._pairs.all()
        outside = {key: None for key, pair in pairs.items() if not set(pair.ports) <= set(rules.ports)}
        if outside:
            self._pairs.apply(outside)
        for pair in self._pairs.all().values():
            self._open(pair)
        self._load()

    def obstacles(self, now: float) -> list[str]:
        """What of the host's own firewalls drops what this node relays, as sentences; read once in `LOOK` seconds. A
        problem names it too."""
        if self._rules is None:
            self._obstacles, self._next_look = [], 0.0
            return []
        if now >= self._next_look:
            self._next_look = now + LOOK
            with contextlib.suppress(FenceFailed, OSError), contextlib.closing(self._make_nft()) as nft:
                self._obstacles = relay_obstacles(nft, self._rules.ports[0], default_device(), FENCE)
            self._board.set("relay-unavailable", "firewall", "; ".join(self._obstacles))
        return self._obstacles

    def close(self) -> None:
        """Close the ports; what is joined stays joined."""
        for port in self._ports.values():
            port.close()
        self._ports, self._at = {}, {}

    def ports(self) -> list[RelayPort]:
        """What becomes readable when a side speaks that is not joined yet."""
        return list(self._ports.values())

    def count(self) -> int:
        """The number of pairs."""
        return len(self._pairs.all())

    def asked(self, one: bytes, other: bytes) -> int:
        """A node asks to be joined with another one: its port, 0 if there is none left."""
        if self._rules is None or one == other:
            return 0
        sides = sorted((one.hex(), other.hex()))
        pair = self._pairs.get(" ".join(sides))
        if pair is None:
            taken = {port for each in self._pairs.all().values() for port in each.ports}
            pair = self._new(one.hex(), other.hex(), taken)
            if pair is None:
                return 0
        self._pairs.put(pair.key, msgspec.structs.replace(pair, asked=boot_clock()))
        return pair.ports[pair.sides.index(one.hex())]

    def _new(self, one: str, other: str, taken: set[int]) -> RelayPair | None:
        """A new pair whose ports are open; ports that another program has are left out."""
        assert self._rules is not None
        while True:
            is_full = self.count() >= self._rules.max_pairs
            pair = None if is_full else relay_pairs.new_pair(one, other, taken, self._rules.ports)
            full = "every port of nat.relay.ports, or nat.relay.max_pairs, is in use: no further pair is relayed"
            self._board.set("relay-full", "", "" if pair is not None else full)
            if pair is None or self._open(pair):
                return pair
            taken = taken | set(pair.ports)

    def receive(self, keys: Mapping[str, bytes], peer_of: Callable[[bytes], str], own: bytes) -> None:
        """Take in what has arrived at the ports."""
        for number, port in list(self._ports.items()):
            for sender, local, message in port.received():
                with contextlib.suppress(ValueError):
                    key = peer_of(probe_message.sender_of(message))
                    if key:
                        probe = probe_message.decode(message, keys[key])
                        check = self._take(number, probe, own, join_endpoint(*sender), local)
                        if check is not None:
                            port.send(sender, local, probe_message.encode(check, keys[key]))

    def _take(self, number: int, probe: Probe, own: bytes, source: str, local: str) -> Probe | None:
        """A side binds itself to its port, once it has sent back the token that was made for its source; the answer
        that has that token, None if there is nothing to answer."""
        pair_key, side = self._at[number]
        pair = self._pairs.get(pair_key)
        if pair is None or probe.kind != "bind" or probe.receiver != own or pair.sides[side] != probe.sender.hex():
            return None
        token = relay_pairs.token(self._secret, source, number, probe.sender)
        if probe.word != token:
            return Probe("check", probe.sender, own, probe.transaction, word=token)
        if (pair.sources[side], pair.locals[side]) != (source, local):
            self._join(relay_pairs.bound(pair, side, source, local), pair)
        return None

    def _join(self, pair: RelayPair, before: RelayPair) -> None:
        self._pairs.put(pair.key, pair)
        if not pair.is_joined:
            return
        log.info("relaying between %s and %s by the ports %d and %d", *pair.sources, *pair.ports)
        self._load()
        # A tracked flow keeps its translation: those of before lead nowhere, or to this process.
        self._forget([*relay_pairs.flows(before), *relay_pairs.flows(pair)])

    def expire(self, now: float) -> None:
        """Drop the pairs that no side has asked for in a long time. `now`: of the monotonic clock."""
        if now < self._next_expiry or self._rules is None:
            return
        self._next_expiry = now + EXPIRE
        idle = [pair for pair in self._pairs.all().values() if boot_clock() - pair.asked > relay_pairs.IDLE]
        for pair in idle:
            self._pairs.drop(pair.key)
            for number in pair.ports:
                self._at.pop(number, None)
                if (port := self._ports.pop(number, None)) is not None:
                    port.close()
        if idle:
            self._load()
            self._forget([flow for pair in idle for flow in relay_pairs.flows(pair)])

    def remove(self) -> None:
        """Remove every pair and what joins its ports, for `uninstall`. Never raises."""
        pairs = self._pairs.all()
        self.close()
        if pairs:
            self._pairs.apply(dict.fromkeys(pairs))
            with contextlib.suppress(FenceFailed), contextlib.closing(self._make_nft()) as nft:
                nft.run(relay_pairs.no_ruleset())

    def _open(self, pair: RelayPair) -> bool:
        opened: dict[int, RelayPort] = {}
        try:
            for number in pair.ports:
                opened[number] = RelayPort(number)
        except OSError as error:
            for port in opened.values():
                port.close()
            log.warning("a port of %s cannot be used for relaying: %s", pair.ports, error)
            return False
        self._ports |= opened
        self._at |= {number: (pair.key, side) for side, number in enumerate(pair.ports)}
        return True

    def _load(self) -> None:
        with self._board.step("relay-unavailable", "", "pairs of nodes cannot be joined"):
            if self._nft is None:
                self._nft = self._make_nft()
            self._nft.run(relay_pairs.ruleset(self._pairs.all().values()))

    def _forget(self, flows: Sequence[tuple[str, str, int]]) -> None:
        with contextlib.closing(Conntrack()) as conntrack:
            for source, local, port in flows:
                with contextlib.suppress(OSError):
                    conntrack.forget_udp(source, f"{local}:{port}")
