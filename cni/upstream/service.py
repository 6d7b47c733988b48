"""The `Overlay` of `cni/verbs.py` in front of ZLayer's overlayd: the verbs run in the plugin's process."""

from __future__ import annotations

import logging
from pathlib import Path

from cni.defaults import POLICIES
from cni.errors import (
    AddressUnavailable,
    AttachFailed,
    CheckFailed,
    CniError,
    FenceFailed,
    InvalidConfig,
    InvalidNetns,
    NotAvailable,
    PoolExhausted,
    UnsupportedField,
)
from cni.host import addressing, links, netns, netns_holder, ports
from cni.host.netlink import Netlink
from cni.isolation import ISOLATED
from cni.netconf.environment import Call
from cni.netconf.intent import Intent
from cni.netconf.policy import ClusterWords
from cni.netconf.types import DNS, Result
from cni.overlay.client import Deadline
from cni.overlay.errors import Refused
from cni.upstream import host_end, policies
from cni.upstream.attach import Attacher, Wanted
from cni.upstream.check import Facts, faults, sought
from cni.upstream.daemon import Daemon
from cni.upstream.detach import Remover
from cni.upstream.records import Record, Records
from cni.verbs import AttachCall, Attached, Target

log = logging.getLogger(__name__)

SAYING = 0.2  # seconds of a STATUS reserved for the error that the daemon does not answer
UNFENCED = "ZLayer's overlayd does not keep isolation networks apart once its global overlay is up"
INSTEAD = "leave the network out, or let this node's containers be attached by zlayer-cni's own daemon"


class ForeignOverlay:
    """One overlayd that has only ZLayer's protocol, for one call."""

    def __init__(self, socket: str, run_dir: str, seconds: float, policies_dir: str = POLICIES) -> None:
        """`socket`: the daemon's socket; `run_dir`: the directory of the records; `seconds`: the time for the call;
        `policies_dir`: the directory of network policies."""
        self._policies = policies_dir
        self._deadline = Deadline(seconds)
        self._records = Records(run_dir)
        self._daemon = Daemon(socket, self._deadline)
        self._remover = Remover(self._daemon, self._records, self._deadline)

    def attach(self, asked: AttachCall, wish: Intent, target: Target) -> Attached:
        """ADD. Raises FenceFailed, UnsupportedField, AddressUnavailable, and what `Attacher.attach` raises."""
        request = Wanted(asked, wish, target, netns.identify_sandbox(target.fd, target.path))
        self._refuse(request)
        self._remover.send_owed()
        try:
            record = Attacher(self._daemon, self._records, self._remover, self._deadline).attach(request)
        except Refused as refusal:
            raise refused(self._daemon.socket, wish.service, refusal) from refusal
        return Attached(
            bridge=record.bridge,
            bridge_mac=record.bridge_mac,
            host_veth=record.host_veth,
            host_mac=record.host_mac,
            mac=record.mac,
            mtu=record.mtu,
            addresses=record.addresses,
            routes=record.routes,
            dns=DNS(),
        )

    def _refuse(self, request: Wanted) -> None:
        """Refuse requests that ZLayer's daemon cannot fulfil, before any change."""
        wish, target = request.wish, request.target
        if request.identity in target.forbidden:
            raise InvalidNetns(
                f"CNI_NETNS: {target.path} is the host's own network namespace", "a container needs one of its own"
            )
        if wish.join_global:
            raise UnsupportedField(
                "joinGlobal: true is not possible in front of ZLayer's overlayd",
                "its second leg takes the slice's addresses for neighbours, and reaches none of them",
            )
        if wish.addresses:
            asked = ", ".join(address.address for address in wish.addresses)
            raise AddressUnavailable(f"the address {asked} was asked for, but ZLayer's overlayd chooses by itself")
        if wish.mac and self._daemon.is_ours():
            raise UnsupportedField(
                f"the MAC {wish.mac} was asked for, but by this way zlayer-cni's own daemon does not hear of it",
                "it lets nothing leave a port under another MAC: leave overlayd.socket out of the configuration",
            )
        if wish.opens:
            raise InvalidConfig(
                "isolation: ZLayer's overlayd has no such lists", "leave it out, or let our own daemon serve the node"
            )
        if (wish.isolation_network is None and not Path(self._policies).is_dir()) or self._daemon.is_ours():
            return
        policies.refuse(self._policies, request)
        if wish.isolation_network is not None:
            raise FenceFailed(
                f"isolation network {wish.isolation_network!r}: {UNFENCED}, so the container is not attached", INSTEAD
            )

    def cluster_words(self, call: Call, has_annotations: bool) -> ClusterWords:
        """ZLayer's daemon knows no cluster of Kubernetes."""
        return ClusterWords()

    def detach(self, network: str, container: str, ifname: str) -> None:
        """DEL: succeeds also if there is no attachment, or if the daemon does not answer. Raises TryAgainLater only if
        another call for the same attachment does not end."""
        self._remover.detach((network, container, ifname))

    def check(self, call: Call, network: str, previous: Result, target: Target) -> None:
        """CHECK: reads only. Raises CheckFailed with all differences."""
        record = self._records.load((network, call.container_id, call.ifname))
        if record is None:
            raise CheckFailed(f"container {call.container_id} has no {call.ifname} on network {network}")
        differences = faults(record, previous, target.path, look(record, target, sought(record, previous, target.path)))
        if differences:
            raise CheckFailed(f"{call.ifname} of {call.container_id}: {differences[0]}", "; ".join(differences[1:]))

    def collect(self, network: str, valid: set[tuple[str, str]] | None) -> list[str]:
        """GC: removes the attachments that are dead and not listed, and sends owed detaches; returns notes.

        As with our own daemon, a living attachment that is not listed is kept: it may belong to another runtime.
        """
        notes = []
        for record in self._records.every() if valid is not None else ():
            if record.network != network or (record.container, record.ifname) in (valid or ()):
                continue
            name = f"{record.ifname} of {record.container}"
            if record.state == "live" and host_end.is_there(record):
                notes.append(f"GC: {name} is not listed but alive, kept")
                continue
            self._remover.detach(record.key)
            notes.append(f"GC: {name} released {', '.join(record.ips) or 'what it had'}")
        self._remover.send_owed()
        return notes

    def ready(self, service: str, mode: str) -> list[str]:
        """STATUS: raises NotAvailable (50) if an ADD would fail now. ZLayer's daemon reports nothing else."""
        try:
            ours = self._daemon.is_ours(SAYING)
        except CniError as error:
            raise NotAvailable(error.msg, error.details) from error
        if mode == ISOLATED and not ours:
            raise NotAvailable(f"mode: {ISOLATED}: {UNFENCED}, so no container is attached", INSTEAD)
        return []


def refused(socket: str, service: str, refusal: Refused) -> CniError:
    """The error for the daemon's refusal: PoolExhausted (104) for a full service, else AttachFailed (100)."""
    reason = refusal.message.removeprefix("overlay engine error: ")
    if "exhausted" in reason:  # contract 6.4
        return PoolExhausted(f"no IP addresses available for service {service}", reason)
    return AttachFailed(f"the overlay daemon at {socket} does not attach it: {reason}")


def look(record: Record, target: Target, sought: ports.Sought) -> Facts:
    """Read the kernel's state of the attachment."""
    seen = netns.identify_sandbox(target.fd, target.path)
    with Netlink() as socket:
        host = links.find_link(socket, record.host_veth)
        bridge = links.find_link(socket, index=host.master) if host is not None and host.master else None
        addresses = addressing.list_addresses(socket, bridge.index) if bridge is not None else []
    return Facts(
        netns=(seen.dev, seen.ino),
        holder_alive=netns_holder.is_alive(record.holder),
        host=host,
        bridge=bridge,
        gateways=frozenset(str(address.ip) for _, address in addresses),
        inside=ports.inspect(target.fd, record.ifname, sought) if seen == record.netns else ports.ContainerView(None),
    )
