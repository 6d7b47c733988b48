"""Containers by PID, and bare leases (contract 6.7 to 6.9).

A process is known by its PID and start time: the same one attached again gets the same answer, another one that got
the PID later is another container, and the first one's port and address are taken back before it is attached.
"""

from __future__ import annotations

import ipaddress
import os

import msgspec

from cni import naming
from cni.daemon.attachments.attach import AttachRequest
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.operations.context import OperationContext, OperationRefused
from cni.errors import CniError, InterfaceExists
from cni.host import process
from cni.host.netns import NetnsId
from cni.overlay import wire

NETWORK = "@overlayd"
"""The network under which the records have what came through this door. No CNI network can be called so."""
IFNAME = "eth0"
FILE_EXISTS = "File exists (os error 17)"


def allocate_ip(ask: wire.AllocateIp, context: OperationContext) -> wire.IpReply:
    """An address of the service, else of the node's slice; only release_ip returns it. Raises CniError."""
    return wire.IpReply(context.lease(ask.service).ip)


def release_ip(ask: wire.ReleaseIp, context: OperationContext) -> wire.Ok:
    """Give back what allocate_ip gave; any other address is nobody's to give back here, and nothing happens."""
    context.release(ask.ip)
    return wire.Ok()


def attach(handle: wire.LinuxPid, ask: wire.AttachContainer, context: OperationContext) -> wire.Attached:
    """Connect the namespace that the process is in. Raises CniError.

    `dns_server` and `dns_domain` concern this container alone, never the daemon, and it has its own resolv.conf;
    join_global asks for nothing more, since a container's one interface reaches the whole overlay (contract 5.3/6).
    """
    with context.locks.holding(("pid", handle.pid)):
        _mode(ask.service, context)  # what is wrong with the service is said before what is wrong with the process
        fd, started = _open(handle.pid)
        try:
            request = _request(handle.pid, started, fd, ask, context)
            _make_way(request, context)
            _refuse_two_ways_out(request, context)
            done = _last_word(context.service.attacher.attach(request), ask, context)
        except InterfaceExists as error:
            raise OperationRefused(f"overlay engine error: container netns ops: {IFNAME}: {FILE_EXISTS}") from error
        finally:
            os.close(fd)
    return wire.Attached(done.addresses[0].ip)


def _last_word(done: Attachment, ask: wire.AttachContainer, context: OperationContext) -> Attachment:
    """Whether a container that is attached already takes its service along when it leaves: as it was said last."""
    if done.ephemeral == ask.ephemeral:
        return done
    changed = msgspec.structs.replace(done, ephemeral=ask.ephemeral)
    context.state.save(changed)
    return changed


def _request(pid: int, started: int, fd: int, ask: wire.AttachContainer, context: OperationContext) -> AttachRequest:
    return AttachRequest(
        network=NETWORK,
        container=str(pid),
        ifname=IFNAME,
        netns_fd=fd,
        netns=_identify(fd, pid, context),
        sandbox=f"/proc/{pid}/ns/net",
        service=ask.service,
        mode=_mode(ask.service, context),
        host_veth=naming.pid_host_veth(pid),
        isolation=ask.isolation_network,
        ephemeral=ask.ephemeral,
        attempt=f"{pid}@{started}",
        pid=pid,
        start_time=started,
    )


def _open(pid: int) -> tuple[int, int]:
    try:
        return process.open_netns(pid)
    except OSError as error:
        path = f"/proc/{pid}/ns/net"
        why = f"{os.strerror(error.errno or 0)} (os error {error.errno})"
        raise OperationRefused(f"overlay engine error: Failed to open {path}: {why}") from error


def _identify(fd: int, pid: int, context: OperationContext) -> NetnsId:
    """The namespace, unless it is the node's: that must never get an eth0 and a default route of ours."""
    status = os.fstat(fd)
    found = NetnsId(status.st_dev, status.st_ino)
    if found == context.service.kernel.own or process.is_hosts(found):
        raise OperationRefused(f"overlay engine error: process {pid} is in the host's own network namespace")
    return found


def _mode(service: str, context: OperationContext) -> str:
    known = context.state.services.get(service)
    if known is None or service == naming.SHARED_BRIDGE_KEY:
        raise OperationRefused(f"no service bridge for service {service}; call setup_service_overlay() first")
    return known.mode


def _key(pid: int) -> AttachmentKey:
    return (NETWORK, str(pid), IFNAME)


def _make_way(request: AttachRequest, context: OperationContext) -> None:
    """End an attachment of that PID that is another process's, or goes elsewhere: one PID has one at a time."""
    before = context.state.attachments.get(request.key)
    if before is not None and _what(before) != _what(request):
        context.service.attacher.detach(before.key)


def _refuse_two_ways_out(request: AttachRequest, context: OperationContext) -> None:
    """Raise Refusal for a container that is new here and has a default route already (contract 6.8): beside it ours
    would not be put in, and the overlay beyond the bridge not be reached. CNI's containers may have several networks.
    """
    if request.key in context.state.attachments:
        return
    versions = {ipaddress.ip_network(cidr).version for cidr in context.state.cidrs}
    for version in sorted(versions):
        try:
            found = context.service.kernel.has_default_route(request.netns_fd, version)
        except OSError as error:
            raise OperationRefused(
                f"overlay engine error: container netns ops: default route: {error.strerror}"
            ) from error
        if found:
            raise OperationRefused(f"overlay engine error: container netns ops: default route: {FILE_EXISTS}")


def _what(of: AttachRequest | Attachment) -> tuple[object, ...]:
    return (of.start_time, of.service, of.mode == "shared", of.isolation)


def detach(handle: wire.LinuxPid, context: OperationContext) -> wire.Ok:
    """Nothing is left of the attachment; an unknown PID is fine. Raises CleanupFailed."""
    with context.locks.holding(("pid", handle.pid)):
        veth = naming.pid_host_veth(handle.pid)
        # No process has a PID that makes a longer name than a link can have.
        context.service.attacher.detach(_key(handle.pid), veth if len(veth) <= naming.NAME_LIMIT else "")
    return wire.Ok()


def _own(context: OperationContext) -> list[Attachment]:
    return [each for each in context.state.snapshot() if each.network == NETWORK]


def detach_all(context: OperationContext) -> None:
    """Every container that came through this door. Goes on past a failure; raises the last one."""
    failure: CniError | None = None
    for attachment in _own(context):
        try:
            detach(wire.LinuxPid(attachment.pid), context)
        except CniError as error:
            failure = error
    if failure is not None:
        raise failure
