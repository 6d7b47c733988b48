"""The 26 requests of the protocol (contract 2.3), in its order.

Class names are the protocol's operation names in camel case; the tag is the name on the wire.
"""

from typing import ClassVar

from cni.overlay.nested import (
    U16,
    U64,
    AnyHandle,
    AnyScope,
    Candidate,
    GlobalScope,
    Ip,
    Mode,
    NatConfig,
    Wire,
    always_written,
)


class Request(Wire, frozen=True, tag_field="op"):
    """The base of requests."""


class SetLocalNodeId(Request, frozen=True, tag="set_local_node_id"):
    """This node's number, unique in the cluster; service subnets depend on it. Answer: Ok."""

    node_id: U64


class SetLocalWgPubkey(Request, frozen=True, tag="set_local_wg_pubkey"):
    """This node's WireGuard public key, base64. Answer: Ok."""

    pubkey: str


class SetupGlobalOverlay(Request, frozen=True, kw_only=True, tag="setup_global_overlay"):
    """Bring up the node's global WireGuard device. Answer: BridgeName."""

    deployment: str
    instance_id: str
    cluster_cidr: str
    slice_cidr: str | None = None
    wg_port: U16
    host_adapter_mandatory: bool = always_written(False)
    nat: NatConfig | None = None


class TeardownGlobalOverlay(Request, frozen=True, tag="teardown_global_overlay"):
    """Take the global device down. Answer: Ok."""


class SetupServiceOverlay(Request, frozen=True, tag="setup_service_overlay"):
    """Bring up the bridge that a service's containers attach to. Answer: ServiceOverlay."""

    service: str
    mode: Mode


class TeardownServiceOverlay(Request, frozen=True, tag="teardown_service_overlay"):
    """Take a service's bridge (and dedicated device) down. Answer: Ok."""

    service: str


class AllocateIp(Request, frozen=True, tag="allocate_ip"):
    """Lease an address of a service without attaching anything. Answer: IpReply."""

    service: str
    join_global: bool


class ReleaseIp(Request, frozen=True, tag="release_ip"):
    """Give a leased address back. Answer: Ok."""

    ip: Ip

    ADDRESSES: ClassVar[tuple[str, ...]] = ("ip",)


class AttachContainer(Request, frozen=True, tag="attach_container"):
    """Attach a container, guest or process to a service. Answer: Attached, or GuestConfig for a guest."""

    handle: AnyHandle
    service: str
    join_global: bool
    ephemeral: bool = always_written(False)
    isolation_network: str | None = None
    dns_server: Ip | None = None
    dns_domain: str | None = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("dns_server",)


class DetachContainer(Request, frozen=True, tag="detach_container"):
    """Undo an attach. Answer: Ok."""

    handle: AnyHandle


class AddPeer(Request, frozen=True, tag="add_peer"):
    """Give a device a peer; the peer's fields lie flat in the request. Answer: Ok."""

    public_key: str
    endpoint: str
    allowed_ips: str
    persistent_keepalive_secs: U64
    candidates: tuple[Candidate, ...] = ()
    scope: AnyScope = always_written(GlobalScope())


class RemovePeer(Request, frozen=True, tag="remove_peer"):
    """Take a peer off a device. Answer: Ok."""

    pubkey: str
    scope: AnyScope = always_written(GlobalScope())


class AddAllowedIp(Request, frozen=True, tag="add_allowed_ip"):
    """Route one more CIDR to a peer. Answer: Ok."""

    pubkey: str
    cidr: str
    scope: AnyScope = always_written(GlobalScope())


class RemoveAllowedIp(Request, frozen=True, tag="remove_allowed_ip"):
    """Stop routing a CIDR to a peer. Answer: Ok."""

    pubkey: str
    cidr: str
    scope: AnyScope = always_written(GlobalScope())


class MintEdgePeer(Request, frozen=True, kw_only=True, tag="mint_edge_peer"):
    """Make a peer for a machine outside, for `ttl_secs`, allowed to reach `allow`. Answer: EdgeConfig."""

    name: str
    ttl_secs: U64
    allow: tuple[str, ...] = ()
    node_endpoint: str


class RevokeEdgePeer(Request, frozen=True, tag="revoke_edge_peer"):
    """End an edge peer. Answer: Ok."""

    name: str


class ListEdgePeers(Request, frozen=True, tag="list_edge_peers"):
    """The live edge peers. Answer: EdgePeers."""


class RegisterDns(Request, frozen=True, tag="register_dns"):
    """Give a name to an address. Answer: Ok."""

    name: str
    ip: Ip

    ADDRESSES: ClassVar[tuple[str, ...]] = ("ip",)


class UnregisterDns(Request, frozen=True, tag="unregister_dns"):
    """Forget a name. Answer: Ok."""

    name: str


class WriteScopedResolver(Request, frozen=True, tag="write_scoped_resolver"):
    """macOS: resolve `zone` at `node_ip`. Answer: Ok there, Err elsewhere."""

    zone: str
    node_ip: Ip
    port: U16 | None = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("node_ip",)


class RemoveScopedResolver(Request, frozen=True, tag="remove_scoped_resolver"):
    """macOS: undo that. Answer: Ok there, Err elsewhere."""

    zone: str


class PruneOrphanBridges(Request, frozen=True, tag="prune_orphan_bridges"):
    """Remove idle bridges that are not in the list. Answer: PrunedBridges."""

    live_bridge_names: tuple[str, ...]


class StatusRequest(Request, frozen=True, tag="status"):
    """The state of the node. Answer: Status."""


class NatTick(Request, frozen=True, tag="nat_tick"):
    """Do one round of NAT maintenance. Answer: Ok."""


class NatStatusRequest(Request, frozen=True, tag="nat_status"):
    """The state of NAT traversal. Answer: NatStatus."""


class Shutdown(Request, frozen=True, tag="shutdown"):
    """End the daemon. Answer: Ok, then the process exits."""


AnyRequest = (
    SetLocalNodeId
    | SetLocalWgPubkey
    | SetupGlobalOverlay
    | TeardownGlobalOverlay
    | SetupServiceOverlay
    | TeardownServiceOverlay
    | AllocateIp
    | ReleaseIp
    | AttachContainer
    | DetachContainer
    | AddPeer
    | RemovePeer
    | AddAllowedIp
    | RemoveAllowedIp
    | MintEdgePeer
    | RevokeEdgePeer
    | ListEdgePeers
    | RegisterDns
    | UnregisterDns
    | WriteScopedResolver
    | RemoveScopedResolver
    | PruneOrphanBridges
    | StatusRequest
    | NatTick
    | NatStatusRequest
    | Shutdown
)
