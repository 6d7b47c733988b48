"""Changes the MTU of existing links: both ends of a container's veth."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from cni.host import links
from cni.host import netlink as nl
from cni.host.netns import NetnsId, entered, identify, open_path

MOST_LINKS = 1024  # links read in a container's namespace: the container may create any number
VM_LINKS = frozenset({"tun", "macvtap"})  # a virtual machine is connected by these, and is not told of a change


class ContainerNetns:
    """A container's namespace, opened by its path, for changes of the container's end of a veth; a context manager."""

    def __init__(self, path: str, netns: NetnsId) -> None:
        """Raises OSError: the path is gone, the namespace cannot be entered, or the path now names another namespace
        (EINVAL)."""
        self.fd = open_path(path)
        try:
            if identify(self.fd) != netns:
                raise OSError(errno.EINVAL, f"{path} is another namespace")
            with entered(self.fd):
                self._socket = nl.Netlink()
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> ContainerNetns:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.close(self.fd)

    def end_of(self, host: links.Link) -> links.Link | None:
        """The other end of the veth `host`, whatever its name; None if it is not in this namespace."""
        link = links.find_link(self._socket, index=host.peer) if host.peer else None
        return link if link is not None and link.kind == "veth" and link.peer == host.index else None

    def holds_a_machine(self) -> bool:
        """Whether a virtual machine may be connected here; True if there are more links than MOST_LINKS."""
        return links.has_kind(self._socket, VM_LINKS, MOST_LINKS) is not False

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set the MTU of a link of the container, in bytes. Raises NetlinkError."""
        links.set_mtu(self._socket, index, mtu)


def resize_port(
    socket: nl.Netlink, host: links.Link, sandbox: tuple[str, NetnsId], replaceable: Collection[int], mtu: int
) -> bool:
    """Set the MTU of both ends of a veth, in bytes. False, and no change, if the container's end has an MTU that is
    neither in `replaceable` nor `mtu` (another program set it), if a virtual machine is behind it, or if it is no
    longer in the namespace.

    The receiving end never has the smaller MTU: a veth drops larger packets without an error. Idempotent. Raises
    OSError if the namespace cannot be entered.
    """
    with ContainerNetns(*sandbox) as inside:
        end = inside.end_of(host)
        if end is None or end.mtu not in {*replaceable, mtu} or inside.holds_a_machine():
            return False
        if host.mtu < mtu:
            links.set_mtu(socket, host.index, mtu)
        if end.mtu != mtu:
            inside.set_mtu(end.index, mtu)
        if host.mtu > mtu:
            links.set_mtu(socket, host.index, mtu)
    return True
