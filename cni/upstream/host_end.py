"""The host's end of an attachment's veth: it is told by name and index, for the name is only a PID's."""

from __future__ import annotations

from pathlib import Path

from cni.host import links, netns_holder
from cni.host.netlink import Netlink
from cni.upstream.records import Record


def is_there(record: Record) -> bool:
    """Whether the attachment's own host end is there, so that its container can still use its address."""
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
    return link is not None and link.index == record.host_index


def is_anothers(record: Record) -> bool:
    """Whether there is a link of its name that is not the attachment's: its PID was given to another process."""
    if netns_holder.is_alive(record.holder) or is_free(record.pid):
        return False
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
    return link is not None and link.index != record.host_index


def remove(record: Record) -> None:
    """No host end of this attachment afterwards; another's of that name stays. Raises NetlinkError."""
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
        if link is None:
            return
        # An attach that did not come to its end never learned the index.
        unknown = not record.host_index and (netns_holder.is_alive(record.holder) or is_free(record.pid))
        if link.index == record.host_index or unknown:
            links.remove_link(socket, index=link.index)


def is_free(pid: int) -> bool:
    """Whether no process has that number."""
    return not Path(f"/proc/{pid}").exists()
