"""What the page shows: a part of the daemon's answers, field by field, so that nothing else gets there."""

from __future__ import annotations

import msgspec

from cni import answers
from cni.cli import ask

MOST = 1000  # members, peers and rules that are shown


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the document."""


class NodePart(Part, frozen=True, kw_only=True):
    """This node. `wireguard`: the engine and the device, "" without one; `fence`: the reason if it is not in force."""

    name: str
    node_id: int
    version: str
    uptime_seconds: int
    addresses: list[str]
    mtu: int
    wireguard: str
    fence: str
    attachments: int


class ProblemPart(Part, frozen=True, kw_only=True):
    """A problem that exists now."""

    code: str
    severity: str
    text: str
    action: str


class PeerPart(Part, frozen=True, kw_only=True):
    """A tunnel, and the node at its other end. `age`: seconds since the last handshake."""

    name: str
    device: str
    endpoint: str
    alive: bool
    path: str
    age: int | None
    received: int
    sent: int
    path_mtu: int | None
    allowed: list[str]


class MemberPart(Part, frozen=True, kw_only=True):
    """A container of a network."""

    container: str
    pod: str
    service: str
    addresses: list[str]
    state: str


class NetworkPart(Part, frozen=True, kw_only=True):
    """A network. `name`: None for the flat mesh; `elsewhere`: its members on other nodes."""

    name: str | None
    members: list[MemberPart]
    elsewhere: int
    dropped: int


class DropPart(Part, frozen=True, kw_only=True):
    """A rule that has dropped packets. `network`: None for a rule of no network, "" for the flat mesh."""

    network: str | None
    rule: str
    family: str
    chain: str
    packets: int
    bytes: int


class Document(Part, frozen=True, kw_only=True):
    """All that the page shows. `error`: why there is nothing else."""

    error: str = ""
    node: NodePart | None = None
    problems: list[ProblemPart] = msgspec.field(default_factory=list)
    peers: list[PeerPart] = msgspec.field(default_factory=list)
    networks: list[NetworkPart] = msgspec.field(default_factory=list)
    drops: list[DropPart] = msgspec.field(default_factory=list)


def read(run_dir: str) -> Document:
    """The document now; without an answer of the daemon the one that says so."""
    try:
        status = ask.ask(run_dir, "status", answers.Status)
        graph = ask.ask(run_dir, "graph", answers.Graph)
        networks = ask.ask(run_dir, "networks", answers.Networks)
    except (ask.NoDaemon, ask.Refused) as error:
        return Document(error=str(error))
    return Document(
        node=_node(status, graph),
        problems=[
            ProblemPart(code=each.code, severity=each.severity, text=each.text, action=each.action)
            for each in status.problem_details or ()
        ],
        peers=[_peer(peer) for peer in graph.peers[:MOST]],
        networks=[_network(network) for network in networks.networks[:MOST]],
        drops=_drops(networks.drops),
    )


def _node(status: answers.Status, graph: answers.Graph) -> NodePart:
    device = status.wireguard
    return NodePart(
        name=f"{status.node.deployment}/{status.node.instance_id}",
        node_id=status.node.node_id,
        version=status.version,
        uptime_seconds=int(status.uptime_seconds),
        addresses=graph.node.addresses,
        mtu=status.mtu,
        wireguard=f"{device.interface} ({device.engine}), UDP port {device.port}" if device.interface else "",
        fence="" if status.fence.in_force else status.fence.trouble or "not in force",
        attachments=status.attachments,
    )


def _peer(peer: answers.Peer) -> PeerPart:
    age = peer.last_handshake_seconds_ago
    return PeerPart(
        name=peer.name or peer.public_key[:10],
        device=peer.device,
        endpoint=peer.endpoint or next(iter(peer.configured_endpoints), ""),
        alive=peer.alive,
        path=peer.path or ("direct" if peer.direct else "learned" if peer.alive else ""),
        age=None if age is None else int(age),
        received=peer.rx_bytes,
        sent=peer.tx_bytes,
        path_mtu=peer.path_mtu,
        allowed=peer.allowed_ips[:MOST],
    )


def _network(network: answers.Network) -> NetworkPart:
    return NetworkPart(
        name=network.isolation_network,
        members=[
            MemberPart(
                container=member.container_id,
                pod=member.pod,
                service=member.service,
                addresses=member.addresses,
                state=member.state,
            )
            for member in network.members[:MOST]
        ],
        elsewhere=len(network.remote_members),
        dropped=network.dropped.packets,
    )


def _drops(drops: list[answers.Drop]) -> list[DropPart]:
    seen = sorted((drop for drop in drops if drop.packets), key=lambda drop: -drop.packets)
    return [
        DropPart(
            network=(drop.isolation_network or "") if drop.of_a_network else None,
            rule=drop.rule,
            family=drop.family,
            chain=drop.chain,
            packets=drop.packets,
            bytes=drop.bytes,
        )
        for drop in seen[:MOST]
    ]
