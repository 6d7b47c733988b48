"""Which configuration of NAT traversal is in effect: the YAML's, else the agent's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cni.daemon.model.endpoints import LONGEST_NAME, split_endpoint
from cni.daemon.model.relay_address import RelayKind, Transport, relay_address
from cni.daemon.model.relay_pairs import usable_ports
from cni.daemon.settings import Nat
from cni.overlay import wire
from cni.secret import Secret

RELAY_PORT = 3478  # of a server whose port an agent does not name, as ZLayer's
SESSIONS, MOST_SESSIONS = 100, 10_000  # of a server: if an agent names no number, and at most
REFRESH, FASTEST = 45.0, 5.0  # seconds between two rounds of STUN: if an agent names none, and at least
DYNAMIC = range(49152, 65536)  # the ports for relaying of an agent's server (RFC 8656, section 7.2)
NO_SECRET = Secret()


@dataclass(frozen=True, slots=True)
class RelayRules:
    """What this node relays for others. `external`: the address at which it is reached, "" for its own."""

    ports: range
    external: str
    max_pairs: int


@dataclass(frozen=True, slots=True)
class ServerRules:
    """How this node serves ZLayer's relay protocol. `listen`: its UDP port; `external`: the address at which others
    reach its `ports`, "" for this node's own."""

    listen: int
    external: str
    ports: range
    max_sessions: int
    credential: Secret


@dataclass(frozen=True, slots=True)
class UserRelay:
    """A relay that forwards in user space. `password`: of TURN, or the credential of ZLayer's relay; `file`: where that
    is read from, "" if it is given."""

    kind: RelayKind
    transport: Transport
    host: str
    port: int
    username: str
    password: Secret = NO_SECRET
    file: str = ""
    ca_file: str = ""

    @property
    def name(self) -> str:
        """The relay's name in messages and problems."""
        scheme = "zlayer" if self.kind == "zlayer" else ("turns" if self.transport == "tls" else "turn")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}:{host}:{self.port}" + ("?transport=tcp" if self.transport == "tcp" else "")


@dataclass(frozen=True, slots=True)
class NatRules:
    """`stun`: the servers, (host, port); `unusable`: what was named as one and is none;
    `most_candidates`: places of one peer that are probed; `relay`: in this node's kernel; `server`: of ZLayer's
    protocol; `relays`: those in user space that this node uses; `maps_port`: whether the router is asked for a port;
    `refresh`: the seconds between two rounds of STUN."""

    enabled: bool = False
    stun: tuple[tuple[str, int], ...] = ()
    unusable: tuple[str, ...] = ()
    most_candidates: int = 16
    relay: RelayRules | None = None
    server: ServerRules | None = None
    relays: tuple[UserRelay, ...] = ()
    maps_port: bool = True
    refresh: float = REFRESH


def in_effect(yaml: Nat | None, of_agent: wire.NatConfig | None) -> NatRules:
    """The rules. The YAML comes first, as for every setting that an operator wrote. Without either NAT traversal is
    off; an agent's object counts as it says itself (contract 2.6), but its empty list of servers asks none."""
    if yaml is not None:
        return _of_yaml(yaml)
    if of_agent is not None:
        relays, odd = _relays_of_agent(of_agent.turn_servers)
        stun, unusable = _split(of_agent.stun_servers)
        return NatRules(
            of_agent.enabled,
            stun,
            (*unusable, *odd),
            of_agent.max_candidate_pairs or 10,
            server=_server_of_agent(of_agent.relay_server),
            relays=relays,
            refresh=max(float(of_agent.stun_refresh_interval_secs or REFRESH), FASTEST),
        )
    return NatRules()


def _of_yaml(yaml: Nat) -> NatRules:
    relay, server, kernel = yaml.relay, None, None
    if relay is not None:
        ports = usable_ports(relay.ports)
        kernel = RelayRules(ports, relay.external, relay.max_pairs)
        if relay.credential_file:
            credential = _read(relay.credential_file)
            server = ServerRules(relay.listen, relay.external, ports, relay.max_sessions, credential)
    relays = [_user_relay(each.address, each.username, file=each.credential_file) for each in yaml.relays]
    relays += [
        _user_relay(turn.address, turn.username, file=turn.credential_file, ca_file=turn.ca_file) for turn in yaml.turn
    ]
    stun, unusable = _split(yaml.stun)
    return NatRules(
        yaml.enabled, stun, unusable, relay=kernel, server=server, relays=tuple(relays), maps_port=yaml.port_mapping
    )


def _server_of_agent(relay: wire.Relay | None) -> ServerRules | None:
    """An agent's relay; without a credential there is none, because any machine could use it."""
    if relay is None or not relay.auth_credential:
        return None
    external = relay.external_addr.rpartition(":")[0].strip("[]")
    most = min(relay.max_sessions or SESSIONS, MOST_SESSIONS)
    listen = relay.listen_port or RELAY_PORT
    return ServerRules(listen, external, DYNAMIC, most, Secret(relay.auth_credential))


def _relays_of_agent(named: tuple[wire.Turn, ...]) -> tuple[tuple[UserRelay, ...], tuple[str, ...]]:
    relays, odd = [], []
    for server in named:
        try:
            relays.append(_user_relay(server.addr, server.username, password=Secret(server.credential)))
        except ValueError:
            odd.append(server.addr)
    return tuple(relays), tuple(odd)


def _user_relay(
    address: str, username: str, *, password: Secret = NO_SECRET, file: str = "", ca_file: str = ""
) -> UserRelay:
    """A relay by its address: `host:port` speaks ZLayer's protocol, `turn:` and `turns:` TURN. Raises ValueError."""
    kind, transport, host, port = relay_address(address)
    return UserRelay(kind, transport, host, port, username, password, file, ca_file)


def password_of(relay: UserRelay) -> Secret:
    """The password, read anew from its file if there is one. Raises OSError."""
    return _read(relay.file) if relay.file else relay.password


def _read(path: str) -> Secret:
    """The content of a file with a secret; empty if it cannot be read."""
    try:
        return Secret(Path(path).read_text().strip())
    except (OSError, UnicodeDecodeError):
        return NO_SECRET


def _split(servers: tuple[str, ...]) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    usable, unusable = [], []
    for server in servers:
        try:
            usable.append(split_endpoint(server, LONGEST_NAME))
        except ValueError:
            unusable.append(server)
    return tuple(usable), tuple(unusable)
