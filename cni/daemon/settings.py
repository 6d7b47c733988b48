"""The daemon's settings as a typed value, with the defaults. Every key is optional; an unknown key is an error.

`settings_reader.py` reads them from the YAML, and `settings_checks.py` has what the types do not express.
conf/overlayd.yaml documents the keys.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cni import defaults, openings
from cni.daemon.model.peer_paths import RelayUse
from cni.secret import Secret

Unsigned = Literal["accept", "refuse"]
Hidden = Literal["nxdomain", "refused"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "logfmt", "json"]
Engine = Literal["auto", "kernel", "wireguard-go", "boringtun-cli", "none"]
Underlay = Literal["routed"]
AttachKind = Literal["bridge", "routed"]
Tests = Literal["refuse", "allow"]


class Dns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `dns` of every result, unless the conflist has its own (the first four), and the node's own server of names.

    `serve`: whether the node answers DNS. `zone`: the zone of the overlay's names; empty: `<deployment>.zlayer.local`.
    `port`: of the server, UDP and TCP. `hidden`: what is answered for a name that the asker may not reach.
    `upstreams`: the servers for every other name, `address` or `address:port`, in this order; None: those of the
    host's resolv.conf; an empty list: other names are refused. `zones`: the servers of a domain and what is below it.
    `host`: systemd-resolved asks this node for the zone. `intercept`: what containers send to port 53 of any address
    outside the overlay is led to the node's server."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domain: str = ""
    serve: bool = True
    zone: str = ""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = defaults.DNS_PORT
    hidden: Hidden = "nxdomain"
    upstreams: Annotated[tuple[str, ...], msgspec.Meta(max_length=8)] | None = None
    zones: Annotated[dict[str, tuple[str, ...]], msgspec.Meta(max_length=1024)] = {}
    host: bool = False
    intercept: bool = False


class StaticPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One peer of this node's WireGuard device, for meshes without a cluster. `endpoint`: `host:port`, a name is
    resolved repeatedly; without an endpoint the peer sends the first handshake. `endpoints`: further ones, which are
    tried in turn while the peer does not answer. `keepalive`: seconds, 0 for none. `relay`: whether relays are the only
    paths to the peer, or none; "": a relay while there is no direct path."""

    public_key: str
    endpoint: str = ""
    endpoints: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = ()
    allowed_ips: tuple[str, ...]
    keepalive: Annotated[int, msgspec.Meta(ge=0, le=65535)] = defaults.KEEPALIVE
    name: str = ""
    relay: RelayUse = ""


class Etcd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The access to the cluster's etcd. `lease`: how long a node document lasts without renewal; `grace`: how long an
    offline node stays a peer afterwards. Times in seconds."""

    endpoints: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    user: str = ""
    password: Secret = Secret()
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    prefix: str = "/zlayer-cni"
    lease: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    grace: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 300


class Kubernetes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The access to the API server of Kubernetes as the cluster's store. Without `server` and the files, those of the
    pod's service account. `node_name`: the Node of this node (else ZLAYER_NODE_NAME, else the host's name);
    `external_node`: instead, the ZLayerExternalNode of a machine that is no Node; `namespace`: of the Leases.
    `pod_cidr`: the Node's podCIDR is the node's `service_cidr`, and its first subnet the `slice_cidr`.
    `lease`, `grace`: as of etcd. Times in seconds."""

    server: str = ""
    token_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    namespace: str = ""
    node_name: str = ""
    external_node: str = ""
    pod_cidr: bool = False
    lease: Annotated[int, msgspec.Meta(ge=10, le=3600)] = 40
    grace: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 300


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The store of the cluster, one of the two. `unsigned_nodes`: whether documents of nodes whose version does not
    sign are accepted."""

    etcd: Etcd | None = None
    kubernetes: Kubernetes | None = None
    unsigned_nodes: Unsigned = "accept"


class RelayPorts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """This node relays for others: at the UDP `ports`, `FIRST-LAST`, two for each pair of nodes; `external`: the IPv4
    address at which others reach them, "" for this node's own; `max_pairs`: pairs at once. With a `credential_file`
    the node also serves ZLayer's relay protocol at the UDP port `listen`, for `max_sessions` at once, whose ports are
    among `ports`."""

    ports: str
    external: str = ""
    max_pairs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    listen: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 3478
    max_sessions: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    credential_file: str = ""


class RelayAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A relay of ZLayer's protocol that this node uses, `host:port`."""

    address: str
    credential_file: str
    username: Annotated[str, msgspec.Meta(max_length=63)] = "zlayer"


class TurnAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TURN server that this node uses: `turn:host:port`, with `?transport=tcp` for TCP, or `turns:host:port`.
    `ca_file`: who signed its certificate, "" for the authorities of the system."""

    address: str
    username: str
    credential_file: str
    ca_file: str = ""


class Nat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NAT traversal. `stun`: the servers that are asked, `host:port`; none is asked that is not named here or by an
    agent. `relay`: what this node relays for others; None: nothing. `relays`, `turn`: relays in user space that this
    node uses; `port_mapping`: whether the router is asked to lead a port to WireGuard's (PCP, NAT-PMP)."""

    enabled: bool = True
    stun: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()
    relay: RelayPorts | None = None
    relays: Annotated[tuple[RelayAccess, ...], msgspec.Meta(max_length=4)] = ()
    turn: Annotated[tuple[TurnAccess, ...], msgspec.Meta(max_length=4)] = ()
    port_mapping: bool = True


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where metrics are served besides the socket in the run directory. `listen`: `address:port`, None for nowhere."""

    listen: str | None = None


class ServiceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one service on this node. `attach`: its kind of attach, where no request names one."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    attach: AttachKind = "bridge"


class Isolation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What passes between isolation networks. `reach`: destinations that every container may open flows to; `from`:
    senders that may open flows to every member (cni/openings.py has the forms)."""

    reach: Annotated[tuple[str, ...], msgspec.Meta(max_length=openings.MOST)] = ()
    from_: Annotated[tuple[str, ...], msgspec.Meta(max_length=openings.MOST)] = msgspec.field(name="from", default=())


class NetworkList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The runtime's network list. `target`: where the runtime looks for it; `source`: the file that the daemon puts
    there when it can serve; "": the list is put there by another program."""

    source: str = ""
    target: str = f"{defaults.CONF_DIR}/10-zlayer.conflist"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One node's settings. Ranges are checked by `parse`; times are in seconds."""

    deployment: str = "zlayer"
    instance_id: str | int = "0"
    node_id: int = 0
    cluster_cidr: str = "10.200.0.0/16"
    cluster_cidr6: str | None = None
    slice_cidr: str | None = None
    wg_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = defaults.WG_PORT
    wireguard_engine: Engine = "auto"
    engine_host: bool = False
    underlay: Underlay | None = None
    service_cidr: str | None = None
    advertise: tuple[str, ...] = ()
    peers: tuple[StaticPeer, ...] = ()
    extra_routes: tuple[str, ...] = ()
    cluster: Cluster | None = None
    nat: Nat | None = None
    data_dir: str = defaults.DATA_DIR
    run_dir: str = defaults.RUN_DIR
    overlay_socket: str | None = None
    dns: Dns = Dns()
    attach: AttachKind = "bridge"
    services: tuple[ServiceSettings, ...] = ()
    masquerade: bool = True
    isolation: Isolation = Isolation()
    policies: str = defaults.POLICIES
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=65535)] | None = None
    new_services_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 300
    idle_services: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 64
    address_cooldown: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    metrics: Metrics = Metrics()
    connectivity: Tests = "refuse"
    network_list: NetworkList = NetworkList()

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges, the primary IP version first."""
        return (self.cluster_cidr, self.cluster_cidr6) if self.cluster_cidr6 else (self.cluster_cidr,)

    @property
    def takes_pod_cidr(self) -> bool:
        """Whether the pool of this node is the podCIDR of its Node."""
        return bool(self.cluster and self.cluster.kubernetes and self.cluster.kubernetes.pod_cidr)

    @property
    def attach_kinds(self) -> dict[str, str]:
        """The kind of attach by service, for those that the settings name."""
        return {service.name: service.attach for service in self.services}
