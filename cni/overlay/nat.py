"""NAT traversal as values: its configuration as an operator writes it, and a snapshot of its state."""

from dataclasses import dataclass

from cni.overlay import wire
from cni.overlay.address import split_socket_address

CANDIDATE_TYPES = frozenset({"host", "server-reflexive", "relay"})


@dataclass(frozen=True)
class StunServer:
    """A STUN server, `host:port`. The label is not sent."""

    address: str
    label: str | None = None


@dataclass(frozen=True)
class TurnServer:
    """A TURN server, `host:port`, and its credentials. The region is not sent."""

    address: str
    username: str = ""
    credential: str = ""
    region: str | None = None


@dataclass(frozen=True)
class RelayServer:
    """The relay this node runs: its port, the `host:port` at which other nodes reach it, the most sessions at once."""

    listen_port: int = 0
    external_addr: str = ""
    max_sessions: int = 0


@dataclass(frozen=True)
class NatSettings:
    """NAT traversal. Seconds and counts of 0, and an empty list of STUN servers, stand for the daemon's defaults."""

    enabled: bool = True
    stun_servers: tuple[StunServer, ...] = ()
    turn_servers: tuple[TurnServer, ...] = ()
    hole_punch_timeout_secs: int = 0
    stun_refresh_interval_secs: int = 0
    max_candidate_pairs: int = 0
    relay_server: RelayServer | None = None

    def to_wire(self, relay_credential: str | None) -> wire.NatConfig:
        """The settings as sent: without labels and regions, the cluster's credential in the relay, if there is one."""
        relay = self.relay_server
        return wire.NatConfig(
            enabled=self.enabled,
            stun_servers=tuple(stun.address for stun in self.stun_servers),
            turn_servers=tuple(wire.Turn(t.address, t.username, t.credential) for t in self.turn_servers),
            hole_punch_timeout_secs=self.hole_punch_timeout_secs,
            stun_refresh_interval_secs=self.stun_refresh_interval_secs,
            max_candidate_pairs=self.max_candidate_pairs,
            relay_server=None
            if relay is None
            else wire.Relay(relay.listen_port, relay.external_addr, relay.max_sessions, relay_credential),
        )


@dataclass(frozen=True)
class NatSnapshot:
    """The state of NAT traversal; `last_refresh` in Unix seconds, 0 for never."""

    candidates: tuple[wire.Candidate, ...] = ()
    peers: tuple[wire.NatPeer, ...] = ()
    last_refresh: int = 0

    @classmethod
    def of(cls, status: wire.NatStatus) -> "NatSnapshot":
        """A status without the candidates of an unknown type, or whose address is no `ip:port`."""
        return cls(tuple(filter(_usable, status.candidates)), status.peers, status.last_refresh)


def _usable(candidate: wire.Candidate) -> bool:
    try:
        split_socket_address(candidate.address)
    except ValueError:
        return False
    return candidate.candidate_type in CANDIDATE_TYPES
