"""The host end of an attachment's veth: identified by name and index, because the name holds only a PID."""

from __future__ import annotations

from pathlib import Path

from cni.host import links, netns_holder
from cni.host.netlink import Netlink
from cni.upstream.records import Record


def is_there(record: Record) -> bool:
    """Whether the attachment's own host end exists, so that its container can still use its address."""
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
    return link is not None and link.index == record.host_index


def is_anothers(record: Record) -> bool:
    """Whether a link of that name belongs to another attachment: the PID was reused."""
    if netns_holder.is_alive(record.holder) or is_free(record.pid):
        return False
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
    return link is not None and link.index != record.host_index


def remove(record: Record) -> None:
    """Remove the host end of this attachment; that of another attachment with the same name stays. Raises
    NetlinkError."""
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
        if link is None:
            return
        # The record of an attach that was not completed has no index.
        unknown = not record.host_index and (netns_holder.is_alive(record.holder) or is_free(record.pid))
        if link.index == record.host_index or unknown:
            links.remove_link(socket, index=link.index)


def is_free(pid: int) -> bool:
    """Whether no process has that PID."""
    return not Path(f"/proc/{pid}").exists()
