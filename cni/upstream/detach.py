"""Taking attachments on a foreign overlayd away, whether or not the daemon answers.

The kernel's side needs no daemon: the host end goes, and with it the container's, wherever that is; then the holder.
What the daemon holds (an address, a membership, the ephemeral service) it lets go when it is told; a daemon that is
down or hangs is told later, by whichever call reaches it first.
"""

from __future__ import annotations

import logging

from cni.errors import CniError
from cni.host import netns_holder
from cni.overlay.client import Deadline
from cni.upstream import host_end
from cni.upstream.daemon import Daemon
from cni.upstream.records import Key, Record, Records

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
        if self._records.load(key) is None:
            return
        with self._records.locked(key, self._deadline):
            record = self._records.load(key)
            if record is not None and self.remove(record):
                self.settle()

    def remove(self, record: Record) -> bool:
        """Take it away, with its lock held; whether the daemon knows. Never raises: what cannot be done is logged and
        stays written down."""
        told = self._told(record)
        try:
            host_end.remove(record)
            netns_holder.end(record.holder)
            if told:
                self._records.drop(record.key)
            else:
                self._records.owe(record)
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
        if host_end.is_anothers(record):
            # A detach deletes `veth-<pid>-s` whoever made it (contract 5.3/13, 7.2).
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
