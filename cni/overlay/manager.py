"""`OverlayManager`: drive an overlayd, ours or ZLayer's, from any Python program.

    manager = OverlayManager.with_slice("prod", "10.200.0.0/16", "10.200.0.16/28", 51420, "42").with_node_id(3)
    manager.setup_global_overlay()
    manager.setup_service_overlay("web")
    address = manager.attach_container(pid, "web")

Nothing is dialled until the first call. A broken connection is replaced, and the request repeated, once; a
refusal by the daemon is raised as it is. Every failure is an `OverlaydError` (`overlay/errors.py`) unless a
method says that it logs instead; what does not fit the protocol raises CodecError or FrameTooLarge before
anything is sent. Every call ends within its deadline (`with_timeouts`). An object may be used by several
threads; its connection carries one request at a time.

Names, requests and answers are those of ZLayer's own client (contract 3), with these differences: deadlines;
peers in front of ZLayer's daemon (`overlay/peers.py`); and methods for the operations its client lacks.
docs/protocol.md shows it at work. All that a program needs can be had from this module; the types of answers are in
`cni.overlay.wire`, edge tokens in `cni.overlay.edge`.
"""

from collections.abc import Iterable
from typing import Self

from cni.overlay import wire
from cni.overlay.calls import (
    DEFAULT_CLUSTER_CIDR,
    DEFAULT_WG_PORT,
    Remembered,
    Settings,
    Timeouts,
    host_of,
    log,
)
from cni.overlay.client import Client, Dialing, OnEvent
from cni.overlay.containers import ContainerCalls, ServiceCalls
from cni.overlay.errors import (
    ApplicationError,
    CodecError,
    DeadlinePassed,
    NotTaken,
    OverlaydError,
    Refused,
    TransportError,
    Unexpected,
)
from cni.overlay.nat import NatCalls, NatSettings, NatSnapshot, RelayServer, StunServer, TurnServer
from cni.overlay.peering import PeerInfo
from cni.overlay.peers import PeerCalls
from cni.overlay.session import Session
from cni.overlay.sockets import find_socket


class OverlayManager(ServiceCalls, ContainerCalls, PeerCalls, NatCalls):
    """One node's overlay, by way of its daemon. Begin with `new` or `with_slice`."""

    def __init__(
        self,
        deployment: str,
        instance_id: str,
        cluster_cidr: str = DEFAULT_CLUSTER_CIDR,
        slice_cidr: str | None = None,
        port: int = DEFAULT_WG_PORT,
        *,
        socket: str | None = None,
        dialing: Dialing | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """Deployment and instance are parts of every interface's name. The ranges are CIDRs: the cluster's, the same
        on every node, and this node's own slice of it; `port` is the UDP port of its global device (0 to 65535).

        `socket` is the path of the daemon's socket, by default where ZLayer's rules put it (contract 1.3);
        `dialing` how often it is tried; `on_event` is called with what the daemon says unasked, from within a
        call that waits. Nothing is checked or sent until the first call.
        """
        super().__init__(
            Settings(deployment, instance_id, port),
            Remembered(cluster_cidr, slice_cidr),
            find_socket() if socket is None else socket,
            dialing or Dialing(),
            on_event,
        )

    @classmethod
    def new(cls, deployment: str, instance_id: str = "") -> Self:
        """A node without a slice in the default cluster range, 10.200.0.0/16."""
        return cls(deployment, instance_id)

    @classmethod
    def with_slice(
        cls, deployment: str, cluster_cidr: str, slice_cidr: str | None, port: int, instance_id: str
    ) -> Self:
        """A node that owns `slice_cidr` of the cluster's range; its own address is the first of it."""
        return cls(deployment, instance_id, cluster_cidr, slice_cidr, port)

    # Setters, each returning the manager so that they can be chained.

    def with_socket(self, path: str) -> Self:
        """Talk to the daemon at this path. The connection to another one ends; what is remembered stays."""
        self._session.close()
        self._session = Session(path, self._dialing, self._reestablish, self._on_event)
        return self

    def with_data_dir(self, data_dir: str) -> Self:
        """Talk to the daemon that keeps its data there, by ZLayer's path rules (contract 1.3)."""
        return self.with_socket(find_socket(data_dir))

    def with_dialing(self, dialing: Dialing) -> Self:
        """Try as often, and pause as long, as this says."""
        self._dialing = dialing
        return self.with_socket(self._session.path)

    def with_timeouts(self, timeouts: Timeouts) -> Self:
        """Give calls this long."""
        self._change(timeouts=timeouts)
        return self

    def with_node_id(self, node_id: int) -> Self:
        """As `set_local_node_id`."""
        self.set_local_node_id(node_id)
        return self

    def with_wg_pubkey(self, pubkey: str) -> Self:
        """Remember this node's WireGuard key for the setup, without telling the daemon now."""
        self._change(wg_pubkey=pubkey)
        return self

    def with_host_adapter_mandatory(self, mandatory: bool) -> Self:
        """Whether a global overlay without its device is a failure (it always is on Linux)."""
        self._change(host_adapter_mandatory=mandatory)
        return self

    def with_nat_config(self, nat: NatSettings | None) -> Self:
        """How NAT is traversed, from the next setup on; None leaves it to the daemon's defaults, which are "on"."""
        self._nat = nat
        return self._with_nat()

    def with_relay_credential(self, credential: str | None) -> Self:
        """The cluster's credential for its relays, sent only with a relay server; blank is none."""
        self._change(relay_credential=credential if credential and credential.strip() else None)
        return self._with_nat()

    def with_dns_config(self, server_addr: str | None, domain: str | None) -> Self:
        """As `set_dns_config`. Raises CodecError."""
        self.set_dns_config(server_addr, domain)
        return self

    def set_dns_config(self, server_addr: str | None, domain: str | None) -> None:
        """The resolver (`ip:port` or `ip`) and search domains that attaches name.

        Raises CodecError for a resolver that is no address.
        """
        if server_addr is not None:
            try:
                host_of(server_addr)
            except ValueError as e:
                raise CodecError(f"DNS server: {e}: {server_addr!r}") from None
        self._change(dns_server_addr=server_addr, dns_domain=domain)

    def set_local_node_id(self, node_id: int) -> None:
        """Remember this node's number, 0 to 2**64 - 1 and unique in the cluster; it is told at the setup.

        The services' subnets follow from it. Nothing is sent now.
        """
        self._change(node_id=node_id)

    def set_local_wg_pubkey(self, pubkey: str) -> None:
        """Remember this node's WireGuard public key (base64) and tell the daemon; a failure of that is logged.

        Both daemons remember it, and use one of their own.
        """
        self._change(wg_pubkey=pubkey)
        self._try(wire.SetLocalWgPubkey(pubkey))

    def setup_global_overlay(self) -> None:
        """Bring up the node's global overlay; again is harmless for our daemon.

        For whoever owns the node's overlay, not for a plugin: with ZLayer's daemon it forgets the leases and
        renames later bridges (contract 7.1). Raises OverlaydError if the daemon cannot be reached or refuses;
        what is told it before, and asked after, may fail.
        """
        deadline = self._deadline()
        self._session.connection(deadline)
        self._try(wire.SetLocalNodeId(self._settings.node_id), deadline)
        if self._settings.wg_pubkey is not None:
            self._try(wire.SetLocalWgPubkey(self._settings.wg_pubkey), deadline)
        request = wire.SetupGlobalOverlay(
            deployment=self._settings.deployment,
            instance_id=self._settings.instance_id,
            cluster_cidr=self._remembered.cluster_cidr,
            slice_cidr=self._remembered.slice_cidr,
            wg_port=self._settings.port,
            host_adapter_mandatory=self._settings.host_adapter_mandatory,
            nat=self._settings.nat,
        )
        reply = self._call(request, deadline)
        self._remembered.setup = request
        if isinstance(reply, wire.BridgeName):
            self._remembered.interface = reply.name
        else:
            log.warning("setup_global_overlay was answered by %r, which names no interface", reply)
        status = self._try(wire.StatusRequest(), deadline)
        if isinstance(status, wire.Status):
            self._remembered.refresh(status)

    def cleanup(self) -> None:
        """Take the global overlay down and forget its interface, that alone.

        Idempotent. What came through the daemon's overlay door is cut off; with ZLayer's daemon every container
        is (contract 6.3). Raises OverlaydError, and then forgets nothing.
        """
        self._call(wire.TeardownGlobalOverlay())
        self._remembered.interface = None

    def status(self) -> wire.Status:
        """What the daemon says of itself: its global device, ranges, peers, services. Raises OverlaydError."""
        return self._ask(wire.StatusRequest(), wire.Status)

    def shutdown(self) -> None:
        """End the daemon. Our containers go on without it, those of ZLayer's are cut off. Raises OverlaydError."""

        def work(conn: Client) -> None:
            conn.round_trip(wire.Shutdown(), deadline)
            conn.close()

        deadline = self._deadline()
        self._session.run(work, deadline)

    def close(self) -> None:
        """Hang up; nothing of the overlay changes. The next call dials again."""
        self._session.close()

    def __enter__(self) -> Self:
        """Itself; leaving the block hangs up."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Edge peers, names, resolvers.

    def mint_edge_peer(
        self, name: str, ttl_secs: int, node_endpoint: str, allow: Iterable[str] = ()
    ) -> wire.EdgeConfig:
        """Make a peer for a machine outside, for so many seconds, that reaches `allow` (empty: everything).

        `node_endpoint` is the `host:port` at which it finds this node; `allow` are CIDRs, addresses, or
        services of this node. The answer holds its private key, which cannot be asked for again;
        `cni.overlay.edge` makes one line of it. Raises OverlaydError: Refused for a name that is live.
        """
        request = wire.MintEdgePeer(name=name, ttl_secs=ttl_secs, allow=tuple(allow), node_endpoint=node_endpoint)
        return self._ask(request, wire.EdgeConfig)

    def revoke_edge_peer(self, name: str) -> None:
        """End an edge peer; an unknown one is fine. Raises OverlaydError."""
        self._ask(wire.RevokeEdgePeer(name), wire.Ok)

    def list_edge_peers(self) -> list[wire.EdgePeer]:
        """The live edge peers. Raises OverlaydError."""
        return list(self._ask(wire.ListEdgePeers(), wire.EdgePeers).peers)

    def register_dns(self, name: str, ip: str) -> None:
        """Give a name to an address; the last one given counts. Raises OverlaydError.

        ZLayer's daemon keeps the table and serves no DNS from it (contract 6.13).
        """
        self._call(wire.RegisterDns(name, ip))

    def unregister_dns(self, name: str) -> None:
        """Forget a name; an unknown one is fine. Raises OverlaydError."""
        self._call(wire.UnregisterDns(name))

    def write_scoped_resolver(self, zone: str, node_ip: str, port: int | None = None) -> None:
        """macOS: resolve `zone` at that address and port (None: 53). Raises OverlaydError, always on Linux."""
        self._call(wire.WriteScopedResolver(zone, node_ip, port))

    def remove_scoped_resolver(self, zone: str) -> None:
        """macOS: undo that. Raises OverlaydError, always on Linux."""
        self._call(wire.RemoveScopedResolver(zone))

    def _with_nat(self) -> Self:
        nat = self._nat
        self._change(nat=None if nat is None else nat.to_wire(self._settings.relay_credential))
        return self

    _nat: NatSettings | None = None


__all__ = [
    "ApplicationError",
    "CodecError",
    "DeadlinePassed",
    "Dialing",
    "NatSettings",
    "NatSnapshot",
    "NotTaken",
    "OverlayManager",
    "OverlaydError",
    "PeerInfo",
    "Refused",
    "RelayServer",
    "StunServer",
    "Timeouts",
    "TransportError",
    "TurnServer",
    "Unexpected",
]
