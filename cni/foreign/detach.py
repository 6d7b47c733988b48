"""Taking attachments on a foreign overlayd away, whether or not the daemon answers.

The kernel's side needs no daemon: the host end goes, and with it the container's, wherever that is; then the holder.
What the daemon holds (an address, a membership, the ephemeral service) it lets go when it is told; a daemon that is
down or hangs is told later, by whichever call reaches it first.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cni.errors import CniError
from cni.foreign.daemon import Daemon
from cni.foreign.records import Key, Record, Records
from cni.host import holder, links
from cni.host.netlink import Netlink
from cni.overlay.client import Deadline

log = logging.getLogger(__name__)

CALL = 3.0  # seconds the daemon gets for one detach
KEPT = 2.0  # seconds of a DEL kept for the kernel's side, which the daemon's may not use up
MOST_OWED = 64  # debts settled in one call: the rest waits for the next


class Remover:
    """Removes attachments, within one deadline."""

    def __init__(self, daemon: Daemon, records: Records, deadline: Deadline) -> None:
        self._daemon = daemon
        self._records = records
        self._deadline = deadline

    def detach(self, key: Key) -> None:
        """DEL's part: no trace of the attachment afterwards, or a debt to the daemon. Fine when there is none."""
        with self._records.locked(key, self._deadline):
            record = self._records.load(key)
            if record is not None and self.remove(record):
                self.settle()

    def remove(self, record: Record) -> bool:
        """Take it away, with its lock held; whether the daemon knows. Never raises: what cannot be done is logged and
        stays written down."""
        told = self._told(record)
        try:
            remove_host_end(record)
            holder.end(record.holder)
            self._records.drop(record.key) if told else self._records.owe(record)
        except (OSError, CniError) as error:
            log.warning("%s of %s: %s; a later DEL or GC will try again", record.ifname, record.container, error)
        return told

    def settle(self) -> None:
        """Tell the daemon what it was not told when it was down. Stops at the first failure; never raises."""
        for record in self._records.owed()[:MOST_OWED]:
            if record.socket != self._daemon.socket:
                continue
            if not self._told(record):
                return
            self._records.settle(record)

    def _told(self, record: Record) -> bool:
        """Whether the daemon knows that the attachment is gone."""
        if not is_safe(record):
            log.warning("process %d is another's now: the daemon is not told to detach it", record.pid)
            return True
        daemon = self._daemon
        if record.socket != daemon.socket:
            daemon = Daemon(record.socket, self._deadline)
        try:
            daemon.detach(record.pid, max(0.0, min(CALL, self._deadline.left() - KEPT)))
            if record.by_hand and record.life == daemon.life():
                for ip in record.ips:
                    daemon.release(ip, KEPT)
        except CniError as error:
            daemon.hang_up()
            said = f"{error.msg} ({error.details})" if error.details else error.msg
            log.warning("%s; it is told later that %s of %s is gone", said, record.ifname, record.container)
            return False
        return True


def is_safe(record: Record) -> bool:
    """Whether a detach of the recorded PID can only hit the recorded attachment.

    It deletes `veth-<pid>-s` whoever made it. While the holder lives, or nobody has its number, that is ours; when
    the number is another process's by now, a link of that name would be that one's (contract 5.3/13, 7.2).
    """
    if holder.is_alive(record.holder) or is_free(record.pid):
        return True
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
    return link is None or link.index == record.host_index


def is_free(pid: int) -> bool:
    """Whether no process has that number."""
    return not Path(f"/proc/{pid}").exists()


def remove_host_end(record: Record) -> None:
    """No host end of this attachment afterwards; a link of its name that is not its own stays. Raises NetlinkError."""
    with Netlink() as socket:
        link = links.find_link(socket, record.host_veth)
        if link is None:
            return
        unknown = not record.host_index and (holder.is_alive(record.holder) or is_free(record.pid))
        if link.index == record.host_index or unknown:
            links.remove_link(socket, index=link.index)
