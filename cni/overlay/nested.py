"""The types that appear inside requests and replies (contract 2.6), and the base all wire types share.

Three kinds of optional field are told apart, as the protocol does:

* `x: T | None = None`: left out when absent; `null` means absent.
* `x: T = always_written(value)`: may be absent on input, is always written; `null` is refused.
* `x: tuple[T, ...] = ()`: left out when empty; `null` is refused.

Addresses are text in the form Rust prints (`overlay/address.py`): any spelling Rust reads is accepted and made
canonical, anything else is refused. CIDRs, endpoints, keys and names are unchecked text, as upstream's are.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from cni.overlay.address import canonical_ip
from cni.overlay.errors import CodecError

U8 = Annotated[int, Meta(ge=0, le=(1 << 8) - 1)]
U16 = Annotated[int, Meta(ge=0, le=(1 << 16) - 1)]
U32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
U64 = Annotated[int, Meta(ge=0)]
"""The parser enforces the upper bound: `strict.parse` gives a float for anything larger."""
I64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

Ip = str
"""An address without prefix, port, brackets or zone, in canonical form."""

Mode = Literal["auto", "shared", "dedicated", "isolated"]


def always_written(value: Any) -> Any:
    """The default of a field that is written even when it has that default.

    `omit_defaults` leaves out a field that has its default value, and does not compare with what a factory makes.
    """
    return msgspec.field(default_factory=lambda: value)


class Wire(msgspec.Struct, frozen=True, omit_defaults=True):
    """The base of every wire type. The constructor raises CodecError for a malformed address."""

    ADDRESSES: ClassVar[tuple[str, ...]] = ()
    """The names of the fields that hold addresses."""

    def __post_init__(self) -> None:
        for name in self.ADDRESSES:
            text = getattr(self, name)
            if text is not None:
                try:
                    msgspec.structs.force_setattr(self, name, canonical_ip(text))
                except ValueError as e:
                    raise CodecError(f"frame codec error: {name}: {e}: {text!r}") from None


class Handle(Wire, frozen=True, tag_field="platform"):
    """The thing to attach."""


class LinuxPid(Handle, frozen=True, tag="linux_pid"):
    """The network namespace of a living process, by its PID."""

    pid: U32


class WindowsContainer(Handle, frozen=True, tag="windows_container"):
    """A Windows container: its id on attach, its namespace GUID on detach."""

    container_id: str
    ip: Ip | None = None

    ADDRESSES: ClassVar[tuple[str, ...]] = ("ip",)


class GuestManaged(Handle, frozen=True, tag="guest_managed"):
    """A virtual machine that brings up WireGuard itself, from the configuration in the answer."""

    id: str


class HostShared(Handle, frozen=True, tag="host_shared"):
    """A process in the host's own network namespace, which gets an address on the global device."""

    id: str


AnyHandle = LinuxPid | WindowsContainer | GuestManaged | HostShared


class Scope(Wire, frozen=True, tag_field="scope"):
    """Which WireGuard device a peer belongs to."""


class GlobalScope(Scope, frozen=True, tag="global"):
    """The node's global overlay device."""


class ServiceScope(Scope, frozen=True, tag="service"):
    """The dedicated device of one service."""

    service: str


AnyScope = GlobalScope | ServiceScope


class Candidate(Wire, frozen=True):
    """An address at which a peer might be reached. Types: `host`, `server-reflexive`, `relay`; any text decodes."""

    candidate_type: str
    address: str
    priority: U32


class Peer(Wire, frozen=True):
    """A WireGuard peer: base64 key, `ip:port`, CIDRs joined by commas, keepalive in seconds (0: none)."""

    public_key: str
    endpoint: str
    allowed_ips: str
    persistent_keepalive_secs: U64
    candidates: tuple[Candidate, ...] = ()


class Turn(Wire, frozen=True):
    """A TURN server, `host:port`, and its credentials."""

    addr: str = always_written("")
    username: str = always_written("")
    credential: str = always_written("")


class Relay(Wire, frozen=True):
    """The relay that this node runs for other nodes."""

    listen_port: U16 = always_written(0)
    external_addr: str = always_written("")
    max_sessions: U64 = always_written(0)
    auth_credential: str | None = None


class NatConfig(Wire, frozen=True):
    """NAT traversal. Absent from a request it means the daemon's defaults; present and empty it means off.

    In a present object, numbers that are zero and an empty STUN list stand for the daemon's defaults.
    """

    enabled: bool = always_written(False)
    stun_servers: tuple[str, ...] = always_written(())
    turn_servers: tuple[Turn, ...] = always_written(())
    hole_punch_timeout_secs: U64 = always_written(0)
    stun_refresh_interval_secs: U64 = always_written(0)
    max_candidate_pairs: U64 = always_written(0)
    relay_server: Relay | None = None


class NatPeer(Wire, frozen=True):
    """How a peer is reached: `direct`, `hole-punched` or `relayed`. `node_id` is its base64 key."""

    node_id: str
    connection_type: str
    remote_endpoint: str | None = None


class PeerStatus(Wire, frozen=True):
    """A peer as the device shows it. The key is 64 hexadecimal digits here.

    Upstream's daemon puts the seconds *since* the handshake into the last field (contract 5.3/21).
    """

    public_key: str
    endpoint: str
    allowed_ips: str
    last_handshake_unix_secs: I64


class Dedicated(Wire, frozen=True):
    """A service that has its own WireGuard device."""

    service: str
    interface: str
    public_key: str
    listen_port: U16
    overlay_ip: Ip
    subnet: str
    peer_count: U32

    ADDRESSES: ClassVar[tuple[str, ...]] = ("overlay_ip",)


class EdgePeer(Wire, frozen=True):
    """A minted edge peer; times in Unix seconds."""

    name: str
    overlay_ip: Ip
    public_key: str
    minted_at_unix: U64
    expires_at_unix: U64
    last_handshake_unix_secs: I64 | None = None
    allowed: tuple[str, ...] = ()

    ADDRESSES: ClassVar[tuple[str, ...]] = ("overlay_ip",)
