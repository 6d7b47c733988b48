"""`OverlayManager`'s methods for NAT traversal, and its configuration as an operator writes it."""

from dataclasses import dataclass

from cni.overlay import wire
from cni.overlay.address import split_socket_address
from cni.overlay.calls import Calls, log
from cni.overlay.errors import OverlaydError

CANDIDATE_TYPES = frozenset({"host", "server-reflexive", "relay"})


@dataclass(frozen=True)
class StunServer:
    """A STUN server, `host:port`; the label is for people."""

    address: str
    label: str | None = None


@dataclass(frozen=True)
class TurnServer:
    """A TURN server, `host:port`, and how to log in; the region is for people."""

    address: str
    username: str = ""
    credential: str = ""
    region: str | None = None


@dataclass(frozen=True)
class RelayServer:
    """The relay this node runs: port, the `host:port` others reach it at, and how many sessions at most."""

    listen_port: int = 0
    external_addr: str = ""
    max_sessions: int = 0


@dataclass(frozen=True)
class NatSettings:
    """NAT traversal; seconds and counts of 0, and no STUN servers, stand for the daemon's defaults."""

    enabled: bool = True
    stun_servers: tuple[StunServer, ...] = ()
    turn_servers: tuple[TurnServer, ...] = ()
    hole_punch_timeout_secs: int = 0
    stun_refresh_interval_secs: int = 0
    max_candidate_pairs: int = 0
    relay_server: RelayServer | None = None

    def to_wire(self, relay_credential: str | None) -> wire.NatConfig:
        """The settings as sent: addresses alone, and the cluster's credential in the relay, if there is one."""
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
    """How NAT traversal stands; `last_refresh` in Unix seconds, 0 for never."""

    candidates: tuple[wire.Candidate, ...] = ()
    peers: tuple[wire.NatPeer, ...] = ()
    last_refresh: int = 0


class NatCalls(Calls):
    """NAT traversal. Where it is switched off nothing is sent."""

    def nat_enabled(self) -> bool:
        """Whether NAT traversal is on: as configured, and on if nothing was."""
        return self._settings.nat is None or self._settings.nat.enabled

    def start_nat_traversal(self) -> bool:
        """`nat_enabled()`; the daemon starts traversal by itself. Sends nothing, never fails."""
        return self.nat_enabled()

    def nat_maintenance_tick(self) -> None:
        """Have the daemon do one round of NAT maintenance; nothing if NAT is off. Raises OverlaydError.

        It has a deadline of its own (`Timeouts.nat_tick`): ZLayer's daemon asks STUN servers, and serves nobody
        else meanwhile.
        """
        if self.nat_enabled():
            self._call(wire.NatTick())

    def nat_status_snapshot(self) -> NatSnapshot:
        """How NAT traversal stands; empty, and logged, if the daemon cannot say.

        Candidates of an unknown type, or whose address is no `ip:port`, are left out.
        """
        if not self.nat_enabled():
            return NatSnapshot()
        try:
            status = self._ask(wire.NatStatusRequest(), wire.NatStatus)
        except OverlaydError as e:
            log.warning("nat_status: %s", e)
            return NatSnapshot()
        return NatSnapshot(tuple(filter(_usable, status.candidates)), status.peers, status.last_refresh)


def _usable(candidate: wire.Candidate) -> bool:
    try:
        split_socket_address(candidate.address)
    except ValueError:
        return False
    return candidate.candidate_type in CANDIDATE_TYPES
