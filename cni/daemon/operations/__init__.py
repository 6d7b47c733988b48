"""The operations of the overlay socket: one small function for each operation of the protocol.

Each takes the request and the `OperationContext` and returns the reply. An exception becomes an `err` reply and does
not end the connection (contract 1.2). `shutdown` is handled by the socket: it replies, and then ends the daemon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from cni.daemon import call_log
from cni.daemon.operations import containers, edges, guests, node, peers, services
from cni.daemon.operations.context import OperationContext, OperationRefused
from cni.errors import CniError
from cni.overlay import wire

__all__ = ["OPERATIONS", "QUICK", "OperationContext", "carry_out", "sweep", "tear_down"]

log = logging.getLogger(__name__)

ENGINE = "overlay engine error: "
TO_THE_LETTER = (ENGINE, "failed to build ServiceSubnetRegistry: ")

Operation = Callable[[Any, OperationContext], wire.AnyReply]


def _attach(ask: wire.AttachContainer, context: OperationContext) -> wire.AnyReply:
    facts = _facts(ask.handle) | {"service": ask.service, "isolation": ask.isolation_network or ""}
    with call_log.entry("overlay", "ADD", facts):
        reply = _attach_handle(ask, context)
        facts["addresses"] = reply.overlay_ip if isinstance(reply, wire.GuestConfig) else reply.ip
        return reply


def _attach_handle(ask: wire.AttachContainer, context: OperationContext) -> wire.Attached | wire.GuestConfig:
    handle = ask.handle
    if isinstance(handle, wire.LinuxPid):
        return containers.attach(handle, ask, context)
    if isinstance(handle, wire.GuestManaged):
        return guests.attach_guest(handle, ask, context)
    if isinstance(handle, wire.HostShared):
        return guests.attach_host(handle, ask, context)
    raise OperationRefused("WindowsContainer attach is only supported on Windows")


def _detach(ask: wire.DetachContainer, context: OperationContext) -> wire.AnyReply:
    handle, facts = ask.handle, _facts(ask.handle)
    with call_log.entry("overlay", "DEL", facts):
        if isinstance(handle, wire.LinuxPid):
            if (attachment := containers.detach(handle, context)) is not None:
                isolation = attachment.isolation or ""
                facts |= {"service": attachment.service, "isolation": isolation, "addresses": ",".join(attachment.ips)}
        elif isinstance(handle, wire.GuestManaged):
            if (guest := guests.detach_guest(handle, context)) is not None:
                facts |= {"service": guest.service, "isolation": guest.isolation or "", "addresses": guest.held.ip}
        elif isinstance(handle, wire.HostShared) and (process := guests.detach_host(handle, context)) is not None:
            facts |= {"service": process.service, "addresses": process.ip}
    return wire.Ok()


def _facts(handle: wire.AnyHandle) -> dict[str, str]:
    """What a handle tells of the attachment, for the log."""
    if isinstance(handle, wire.LinuxPid):
        return {"attachment": f"{handle.pid}/{containers.IFNAME}", "network": containers.NETWORK}
    if isinstance(handle, wire.GuestManaged):
        return {"attachment": f"guest/{handle.id}", "network": containers.NETWORK}
    if isinstance(handle, wire.HostShared):
        return {"attachment": f"host/{handle.id}", "network": containers.NETWORK}
    return {"attachment": f"windows/{handle.container_id}", "network": containers.NETWORK}


def _scoped_resolver(_: Any, __: OperationContext) -> wire.AnyReply:
    raise OperationRefused("overlay engine error: scoped resolver is macOS-only")


def _shutdown(_: wire.Shutdown, __: OperationContext) -> wire.AnyReply:
    return wire.Ok()


OPERATIONS: Mapping[type[wire.Request], Operation] = {
    wire.SetLocalNodeId: node.set_local_node_id,
    wire.SetLocalWgPubkey: node.set_local_wg_pubkey,
    wire.SetupGlobalOverlay: node.setup_global_overlay,
    wire.TeardownGlobalOverlay: node.teardown_global_overlay,
    wire.SetupServiceOverlay: services.setup_service_overlay,
    wire.TeardownServiceOverlay: services.teardown_service_overlay,
    wire.AllocateIp: containers.allocate_ip,
    wire.ReleaseIp: containers.release_ip,
    wire.AttachContainer: _attach,
    wire.DetachContainer: _detach,
    wire.AddPeer: peers.add_peer,
    wire.RemovePeer: peers.remove_peer,
    wire.AddAllowedIp: peers.add_allowed_ip,
    wire.RemoveAllowedIp: peers.remove_allowed_ip,
    wire.MintEdgePeer: edges.mint,
    wire.RevokeEdgePeer: edges.revoke,
    wire.ListEdgePeers: edges.listed,
    wire.RegisterDns: peers.register_dns,
    wire.UnregisterDns: peers.unregister_dns,
    wire.WriteScopedResolver: _scoped_resolver,
    wire.RemoveScopedResolver: _scoped_resolver,
    wire.PruneOrphanBridges: services.prune_orphan_bridges,
    wire.StatusRequest: node.status,
    wire.NatTick: peers.nat_tick,
    wire.NatStatusRequest: peers.nat_status,
    wire.Shutdown: _shutdown,
}

QUICK = (
    wire.StatusRequest,
    wire.NatStatusRequest,
    wire.ListEdgePeers,
    wire.RegisterDns,
    wire.UnregisterDns,
    wire.Shutdown,
)
"""Operations that wait only for the store: they have threads of their own, so that they do not queue behind
attaches."""


def carry_out(request: wire.AnyRequest, context: OperationContext) -> wire.AnyReply:
    """Carry out one request and return the reply. Never raises."""
    try:
        return OPERATIONS[type(request)](request, context)
    except CniError as error:
        return _err(_message(error))
    except OSError as error:
        return _err(f"{ENGINE}{error}")
    except Exception as error:
        log.exception("unexpected error in the operation %s", type(request).__name__)
        return _err(f"internal error: {type(error).__name__}: {error}")


def _message(error: CniError) -> str:
    """The error's message and details. If the message must equal ZLayer's text, the details go to the log instead."""
    if error.details and error.msg.startswith(TO_THE_LETTER):
        log.info("%s (%s)", error.msg, error.details)
        return error.msg
    return f"{error.msg}: {error.details}" if error.details else error.msg


def _err(message: str) -> wire.Err:
    return wire.Err(message.encode("utf-8", "replace").decode())


def sweep(context: OperationContext) -> None:
    """The periodic work, also done at start: expire edge peers, restore the addresses of host processes."""
    edges.sweep(context)
    guests.restore(context)


def tear_down(context: OperationContext) -> None:
    """Remove guests, host processes and edge peers, when the whole node is torn down."""
    guests.detach_all(context)
    edges.revoke_all(context)
