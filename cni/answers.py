"""What the daemon answers to the operator's tool, one type for each request.

The daemon encodes these types and the tool decodes them; `--json` prints them. docs/cli.md has a row for every field,
and a test compares the two. Fields are added, never renamed or removed. A field that is added needs a default: a daemon
of an earlier version does not send it.
"""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """An answer, or a part of one."""


# --- status ---------------------------------------------------------------------------------------------------------


class NodeSummary(Answer, frozen=True, kw_only=True):
    """The identity of the node, and the overlay's ranges."""

    deployment: str
    instance_id: str
    node_id: int
    cluster_cidrs: list[str]
    slice_cidr: str | None


class WireGuard(Answer, frozen=True, kw_only=True):
    """The node's own WireGuard device. `interface` is None without one, and `note` then has the reason."""

    interface: str | None = None
    engine: str | None = None
    public_key: str | None = None
    port: int | None = None
    peers: int = 0
    alive: int = 0
    note: str = ""


class Fence(Answer, frozen=True, kw_only=True):
    """Whether the fence is in force, and the reason if it is not."""

    in_force: bool
    trouble: str


class ServiceSummary(Answer, frozen=True, kw_only=True):
    """One service of the node; `attachments` is a number."""

    service: str
    mode: str
    attach: str = "bridge"
    bridge: str
    subnets: list[str]
    attachments: int


class ProblemDetail(Answer, frozen=True, kw_only=True):
    """A problem of the registry (cni/problems.py)."""

    code: str
    area: str
    severity: str
    text: str
    action: str


class Calls(Answer, frozen=True, kw_only=True):
    """The calls of plugins since the daemon's start, by what sent them."""

    launcher: int
    python: int


class Dns(Answer, frozen=True, kw_only=True):
    """The node's DNS server: the addresses at which it answers, the overlay's zone, how many have names, and what was
    counted since the daemon's start, by name."""

    served: list[str]
    zone: str
    named: int
    counts: dict[str, int]
    forwarding: dict[str, int]


class Status(Answer, frozen=True, kw_only=True):
    """The summary of the node. `problem_details` is None from a daemon that is older than the codes."""

    version: str
    pid: int
    uptime_seconds: float
    run_dir: str
    data_dir: str
    node: NodeSummary
    mtu: int
    wireguard: WireGuard
    fence: Fence
    services: list[ServiceSummary]
    attachments: int
    unfinished: int
    calls: Calls | None = None
    dns: Dns | None = None
    problems: list[str]
    problem_details: list[ProblemDetail] | None = None
    notes: list[str] = []


class Running(Answer, frozen=True, kw_only=True):
    """The part of `Status` that daemons of all versions have: what `install` needs to know of the one it replaces."""

    version: str
    pid: int


# --- attachments, gc ------------------------------------------------------------------------------------------------


class Attachment(Answer, frozen=True, kw_only=True):
    """One interface of one container."""

    network: str
    container_id: str
    interface: str
    addresses: list[str]
    gateways: list[str]
    service: str
    mode: str
    isolation_network: str | None
    state: str
    attach: str = "bridge"
    bridge: str
    host_interface: str
    mac: str
    mtu: int
    netns: str
    pid: int | None
    pod: str
    created_unix: float
    names: list[str] = []


class DeadAttachment(Answer, frozen=True, kw_only=True):
    """An attachment that garbage collection released, or would release."""

    network: str
    container_id: str
    interface: str
    addresses: list[str]
    pod: str
    reason: str


class Garbage(Answer, frozen=True, kw_only=True):
    """What garbage collection did, or would do."""

    dry_run: bool
    released: list[DeadAttachment]
    candidates: list[DeadAttachment]
    strays: list[str]


# --- networks -------------------------------------------------------------------------------------------------------


class Member(Answer, frozen=True, kw_only=True):
    """An attachment as a member of an isolation network or of the flat mesh."""

    container_id: str
    interface: str
    addresses: list[str]
    service: str
    bridge: str
    host_interface: str
    pod: str
    state: str
    names: list[str] = []


class Counts(Answer, frozen=True, kw_only=True):
    """A counter of the fence."""

    packets: int
    bytes: int


class Network(Answer, frozen=True, kw_only=True):
    """An isolation network; `isolation_network` is None for the flat mesh."""

    isolation_network: str | None
    members: list[Member]
    remote_members: list[str]
    dropped: Counts


class Drop(Answer, frozen=True, kw_only=True):
    """A rule that drops, and its counter since it was loaded."""

    rule: str
    family: str
    chain: str
    isolation_network: str | None
    of_a_network: bool
    packets: int
    bytes: int


class Networks(Answer, frozen=True, kw_only=True):
    """All networks of the node, the flat mesh first."""

    fence: Fence
    networks: list[Network]
    drops: list[Drop]


# --- drops ----------------------------------------------------------------------------------------------------------


class DroppedPacket(Answer, frozen=True, kw_only=True):
    """A packet that a rule of the fence dropped. The ends are addresses, or MACs where the packet has no addresses."""

    time_unix: float
    rule: str
    family: str
    chain: str
    isolation_network: str | None
    of_a_network: bool
    source: str
    source_label: str
    source_port: int | None
    destination: str
    destination_label: str
    destination_port: int | None
    protocol: str
    in_interface: str | None
    out_interface: str | None


class DropSample(Answer, frozen=True, kw_only=True):
    """The packets since the reader's last request. `cursor` belongs into its next one."""

    cursor: int
    packets: list[DroppedPacket]
    lost: int


# --- why ------------------------------------------------------------------------------------------------------------


class Port(Answer, frozen=True, kw_only=True):
    """The port that was asked for."""

    number: int
    protocol: str


class Rule(Answer, frozen=True, kw_only=True):
    """A rule of the fence."""

    name: str
    family: str
    chain: str


class Endpoint(Answer, frozen=True, kw_only=True):
    """One end of a flow."""

    kind: str
    address: str | None
    label: str
    container_id: str | None
    isolation_network: str | None
    on_flat_mesh: bool


class TranslatedEnd(Answer, frozen=True, kw_only=True):
    """An endpoint to which the node may translate the destination, and the verdict on it. `port`: None without one."""

    address: str
    port: int | None
    label: str
    allowed: bool
    rule: Rule | None
    reason: str


class Path(Answer, frozen=True, kw_only=True):
    """The verdict on one pair of addresses; `from` in JSON is `source` here."""

    family: int
    source: Endpoint = msgspec.field(name="from")
    to: Endpoint
    allowed: bool
    certain: bool = True
    rule: Rule | None
    reason: str
    notes: list[str]
    endpoints: list[TranslatedEnd] = []


class Reachability(Answer, frozen=True, kw_only=True):
    """Whether a flow is allowed."""

    src: str
    dst: str
    port: Port | None
    allowed: bool
    paths: list[Path]
    warnings: list[str]


# --- resolve --------------------------------------------------------------------------------------------------------


class Withheld(Answer, frozen=True, kw_only=True):
    """An address that has the name, and that the asker may not reach."""

    address: str
    of: str
    rule: Rule | None
    reason: str


class Resolution(Answer, frozen=True, kw_only=True):
    """What the node's DNS server answers to an asker about a name."""

    name: str
    asker: str
    code: str
    ttl: int | None
    addresses: list[str]
    names: list[str]
    withheld: list[Withheld]


# --- connectivity ---------------------------------------------------------------------------------------------------


class Cell(Answer, frozen=True, kw_only=True):
    """One check of the connectivity test: whether packets of a kind go from one place to another. `got` is None if it
    was not run, for the reason in `text`."""

    kind: str
    source: str
    destination: str
    address: str | None
    expected: bool
    predicted: bool | None
    rule: str | None
    got: bool | None
    ok: bool
    code: str | None
    text: str
    remedy: str
    seconds: float


class Connectivity(Answer, frozen=True, kw_only=True):
    """The connectivity test of one node. `codes`: the faults that explain what is not as it should be."""

    ok: bool
    version: str
    node: str
    cells: list[Cell]
    codes: list[str]
    seconds: float


# --- trace ----------------------------------------------------------------------------------------------------------


class TraceStep(Answer, frozen=True, kw_only=True):
    """A rule that a packet met: its name if it is the fence's, its text if it is another program's, or `policy`."""

    family: str
    table: str
    chain: str
    rule: str
    verdict: str


class TracedPacket(Answer, frozen=True, kw_only=True):
    """The way of one packet through the node's chains."""

    in_interface: str | None
    out_interface: str | None
    dropped: bool
    steps: list[TraceStep]


class Trace(Answer, frozen=True, kw_only=True):
    """The packets of one flow. `sent`: whether the tool sent the first itself."""

    source: str
    destination: str
    port: Port | None
    sent: bool
    packets: list[TracedPacket]


# --- version, explain -----------------------------------------------------------------------------------------------


class Versions(Answer, frozen=True, kw_only=True):
    """The versions of the program, of the daemon (None if none answers), of CNI and of Python."""

    tool: str
    daemon: str | None
    cni: list[str]
    python: str


class Explanation(Answer, frozen=True, kw_only=True):
    """A code: what kind it is, what it means and what to do."""

    code: str
    kind: str
    meaning: str
    action: str


# --- plan -----------------------------------------------------------------------------------------------------------


class Plan(Answer, frozen=True, kw_only=True):
    """What an ADD would do. `service` is None if the configuration is refused; `bridge` if a new one would be made.
    `reaches`: the members of its network on this node; `fails`: why it would fail."""

    network: str
    service: str | None = None
    mode: str = ""
    bridge: str | None = None
    subnets: list[str] = []
    attachments: int = 0
    isolation_network: str | None = None
    reaches: int = 0
    addresses: list[str] = []
    mtu: int = 0
    routes: list[str] = []
    warnings: list[str] = []
    fails: list[str] = []


# --- peers, graph ---------------------------------------------------------------------------------------------------


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


# --- NAT ------------------------------------------------------------------------------------------------------------


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


class Netcheck(Answer, frozen=True, kw_only=True):
    """The networks between this node and the outside, as seen from WireGuard's port."""

    udp: bool | None
    port: int
    families: list[NatFamily]
    servers: list[StunServer]
    notes: list[str]


# --- peers added and removed by hand --------------------------------------------------------------------------------


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


class EventLine(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `events`. `event` says which fields are there; those that are None are left out. `code`: of a problem
    or of an error."""

    time: float
    event: str
    network: str | None = None
    container_id: str | None = None
    interface: str | None = None
    pod: str | None = None
    service: str | None = None
    isolation_network: str | None = None
    addresses: list[str] | None = None
    verb: str | None = None
    code: str | None = None
    severity: str | None = None
    text: str | None = None
    public_key: str | None = None
    endpoint: str | None = None
    alive: bool | None = None


class LogLevel(Answer, frozen=True, kw_only=True):
    """The level of the daemon's log: now, and after its next start."""

    level: str
    configured: str


class Done(Answer, frozen=True, kw_only=True):
    """A request without a result was carried out."""

    done: bool


class Failure(Answer, frozen=True, kw_only=True):
    """The answer to a request that failed, with exit code 1: an error of cni/errors.py."""

    code: int
    msg: str
    details: str = ""
