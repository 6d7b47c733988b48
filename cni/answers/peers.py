"""WireGuard peers, the networks between them, and peers that are added and removed by hand."""

from __future__ import annotations

from cni.answers.answer import Answer


class Peer(Answer, frozen=True, kw_only=True):
    """A WireGuard peer: its configured and its actual state."""

    device: str
    service: str | None
    name: str
    public_key: str
    endpoint: str | None
    configured_endpoints: list[str]
    last_handshake_unix: int | None
    last_handshake_seconds_ago: float | None
    alive: bool
    direct: bool
    rx_bytes: int
    tx_bytes: int
    allowed_ips: list[str]
    keepalive: int | None
    path_mtu: int | None
    path_mtu_measured: bool = False
    on_device: bool
    path: str = ""
    path_why: str = ""
    round_trip_ms: float | None = None


class GraphService(Answer, frozen=True, kw_only=True):
    """A service of the node, in the graph."""

    service: str
    mode: str
    subnets: list[str]


class GraphNode(Answer, frozen=True, kw_only=True):
    """This node, in the graph."""

    name: str
    node_id: int
    addresses: list[str]
    services: list[GraphService]


class Graph(Answer, frozen=True, kw_only=True):
    """This node, its services and its peers."""

    node: GraphNode
    peers: list[Peer]


class DepartedNode(Answer, frozen=True, kw_only=True):
    """A node that holds claims in etcd and publishes no document."""

    identity: str
    node_id: int | None
    name: str | None
    holds: int


class StunServer(Answer, frozen=True, kw_only=True):
    """A STUN server at one of its addresses, and what it answered."""

    server: str
    endpoint: str | None
    round_trip_ms: float | None
    seen_from: str | None
    fault: str


class NatFamily(Answer, frozen=True, kw_only=True):
    """What the networks do with datagrams of one version of IP."""

    family: int
    addresses: list[str]
    public: list[str]
    mapping: str
    filtering: str
    kind: str
    port_kept: bool | None
    hairpin: bool | None


class Ping(Answer, frozen=True, kw_only=True):
    """One probe of the path to a peer; `round_trip_ms` is None without an answer."""

    name: str
    path: str
    path_why: str
    endpoint: str | None
    round_trip_ms: float | None


class RelayInUse(Answer, frozen=True, kw_only=True):
    """A relay that this node uses: a node that relays in its kernel, or one in user space. `relayed`: this node's own
    address there."""

    relay: str
    relayed: str | None
    round_trip_ms: float | None
    fault: str


class Netcheck(Answer, frozen=True, kw_only=True):
    """The networks between this node and the outside, as seen from WireGuard's port."""

    udp: bool | None
    port: int
    families: list[NatFamily]
    servers: list[StunServer]
    relays: list[RelayInUse]
    port_mapping: str
    notes: list[str]


class Token(Answer, frozen=True, kw_only=True):
    """The token with which another node adds this one as a peer."""

    token: str
    public_key: str


class Joined(Answer, frozen=True, kw_only=True):
    """The node that was added, and this node's token, which that node needs."""

    name: str
    public_key: str
    token: str


class RemovedPeer(Answer, frozen=True, kw_only=True):
    """The peer that was removed."""

    public_key: str


class RotatedKey(Answer, frozen=True, kw_only=True):
    """This node's new key; `cluster`: whether the other nodes learn of it from etcd."""

    public_key: str
    cluster: bool


class PeerConfiguration(Answer, frozen=True, kw_only=True):
    """A configuration for wg-quick. It holds the private key of a guest."""

    public_key: str
    text: str
