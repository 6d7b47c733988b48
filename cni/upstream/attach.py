"""Attach through ZLayer's daemon, which attaches a PID: into a temporary namespace, then into the container's.

ZLayer's daemon always creates `eth0`, fails if there is an `eth0` or a default route, and needs a process that lives as
long as the attachment (contract 7.2, 7.4), but a runtime creates the namespace before any process. So every attachment
has a holder process in a namespace of its own, which the daemon attaches. The plugin reads the interface, moves it into
the container under its final name, and sets its addresses and routes again, because a move drops them.

The order is: decide, save the record, change the kernel, answer. The holder is recorded before the daemon is asked, and
one removal undoes a partial attach, however many steps were done.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec

from cni import attach_rules, naming
from cni.defaults import ROUTED
from cni.errors import AttachFailed, InvalidConfig, TryAgainLater
from cni.host import announce, links, netns, netns_holder, ports, relocate
from cni.host.netlink import Netlink
from cni.netconf.intent import Intent
from cni.netconf.types import Route
from cni.overlay.client import Deadline
from cni.upstream import host_end
from cni.upstream.daemon import Daemon
from cni.upstream.detach import Remover
from cni.upstream.leases import Leases
from cni.upstream.records import Record, Records
from cni.verbs import AttachCall, Target

log = logging.getLogger(__name__)

MTU = 1420
"""The default MTU of an interface in bytes: that of the daemon's device. The daemon itself leaves bridges and veths at
1500, and large packets are lost (contract 6.5 and 9)."""

KEPT = 8.0  # seconds of an ADD reserved for the steps after the daemon's answer, and for undoing them
SCRATCH_NAME = "eth0"  # the name that the daemon gives to every interface


@dataclass(frozen=True)
class Wanted:
    """The parameters of one attach: the request and the container's namespace."""

    asked: AttachCall
    wish: Intent
    target: Target
    identity: netns.NetnsId

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.asked.conf.name, self.asked.call.container_id, self.asked.call.ifname)


class Attacher:
    """Creates attachments on one daemon, within one deadline."""

    def __init__(self, daemon: Daemon, records: Records, remover: Remover, deadline: Deadline) -> None:
        self._daemon = daemon
        self._records = records
        self._remover = remover
        self._deadline = deadline

    def attach(self, request: Wanted) -> Record:
        """Create the attachment; returns its record, live. Raises InvalidConfig, InterfaceExists, TryAgainLater,
        AttachFailed; then
        the attachment is removed, and a detach that the daemon did not carry out is recorded as owed."""
        if request.wish.attach == ROUTED:
            raise InvalidConfig("attach: 'routed' is not to be had in front of another overlay daemon, which bridges")
        self._refuse(request)
        service, mode = request.wish.service, request.wish.mode
        bridge = self._daemon.set_up_service(service, mode, KEPT)
        # Before the attachment's lock is taken: this step takes the locks of other attachments.
        Leases(self._daemon, self._records, self._deadline).put_in_order(service, mode, bridge)
        with self._records.locked(request.key, self._deadline):
            before = self._records.load(request.key)
            if before is not None and not self._stands(before, request):
                self._remover.remove(before)
            self._refuse(request)
            try:
                return self._make(request)
            except OSError as error:
                raise attach_rules.attach_failed(request.key[2], service, error) from error

    def _refuse(self, request: Wanted) -> None:
        """Raises InterfaceExists if the container has such an interface, unless an earlier attempt created it."""
        ifname = request.key[2]
        if not ports.has_interface(request.target.fd, ifname):
            return
        before = self._records.load(request.key)
        if before is None:
            raise attach_rules.name_in_use(ifname, request.target.path)
        if self._stands(before, request):
            raise attach_rules.already_attached(request.key)

    def _stands(self, before: Record, request: Wanted) -> bool:
        """Whether the recorded attachment is complete and in this namespace: only then a second ADD is an error."""
        return attach_rules.stands(
            before.state,
            before.netns == request.identity,
            lambda: host_end.is_there(before),
            lambda: ports.has_interface(request.target.fd, before.ifname),
        )

    def _make(self, request: Wanted) -> Record:
        wish = request.wish
        with ExitStack() as undo:
            undo.callback(self._undo, request.key)
            process = netns_holder.start(
                title(request.key), lambda made: self._records.save(self._intent(request, made))
            )
            ip = self._daemon.attach(process.pid, wish, KEPT)
            intent = msgspec.structs.replace(self._intent(request, process), life=self._daemon.life())
            with opened(netns_holder.netns_path(process)) as scratch:
                record, index = read_back(intent, ports.read(scratch, SCRATCH_NAME), ip)
                self._records.save(record)
                shape = relocate.InterfaceConfig(record.ifname, record.mtu, wish.mac)
                inside = relocate.move(index, scratch, request.target.fd, shape)
            record = plugged(record, request.target.fd, inside, wish.routes)
            if not request.asked.caller_waits():
                raise TryAgainLater("the runtime gave up before the attach was done")
            self._records.save(record)
            undo.pop_all()
        return record

    def _intent(self, request: Wanted, process: netns_holder.Process) -> Record:
        network, container, ifname = request.key
        return Record(
            network=network,
            container=container,
            ifname=ifname,
            state="intent",
            boot=self._records.boot,
            socket=self._daemon.socket,
            service=request.wish.service,
            mode=request.wish.mode,
            pid=process.pid,
            start_time=process.start_time,
            host_veth=naming.pid_host_veth(process.pid),
            mtu=request.wish.mtu or MTU,
            netns=(request.identity.dev, request.identity.ino),
            sandbox=request.target.path,
            attempt=request.asked.attempt,
            ephemeral=request.wish.ephemeral,
        )

    def _undo(self, key: tuple[str, str, str]) -> None:
        record = self._records.load(key)
        if record is not None:
            self._daemon.hang_up()
            self._remover.remove(record)


def read_back(intent: Record, inside: ports.ContainerView, ip: str) -> tuple[Record, int]:
    """The record of what the daemon created, as read from the kernel (contract 7.3), and the index of the container's
    end.

    Raises AttachFailed if that differs from the daemon's answer, or is not in this network namespace.
    """
    link = inside.link
    if link is None or ip not in {str(address.ip) for address in inside.addresses}:
        raise AttachFailed(f"the overlay daemon at {intent.socket} says it attached {ip}, but it is not there")
    with Netlink() as socket:
        host = links.find_link(socket, intent.host_veth)
        if host is None or host.index != link.peer:
            raise AttachFailed(
                f"the host end {intent.host_veth} is not in this network namespace",
                f"does the daemon at {intent.socket} run in another one?",
            )
        bridge = links.find_link(socket, index=host.master) if host.master else None
        if bridge is None:
            raise AttachFailed(f"the host end {intent.host_veth} is on no bridge")
        links.set_mtu(socket, host.index, intent.mtu)
    addresses = [address for address in inside.addresses if not address.ip.is_link_local]
    record = msgspec.structs.replace(
        intent,
        host_index=host.index,
        host_mac=host.mac,
        bridge=bridge.name,
        bridge_mac=bridge.mac,
        mac=link.mac,
        addresses=tuple((str(address), gateway_of(address, inside.routes)) for address in addresses),
    )
    return record, link.index


def gateway_of(address: links.Interface, routes: tuple[links.Route, ...]) -> str:
    """The gateway of the default route of its family, else the first address of its network."""
    for route in routes:
        if route.gateway is not None and route.dst.prefixlen == 0 and route.dst.version == address.version:
            return str(route.gateway)
    return str(address.network.network_address + 1)


def plugged(record: Record, target: int, inside: links.Link, asked: tuple[Route, ...]) -> Record:
    """Bring the interface up in the container, with its addresses and routes; returns its record, live."""
    plan = attach_rules.planned_routes(record.addresses, ((route.dst, route.gw) for route in asked))
    routes = [links.Route(ipaddress.ip_network(dst), ipaddress.ip_address(via), inside.index) for dst, via in plan]
    addresses = [ipaddress.ip_interface(address) for address, _ in record.addresses]
    skipped = ports.configure(target, inside.index, record.ifname, addresses, routes)
    try:
        announce.send_now(record.host_index, target, record.ifname, inside.mac, [address.ip for address in addresses])
    except OSError as error:
        log.info("%s is not announced to its neighbours: %s", record.ifname, error)
    kept = tuple(pair for pair, route in zip(plan, routes, strict=True) if route not in skipped)
    return msgspec.structs.replace(record, state="live", mac=inside.mac, routes=kept)


def title(key: tuple[str, str, str]) -> str:
    """The command line of a holder, as shown by `ps`."""
    network, container, ifname = key
    return f"zlayer-cni: holds {ifname} of {container} on {network}"


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A context with a descriptor of the namespace at `path`. Raises OSError."""
    fd = netns.open_path(path)
    try:
        yield fd
    finally:
        os.close(fd)
