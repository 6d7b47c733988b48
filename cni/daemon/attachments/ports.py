"""The ports of attachments in the kernel: the host end of each veth, known by its owner, with the fence's elements."""

from __future__ import annotations

import errno
import ipaddress
import logging

from cni import attach_rules, naming
from cni.daemon.attachments.ownership import is_port_of
from cni.daemon.attachments.request import AttachRequest
from cni.daemon.fence.members import FenceMembers
from cni.daemon.model import macs
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.state.state import State, name_taken
from cni.errors import InterfaceExists
from cni.host import links
from cni.host.kernel import Kernel
from cni.host.netns import NetnsId

log = logging.getLogger(__name__)


class Ports:
    """Creates and removes ports. The caller holds the attachment's lock."""

    def __init__(self, state: State, kernel: Kernel, fence: FenceMembers) -> None:
        self._state, self._kernel, self._fence = state, kernel, fence

    def create(self, port: links.Port, request: AttachRequest) -> links.PortEnds:
        """Create the veth.

        An existing link of the port's name is removed if it is a leftover of the same attachment. Raises
        InterfaceExists if that link is another attachment's, or if the container has an interface of that name.
        """
        try:
            return self._kernel.create_port(port, request.netns_fd)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        link = self._kernel.find(port.name)
        if link is None:
            raise _name_in_use(request)
        if not is_port_of(link, request.key, port.mac):
            raise name_taken(port.name, link.alias.removeprefix(naming.OWNER) or f"a {link.kind or 'plain'} link")
        self._kernel.remove_link(port.name)
        try:
            return self._kernel.create_port(port, request.netns_fd)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise _name_in_use(request) from error
            raise

    def remove(self, attachment: Attachment) -> None:
        """Remove the link first and its fence elements afterwards: the fence is in force while the port exists."""
        link = self._kernel.find(attachment.host_veth)
        anothers = link is not None and not is_port_of(link, attachment.key, attachment.host_mac)
        if anothers or not self._kernel.remove_link(attachment.host_veth):
            self._remove_renamed(attachment)
        self._fence.remove_port(attachment)
        if attachment.sourced:
            self._forget_sources(attachment)
        bridge = self._kernel.index_of(attachment.bridge)
        if bridge:
            for assigned in attachment.addresses:
                self._kernel.forget_neighbour(bridge, assigned.ip)
        self._kernel.forget_flows([assigned.ip for assigned in attachment.addresses])

    def _forget_sources(self, attachment: Attachment) -> None:
        """Remove the rules for the attachment's addresses in the container. Rules that stay lead to an empty table."""
        addresses = [ipaddress.ip_address(ip) for ip in attachment.ips]
        own = [address for address in addresses if address.version in attachment.sourced]
        try:
            self._kernel.forget_sources(attachment.sandbox, NetnsId(*attachment.netns), own)
        except OSError as error:
            log.warning("the rules for %s could not be removed: %s", ", ".join(attachment.ips), error)

    def _remove_renamed(self, attachment: Attachment) -> None:
        """Remove the host end under another name: it is known by its owner mark, or by its MAC, which follows from the
        name that it had."""
        for link in self._kernel.all_links():
            if link.mac == attachment.host_mac and is_port_of(link, attachment.key, attachment.host_mac):
                self._kernel.remove_link(link.name)

    def remove_unrecorded(self, key: AttachmentKey, name: str) -> None:
        """Remove the port that `key` would have, if it is `key`'s."""
        owner = self._state.owner_of_port(name)
        if owner is None and self._port_of(key, name, macs.of_host_end(name)) is not None:
            self._kernel.remove_link(name)

    def exists(self, attachment: Attachment) -> bool:
        """Whether the attachment's host end exists under its name."""
        return self._port_of(attachment.key, attachment.host_veth, attachment.host_mac) is not None

    def _port_of(self, key: AttachmentKey, name: str, host_mac: str) -> links.Link | None:
        """The link of that name if it is the host end of the attachment `key`."""
        link = self._kernel.find(name)
        return link if link is not None and is_port_of(link, key, host_mac) else None


def _name_in_use(request: AttachRequest) -> InterfaceExists:
    return attach_rules.name_in_use(request.ifname, request.sandbox)
