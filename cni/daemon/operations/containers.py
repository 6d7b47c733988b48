"""Containers by PID, and leases without a container (contract 6.7 to 6.9).

PID and start time identify a process. A repeated attach of the same process gets the same answer. A later process with
the same PID is another container: the first one's port and address are released before it is attached.
"""

from __future__ import annotations

import ipaddress
import os

from cni import naming
from cni.daemon.attachments.request import AttachRequest
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.operations.context import OperationContext, OperationRefused
from cni.errors import CniError, InterfaceExists
from cni.host import process
from cni.host.netns import NetnsId
from cni.overlay import wire

NETWORK = "@overlayd"
"""The network name in the records of attachments from the overlay socket. It is no valid name of a CNI network."""
IFNAME = "eth0"
FILE_EXISTS = "File exists (os error 17)"


def allocate_ip(ask: wire.AllocateIp, context: OperationContext) -> wire.IpReply:
    """Lease an address of the service, or of the node's slice if the service is unknown. Only release_ip returns it.
    Raises CniError."""
    return wire.IpReply(context.lease(ask.service).ip)


def release_ip(ask: wire.ReleaseIp, context: OperationContext) -> wire.Ok:
    """Return an address that allocate_ip leased; for any other address nothing happens."""
    context.release(ask.ip)
    return wire.Ok()


def attach(handle: wire.LinuxPid, ask: wire.AttachContainer, context: OperationContext) -> wire.Attached:
    """Attach the network namespace of the process. Raises CniError.

    `dns_server` and `dns_domain` are ignored: they concern this container alone, never the daemon, and the container
    has its own resolv.conf. `join_global` needs no work: a container's one interface reaches the whole overlay
    (contract 5.3/6).
    """
    with context.locks.holding(("pid", handle.pid)):
        _mode(ask.service, context)  # an error about the service comes before one about the process
        fd, started = _open(handle.pid)
        try:
            request = _request(handle.pid, started, fd, ask, context)
            _detach_previous(request, context)
            _refuse_second_default_route(request, context)
            done = context.admission.attach(request)
        except InterfaceExists as error:
            raise OperationRefused(f"overlay engine error: container netns ops: {IFNAME}: {FILE_EXISTS}") from error
        finally:
            os.close(fd)
    return wire.Attached(done.addresses[0].ip)


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
    """The id of the namespace. Raises OperationRefused for the node's own: it must never get an eth0 and a default
    route of the overlay."""
    status = os.fstat(fd)
    netns = NetnsId(status.st_dev, status.st_ino)
    if netns == context.kernel.own or process.is_hosts(netns):
        raise OperationRefused(f"overlay engine error: process {pid} is in the host's own network namespace")
    return netns


def _mode(service: str, context: OperationContext) -> str:
    record = context.state.service(service)
    if record is None or service == naming.SHARED_BRIDGE_KEY:
        raise OperationRefused(f"no service bridge for service {service}; call setup_service_overlay() first")
    return record.mode


def _key(pid: int) -> AttachmentKey:
    return (NETWORK, str(pid), IFNAME)


def _detach_previous(request: AttachRequest, context: OperationContext) -> None:
    """Detach an attachment of that PID that belongs to another process, or has another service, mode or isolation
    network: a PID has one attachment at a time."""
    before = context.state.attachment(request.key)
    if before is not None and _identity(before) != _identity(request):
        context.attacher.detach(before.key)


def _refuse_second_default_route(request: AttachRequest, context: OperationContext) -> None:
    """Raises OperationRefused for a new container that has a default route already (contract 6.8): the overlay's
    default route could not be added, and the container would not reach the overlay beyond its bridge. CNI containers
    may have several networks.
    """
    if context.state.attachment(request.key) is not None:
        return
    versions = {ipaddress.ip_network(cidr).version for cidr in context.state.cidrs}
    for version in sorted(versions):
        try:
            has_route = context.kernel.has_default_route(request.netns_fd, version)
        except OSError as error:
            raise OperationRefused(
                f"overlay engine error: container netns ops: default route: {error.strerror}"
            ) from error
        if has_route:
            raise OperationRefused(f"overlay engine error: container netns ops: default route: {FILE_EXISTS}")


def _identity(of: AttachRequest | Attachment) -> tuple[object, ...]:
    return (of.start_time, of.service, of.mode == "shared", of.isolation)


def detach(handle: wire.LinuxPid, context: OperationContext) -> Attachment | None:
    """Detach the process's container, and return its record; an unknown PID is no error. Raises CleanupFailed."""
    with context.locks.holding(("pid", handle.pid)):
        veth = naming.pid_host_veth(handle.pid)
        # A PID whose name is longer than a link's name can be is no process's.
        return context.attacher.detach(_key(handle.pid), veth if len(veth) <= naming.NAME_LIMIT else "")


def _own(context: OperationContext) -> list[Attachment]:
    return [attachment for attachment in context.state.snapshot() if attachment.network == NETWORK]


def detach_all(context: OperationContext) -> None:
    """Detach every container that was attached over the overlay socket. Continues after a failure, and raises the last
    one at the end."""
    failure: CniError | None = None
    for attachment in _own(context):
        try:
            detach(wire.LinuxPid(attachment.pid), context)
        except CniError as error:
            failure = error
    if failure is not None:
        raise failure
