"""`OverlayManager`: drive an overlayd, ours or ZLayer's, from any Python program.

    manager = OverlayManager.with_slice("prod", "10.200.0.0/16", "10.200.0.16/28", 51420, "42").with_local_node_id(3)
    manager.setup_global_overlay()
    manager.setup_service_overlay("web")
    address = manager.attach_container(pid, "web")

Nothing is dialled until the first call. A broken connection is replaced, and the request repeated, once; a
refusal by the daemon is raised as it is. Every failure is an `OverlaydError` (`overlay/errors.py`) unless a
method says that it logs instead; what does not fit the protocol raises CodecError or FrameTooLarge before
anything is sent. Every call ends within its deadline (`with_timeouts`). An object may be used by several
threads; its connection carries one request at a time.

Names, parameters, requests and answers are those of ZLayer's own client (contract 3.4), with these differences:
deadlines; defaults for optional parameters; peers in front of ZLayer's daemon (`overlay/peers.py`); and methods for
the operations its client lacks. docs/protocol.md has a table with a row for each name. All that a program needs can be
had from this module; the types of answers are in `cni.overlay.wire`, edge tokens in `cni.overlay.edge`.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Concatenate, ParamSpec, Self, TypeVar

from cni import isolation
from cni.naming import make_interface_name
from cni.overlay import wire
from cni.overlay.accessors import Accessors
from cni.overlay.channel import Channel
from cni.overlay.client import Dialing, OnEvent
from cni.overlay.containers import Containers
from cni.overlay.dialer import SettingsDialer
from cni.overlay.edge_peers import EdgePeers
from cni.overlay.errors import (
    ApplicationError,
    CodecError,
    DeadlinePassed,
    OverlaydError,
    Refused,
    TransportError,
    Unexpected,
    UnsupportedPeerChange,
)
from cni.overlay.global_overlay import GlobalOverlay, reestablish
from cni.overlay.hcn import HcnAttachments
from cni.overlay.names import Names
from cni.overlay.nat import NatSettings, NatSnapshot, RelayServer, StunServer, TurnServer
from cni.overlay.nat_traversal import NatTraversal
from cni.overlay.peering import PeerInfo
from cni.overlay.peers import Peers
from cni.overlay.services import Services
from cni.overlay.session import Session
from cni.overlay.sockets import find_socket
from cni.overlay.state import DEFAULT_CLUSTER_CIDR, DEFAULT_WG_PORT, Cached, NodeState, Settings, Timeouts, host_of
from cni.overlay.transport import Connect, connect

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


def resolve_isolation_network(mode: wire.Mode, service: str, explicit_named: str | None = None) -> str | None:
    """The network a container joins: `explicit_named` if given, else the service's own in mode isolated, else None."""
    return isolation.isolation_network(explicit_named, mode, service)


def _delegate(
    part: "Callable[[OverlayManager], T]", method: Callable[Concatenate[T, P], R]
) -> "Callable[Concatenate[OverlayManager, P], R]":
    """A method of `OverlayManager` that is `method` of one of its parts, signature and docstring included."""

    def call(self: "OverlayManager", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(part(self), *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


class OverlayManager:
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
        connect: Connect = connect,
    ) -> None:
        r"""Deployment and instance are parts of every interface's name. The ranges are CIDRs: the cluster's, the same
        on every node, and this node's own slice of it; `port` is the UDP port of its global device (0 to 65535).

        `socket` is the path of the daemon's socket, or the name of its pipe (`\\.\pipe\...`), by default where ZLayer's
        rules put it (contract 1.3); `dialing` how often it is tried; `on_event` is called with the daemon's events, by
        a call that waits; `connect` makes the stream, by default a Unix socket or a pipe as the address says. Nothing
        is checked or sent until the first call.
        """
        self._state = NodeState(
            Settings(
                deployment,
                instance_id,
                find_socket() if socket is None else socket,
                overlay_port=port,
                dialing=dialing or Dialing(),
            ),
            Cached(cluster_cidr, slice_cidr),
        )
        session = Session(SettingsDialer(self._state, on_event, connect), functools.partial(reestablish, self._state))
        self._channel = Channel(session, self._state)
        hcn = HcnAttachments()
        self._accessors = Accessors(self._state)
        self._global = GlobalOverlay(self._channel, self._state, hcn)
        self._services = Services(self._channel, self._state)
        self._containers = Containers(self._channel, self._state, hcn)
        self._peers = Peers(self._channel)
        self._nat = NatTraversal(self._channel, self._state)
        self._edges = EdgePeers(self._channel)
        self._names = Names(self._channel)

    @classmethod
    def new(cls, deployment: str, instance_id: str) -> Self:
        """A node without a slice in the default cluster range, 10.200.0.0/16."""
        return cls(deployment, instance_id)

    @classmethod
    def with_slice(
        cls, deployment: str, cluster_cidr: str, slice_cidr: str | None, port: int, instance_id: str
    ) -> Self:
        """A node that owns `slice_cidr` of the cluster's range; its own address is the first of it."""
        return cls(deployment, instance_id, cluster_cidr, slice_cidr, port)

    # Setters. Each takes effect from the next call on, sends nothing, and returns the manager for chaining.

    def with_overlay_port(self, port: int) -> Self:
        """The UDP port of the global device, 0 to 65535, from the next setup on."""
        return self._with(lambda settings: replace(settings, overlay_port=port))

    def with_nat_config(self, nat: NatSettings | None) -> Self:
        """How NAT is traversed, from the next setup on; None leaves it to the daemon's defaults, which are "on"."""
        return self._with(lambda settings: replace(settings, nat=nat))

    def with_relay_credential(self, credential: str | None) -> Self:
        """The cluster's credential for its relays, sent only with a relay server; blank text is none."""
        given = credential if credential and credential.strip() else None
        return self._with(lambda settings: replace(settings, relay_credential=given))

    def with_uapi_sock_dir(self, dir: str | os.PathLike[str]) -> Self:
        """Without effect, as in ZLayer's client: the daemon chooses the directory of its devices' sockets."""
        del dir
        return self

    def with_data_dir(self, dir: str | os.PathLike[str]) -> Self:
        """Use the daemon that keeps its data there, by ZLayer's path rules (contract 1.3). Hangs up.

        Raises ValueError on Windows, where the rule for a pipe's name is not known: `with_socket` takes the name.
        """
        return self.with_socket(find_socket(os.fspath(dir)))

    def with_local_node_id(self, node_id: int) -> Self:
        """As `set_local_node_id`."""
        self.set_local_node_id(node_id)
        return self

    def with_local_wg_pubkey(self, pubkey: str) -> Self:
        """Remember this node's WireGuard key (base64) for the setup, without telling the daemon now."""
        return self._with(lambda settings: replace(settings, wg_pubkey=pubkey))

    def with_host_adapter_mandatory(self, mandatory: bool) -> Self:
        """Whether a global overlay without its device is a failure (it always is on Linux)."""
        return self._with(lambda settings: replace(settings, host_adapter_mandatory=mandatory))

    def with_dns_config(self, addr: str | None, domain: str | None) -> Self:
        """As `set_dns_config`. Raises CodecError."""
        self.set_dns_config(addr, domain)
        return self

    def with_socket(self, path: str) -> Self:
        """Use the daemon at this path or pipe. The connection to another one ends; what is cached stays."""
        self._with(lambda settings: replace(settings, socket=path))
        self._channel.close()
        return self

    def with_dialing(self, dialing: Dialing) -> Self:
        """Try as often, and pause as long, as this says."""
        return self._with(lambda settings: replace(settings, dialing=dialing))

    def with_timeouts(self, timeouts: Timeouts) -> Self:
        """Give calls this long."""
        return self._with(lambda settings: replace(settings, timeouts=timeouts))

    def set_local_node_id(self, node_id: int) -> None:
        """Remember this node's number, 0 to 2**64 - 1 and unique in the cluster; it is told at the setup.

        The services' subnets follow from it. Nothing is sent now.
        """
        self._with(lambda settings: replace(settings, node_id=node_id))

    def set_dns_config(self, addr: str | None, domain: str | None) -> None:
        """The resolver (`ip:port` or `ip`) and search domains that attaches name from now on.

        Raises CodecError for a resolver that is no address.
        """
        if addr is not None:
            try:
                host_of(addr)
            except ValueError as e:
                raise CodecError(f"DNS server: {e}: {addr!r}") from None
        self._with(lambda settings: replace(settings, dns_server_addr=addr, dns_domain=domain))

    # The accessors and calls, each by the part that answers it.

    deployment = _delegate(lambda self: self._accessors, Accessors.deployment)
    overlay_port = _delegate(lambda self: self._accessors, Accessors.overlay_port)
    cluster_cidr = _delegate(lambda self: self._accessors, Accessors.cluster_cidr)
    overlay_cidr = _delegate(lambda self: self._accessors, Accessors.overlay_cidr)
    slice_cidr = _delegate(lambda self: self._accessors, Accessors.slice_cidr)
    node_ip = _delegate(lambda self: self._accessors, Accessors.node_ip)
    global_interface = _delegate(lambda self: self._accessors, Accessors.global_interface)
    has_global_transport = _delegate(lambda self: self._accessors, Accessors.has_global_transport)
    dns_server_addr = _delegate(lambda self: self._accessors, Accessors.dns_server_addr)
    dns_domain = _delegate(lambda self: self._accessors, Accessors.dns_domain)
    ip_alloc_stats = _delegate(lambda self: self._accessors, Accessors.ip_alloc_stats)
    persist_ipam_state = _delegate(lambda self: self._accessors, Accessors.persist_ipam_state)
    restore_ipam_state = _delegate(lambda self: self._accessors, Accessors.restore_ipam_state)

    set_local_wg_pubkey = _delegate(lambda self: self._global, GlobalOverlay.set_local_wg_pubkey)
    setup_global_overlay = _delegate(lambda self: self._global, GlobalOverlay.setup_global_overlay)
    cleanup = _delegate(lambda self: self._global, GlobalOverlay.cleanup)
    status = _delegate(lambda self: self._global, GlobalOverlay.status)
    shutdown = _delegate(lambda self: self._global, GlobalOverlay.shutdown)

    setup_service_overlay = _delegate(lambda self: self._services, Services.setup_service_overlay)
    teardown_service_overlay = _delegate(lambda self: self._services, Services.teardown_service_overlay)
    prune_orphan_bridges = _delegate(lambda self: self._services, Services.prune_orphan_bridges)
    service_count = _delegate(lambda self: self._services, Services.service_count)
    service_bridge_count = _delegate(lambda self: self._services, Services.service_bridge_count)
    service_bridge_name = _delegate(lambda self: self._services, Services.service_bridge_name)
    allocate_ip = _delegate(lambda self: self._services, Services.allocate_ip)
    release_ip = _delegate(lambda self: self._services, Services.release_ip)

    attach_container = _delegate(lambda self: self._containers, Containers.attach_container)
    attach_container_guest = _delegate(lambda self: self._containers, Containers.attach_container_guest)
    attach_container_host_shared = _delegate(lambda self: self._containers, Containers.attach_container_host_shared)
    attach_container_hcn = _delegate(lambda self: self._containers, Containers.attach_container_hcn)
    hcn_attachments = _delegate(lambda self: self._containers, Containers.hcn_attachments)
    detach_container = _delegate(lambda self: self._containers, Containers.detach_container)
    detach_container_guest = _delegate(lambda self: self._containers, Containers.detach_container_guest)
    detach_container_host_shared = _delegate(lambda self: self._containers, Containers.detach_container_host_shared)
    detach_container_hcn = _delegate(lambda self: self._containers, Containers.detach_container_hcn)

    add_global_peer = _delegate(lambda self: self._peers, Peers.add_global_peer)
    add_global_peer_with_candidates = _delegate(lambda self: self._peers, Peers.add_global_peer_with_candidates)
    add_service_peer = _delegate(lambda self: self._peers, Peers.add_service_peer)
    remove_global_peer = _delegate(lambda self: self._peers, Peers.remove_global_peer)
    remove_service_peer = _delegate(lambda self: self._peers, Peers.remove_service_peer)
    add_allowed_ip = _delegate(lambda self: self._peers, Peers.add_allowed_ip)
    remove_allowed_ip = _delegate(lambda self: self._peers, Peers.remove_allowed_ip)

    nat_config = _delegate(lambda self: self._nat, NatTraversal.nat_config)
    nat_enabled = _delegate(lambda self: self._nat, NatTraversal.nat_enabled)
    start_nat_traversal = _delegate(lambda self: self._nat, NatTraversal.start_nat_traversal)
    nat_maintenance_tick = _delegate(lambda self: self._nat, NatTraversal.nat_maintenance_tick)
    nat_status_snapshot = _delegate(lambda self: self._nat, NatTraversal.nat_status_snapshot)

    mint_edge_peer = _delegate(lambda self: self._edges, EdgePeers.mint_edge_peer)
    revoke_edge_peer = _delegate(lambda self: self._edges, EdgePeers.revoke_edge_peer)
    list_edge_peers = _delegate(lambda self: self._edges, EdgePeers.list_edge_peers)

    register_dns = _delegate(lambda self: self._names, Names.register_dns)
    unregister_dns = _delegate(lambda self: self._names, Names.unregister_dns)
    write_scoped_resolver = _delegate(lambda self: self._names, Names.write_scoped_resolver)
    remove_scoped_resolver = _delegate(lambda self: self._names, Names.remove_scoped_resolver)

    def close(self) -> None:
        """Hang up; nothing of the overlay changes. The next call dials again."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Itself; leaving the block hangs up."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with(self, edit: Callable[[Settings], Settings]) -> Self:
        self._state.change(edit)
        return self


__all__ = [
    "ApplicationError",
    "CodecError",
    "DeadlinePassed",
    "Dialing",
    "NatSettings",
    "NatSnapshot",
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
    "UnsupportedPeerChange",
    "make_interface_name",
    "resolve_isolation_network",
]
