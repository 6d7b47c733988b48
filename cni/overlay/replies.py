"""The 12 answers of an overlayd (contract 2.4) and its 2 events (2.5)."""

from typing import Any, ClassVar

import msgspec

from cni.overlay.nested import (
    U8,
    U16,
    U32,
    U64,
    Candidate,
    Dedicated,
    EdgePeer,
    Ip,
    Mode,
    NatPeer,
    Peer,
    PeerStatus,
    Wire,
    always_written,
)


class Reply(Wire, frozen=True, tag_field="result"):
    """The base of answers."""


class Ok(Reply, frozen=True, tag="ok"):
    """Done."""


class IpReply(Reply, frozen=True, tag="ip"):
    """An address."""

    ip: Ip

    ADDRESSES: ClassVar[tuple[str, ...]] = ("ip",)


class Attached(Reply, frozen=True, tag="attached"):
    """The container's address in its service; the GUID only on Windows."""

    ip: Ip
    namespace_guid: str | None = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("ip",)


class GuestConfig(Reply, frozen=True, kw_only=True, tag="guest_config"):
    """A guest's WireGuard configuration; keys are base64."""

    overlay_ip: Ip
    prefix_len: U8
    private_key: str
    public_key: str
    listen_port: U16
    peers: tuple[Peer, ...]
    dns_server: Ip | None = None
    dns_domain: str | None = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("overlay_ip", "dns_server")


class BridgeName(Reply, frozen=True, tag="bridge_name"):
    """The name of an interface: the global device's."""

    name: str


class Status(Reply, frozen=True, kw_only=True, tag="status"):
    """The state of the node.

    `server` is an addition to ZLayer's protocol: text, or None. A daemon of ours, which replaces peers safely, has
    `zlayer-cni/VERSION` there. ZLayer's own client ignores the field.
    """

    interface: str | None = None
    node_ip: Ip | None = None
    public_key: str | None = None
    overlay_cidr: str | None = None
    slice_cidr: str | None = None
    peer_count: U32
    service_count: U32
    peers: tuple[PeerStatus, ...] = ()
    dedicated_services: tuple[Dedicated, ...] = ()
    server: Any = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("node_ip",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.server, str):
            # In ZLayer's protocol it is an unknown field, which may have any value.
            msgspec.structs.force_setattr(self, "server", None)


class NatStatus(Reply, frozen=True, tag="nat_status"):
    """The state of NAT traversal; `last_refresh` in Unix seconds, 0 for never."""

    candidates: tuple[Candidate, ...] = ()
    peers: tuple[NatPeer, ...] = ()
    last_refresh: U64 = always_written(0)


class PrunedBridges(Reply, frozen=True, tag="pruned_bridges"):
    """The bridges that were removed."""

    reclaimed: tuple[str, ...]


class ServiceOverlay(Reply, frozen=True, tag="service_overlay"):
    """A service's bridge; the last four fields only in mode dedicated."""

    name: str
    mode: Mode
    wg_public_key: str | None = None
    wg_port: U16 | None = None
    overlay_ip: Ip | None = None
    subnet: str | None = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("overlay_ip",)


class EdgeConfig(Reply, frozen=True, kw_only=True, tag="edge_config"):
    """An edge machine's WireGuard configuration; printable as a token (`overlay/edge.py`)."""

    version: U32
    name: str
    overlay_ip: Ip
    prefix_len: U8
    private_key: str
    public_key: str
    peers: tuple[Peer, ...]
    dns_server: Ip | None = None
    dns_domain: str | None = None
    expires_at_unix: U64

    ADDRESSES: ClassVar[tuple[str, ...]] = ("overlay_ip", "dns_server")


class EdgePeers(Reply, frozen=True, tag="edge_peers"):
    """The live edge peers."""

    peers: tuple[EdgePeer, ...]


class Err(Reply, frozen=True, tag="err"):
    """The operation failed; the connection stays usable."""

    message: str


AnyReply = (
    Ok
    | IpReply
    | Attached
    | GuestConfig
    | BridgeName
    | Status
    | NatStatus
    | PrunedBridges
    | ServiceOverlay
    | EdgeConfig
    | EdgePeers
    | Err
)


class Event(Wire, frozen=True, tag_field="event"):
    """The base of events, which a daemon sends without a request."""


class PeerHealthChanged(Event, frozen=True, tag="peer_health_changed"):
    """A peer fell silent, or answers again."""

    pubkey: str
    healthy: bool


class NatEndpointChanged(Event, frozen=True, tag="nat_endpoint_changed"):
    """A device hears a peer from another endpoint than before."""

    pubkey: str
    endpoint: str


AnyEvent = PeerHealthChanged | NatEndpointChanged
