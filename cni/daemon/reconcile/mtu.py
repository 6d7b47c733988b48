"""Bridges and running containers follow the underlay's MTU.

A container that was attached when the underlay's MTU was larger would send packets that no longer fit, and get an ICMP
error for each; one attached when it was smaller would never use the larger MTU. So the container's interface, the host
end and the bridge get the MTU that a new container gets. An MTU of another origin stays: an `mtu` in the configuration,
or one that a later plugin of the chain has set.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

import msgspec

from cni.daemon.attachments.attach import Attacher
from cni.daemon.model import sizes
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.state.state import State
from cni.host import links
from cni.host import mtu as mtu_changes
from cni.host.kernel import Kernel
from cni.host.links import Link
from cni.host.netlink import Netlink
from cni.host.netns import NetnsId

log = logging.getLogger(__name__)


def size_for(attachment: Attachment, mtu: int) -> int:
    """The MTU, in bytes, that a running attachment gets when a new one gets `mtu`."""
    if attachment.mtu_chosen:
        return attachment.mtu
    six = any(ipaddress.ip_address(ip).version == 6 for ip in attachment.ips)
    return max(mtu, sizes.least(six))


def bridge_sizes(attachments: Iterable[Attachment], mtu: int) -> dict[str, int]:
    """The MTU, in bytes, of each bridge that cannot have `mtu`: the smallest MTU of its ports that could not follow,
    because the bridge silently drops a packet that is too large for a port."""
    sizes: dict[str, int] = {}
    for attachment in attachments:
        if attachment.state == "live" and not attachment.mtu_chosen and attachment.mtu < mtu:
            sizes[attachment.bridge] = min(attachment.mtu, sizes.get(attachment.bridge, mtu))
    return sizes


class MtuFollower:
    """Resizes the bridges and attachments of one node. Used by one thread."""

    def __init__(self, state: State, kernel: Kernel, attacher: Attacher) -> None:
        self._state, self._kernel, self._attacher = state, kernel, attacher
        self._tried: dict[AttachmentKey, int] = {}  # MTU that an attachment could not get, so it is tried once

    def follow(self, mtu: int) -> None:
        """Give bridges and live attachments the MTU that a new container gets, where possible. `mtu`: bytes.
        Idempotent. A link that cannot be resized is logged; never raises OSError."""
        state, kernel = self._state, self._kernel
        with Netlink() as socket:
            for attachment in state.snapshot():
                if self._is_late(attachment, mtu):
                    self._resize(socket, attachment, size_for(attachment, mtu))
            narrow = bridge_sizes(state.snapshot(), mtu)
            for service in state.services.values():
                link = kernel.find(service.bridge) if service.subnets else None
                if link is not None and link.kind == "bridge":
                    self._set(socket, link, narrow.get(service.bridge, mtu))
        attachments = state.attachments
        self._tried = {key: size for key, size in self._tried.items() if key in attachments}

    def _is_late(self, attachment: Attachment, mtu: int) -> bool:
        size = size_for(attachment, mtu)
        return attachment.state == "live" and size not in (attachment.mtu, self._tried.get(attachment.key))

    def _resize(self, socket: Netlink, attachment: Attachment, mtu: int) -> None:
        host = self._kernel.find(attachment.host_veth)
        if host is None:
            return  # the reconciler releases it
        name = f"{attachment.ifname} of {attachment.container}"
        self._tried[attachment.key] = mtu

        def work() -> Attachment:
            known_sizes = (attachment.mtu, mtu)
            namespace = (attachment.sandbox, NetnsId(*attachment.netns))
            if not mtu_changes.resize_port(socket, host, namespace, known_sizes, mtu):
                log.info("%s keeps its MTU: another program has set it", name)
                return attachment
            del self._tried[attachment.key]
            return msgspec.structs.replace(attachment, mtu=mtu)

        try:
            self._attacher.revise(attachment, work)
        except OSError as error:
            log.warning("%s keeps the MTU %d in place of %d: %s", name, attachment.mtu, mtu, error)

    def _set(self, socket: Netlink, link: Link, mtu: int) -> None:
        if link.mtu == mtu:
            return
        try:
            links.set_mtu(socket, link.index, mtu)
        except OSError as error:
            log.warning("%s keeps the MTU %d in place of %d: %s", link.name, link.mtu, mtu, error)
