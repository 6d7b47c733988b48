"""MTUs of links that are there already: a bridge's, and both ends of a container's veth."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from cni.host import links
from cni.host import netlink as nl
from cni.host.netns import NetnsId, entered, identify, open_path

MOST_LINKS = 1024  # links read in a container's namespace: the container makes as many as it likes
VM_LINKS = frozenset({"tun", "macvtap"})  # behind these is a virtual machine, which hears of no change


class ContainerNetns:
    """A container's namespace, entered by its path for its end of a veth; use it as a context."""

    def __init__(self, path: str, netns: NetnsId) -> None:
        """Raises OSError: the path is gone, or cannot be entered, or is another namespace by now (EINVAL)."""
        fd = open_path(path)
        try:
            if identify(fd) != netns:
                raise OSError(errno.EINVAL, f"{path} is another namespace")
            with entered(fd):
                self._socket = nl.Netlink()
        finally:
            os.close(fd)

    def __enter__(self) -> ContainerNetns:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def end_of(self, host: links.Link) -> links.Link | None:
        """The other end of `host`, whatever it is called by now; None where it is not here."""
        found = links.find_link(self._socket, index=host.peer) if host.peer else None
        return found if found is not None and found.kind == "veth" and found.peer == host.index else None

    def holds_a_machine(self) -> bool:
        """Whether packets of a virtual machine come and go here, or may: of so many links that not all are read."""
        return links.has_kind(self._socket, VM_LINKS, MOST_LINKS) is not False

    def set_mtu(self, index: int, mtu: int) -> None:
        """As the function."""
        links.set_mtu(self._socket, index, mtu)


def resize_port(
    socket: nl.Netlink, host: links.Link, sandbox: tuple[str, NetnsId], known: Collection[int], mtu: int
) -> bool:
    """Both ends of a veth carry `mtu` bytes, if the container's has one of the sizes `known`, or this one, and no
    virtual machine behind it; False if it was left alone: somebody else chose its size, or moved it elsewhere.

    What receives is never the smaller one: a veth drops what is too large for it and tells nobody. Idempotent. Raises
    OSError where the namespace cannot be entered.
    """
    with ContainerNetns(*sandbox) as inside:
        end = inside.end_of(host)
        if end is None or end.mtu not in {*known, mtu} or inside.holds_a_machine():
            return False
        if host.mtu < mtu:
            links.set_mtu(socket, host.index, mtu)
        if end.mtu != mtu:
            inside.set_mtu(end.index, mtu)
        if host.mtu > mtu:
            links.set_mtu(socket, host.index, mtu)
    return True
