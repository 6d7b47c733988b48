"""Bridges and running containers follow the underlay's MTU.

A container that was attached when the underlay was wider would send what no longer fits, and be told so packet by
packet; one attached when it was narrower would never use what it could. So its interface, the host's end and the bridge
are given the size that a new container gets. What somebody else has chosen stays as it is: an `mtu` in the
configuration, or one that a later plugin of the chain has set.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

import msgspec

from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.host import links
from cni.host import mtu as sizes
from cni.host.links import Link
from cni.host.netlink import Netlink
from cni.host.netns import NetnsId

log = logging.getLogger(__name__)

LEAST6 = 1280  # bytes: below it an interface loses IPv6 altogether (RFC 8200, section 5)


def size_for(attachment: Attachment, mtu: int) -> int:
    """The MTU of a running attachment where a new one gets `mtu`. Bytes."""
    if attachment.mtu_chosen:
        return attachment.mtu
    six = any(ipaddress.ip_address(ip).version == 6 for ip in attachment.ips)
    return max(mtu, LEAST6) if six else mtu


def bridge_sizes(attachments: Iterable[Attachment], mtu: int) -> dict[str, int]:
    """The MTU of each bridge that cannot have `mtu`: no more than a port that could not follow has, for what is too
    large for a port is dropped without a word. Bytes."""
    found: dict[str, int] = {}
    for each in attachments:
        if each.state == "live" and not each.mtu_chosen and each.mtu < mtu:
            found[each.bridge] = min(each.mtu, found.get(each.bridge, mtu))
    return found


class MtuFollower:
    """Makes it so, for one node. Used by one thread."""

    def __init__(self, service: OverlayService) -> None:
        self._service = service
        self._tried: dict[AttachmentKey, int] = {}  # who could not follow, and to which size

    def follow(self, mtu: int) -> None:
        """Everything has the size that a new container gets, as far as it can. Idempotent; never raises OSError."""
        state, kernel = self._service.state, self._service.kernel
        with Netlink() as socket:
            for attachment in state.snapshot():
                if self._is_late(attachment, mtu):
                    self._resize(socket, attachment, size_for(attachment, mtu))
            narrow = bridge_sizes(state.snapshot(), mtu)
            for service in list(state.services.values()):
                link = kernel.find(service.bridge) if service.subnets else None
                if link is not None and link.kind == "bridge":
                    self._set(socket, link, narrow.get(service.bridge, mtu))
        self._tried = {key: size for key, size in self._tried.items() if key in state.attachments}

    def _is_late(self, attachment: Attachment, mtu: int) -> bool:
        wanted = size_for(attachment, mtu)
        return attachment.state == "live" and wanted not in (attachment.mtu, self._tried.get(attachment.key))

    def _resize(self, socket: Netlink, attachment: Attachment, mtu: int) -> None:
        host = self._service.kernel.find(attachment.host_veth)
        if host is None:
            return  # the keeper's business
        who = f"{attachment.ifname} of {attachment.container}"
        self._tried[attachment.key] = mtu

        def work() -> Attachment:
            known = (attachment.mtu, mtu)
            where = (attachment.sandbox, NetnsId(*attachment.netns))
            if not sizes.resize_port(socket, host, where, known, mtu):
                log.info("%s keeps its MTU: it is somebody else's to choose", who)
                return attachment
            del self._tried[attachment.key]
            return msgspec.structs.replace(attachment, mtu=mtu)

        try:
            self._service.attacher.revise(attachment, work)
        except OSError as error:
            log.warning("%s keeps the MTU %d in place of %d: %s", who, attachment.mtu, mtu, error)

    def _set(self, socket: Netlink, link: Link, mtu: int) -> None:
        if link.mtu == mtu:
            return
        try:
            links.set_mtu(socket, link.index, mtu)
        except OSError as error:
            log.warning("%s keeps the MTU %d in place of %d: %s", link.name, link.mtu, mtu, error)
