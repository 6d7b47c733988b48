"""Removes attachments on ZLayer's overlayd, whether or not the daemon answers.

The kernel's part needs no daemon: the host end is deleted, and with it the container's end, in whatever namespace; then
the holder is ended. The daemon releases its part (an address, a membership, the ephemeral service) on a detach. If the
daemon is down or hangs, the detach is recorded as owed, and the first later call that reaches the daemon sends it.
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

CALL = 3.0  # seconds for one detach of the daemon
KEPT = 2.0  # seconds of a DEL reserved for the kernel's part
MOST_OWED = 64  # owed detaches sent in one call: the others wait for the next


class Remover:
    """Removes attachments, within one deadline."""

    def __init__(self, daemon: Daemon, records: Records, deadline: Deadline) -> None:
        self._daemon = daemon
        self._records = records
        self._deadline = deadline

    def detach(self, key: Key) -> None:
        """DEL: remove the attachment; a detach that the daemon does not carry out is recorded as owed. No error if
        there is no attachment."""
        if self._records.load(key) is None:
            return
        with self._records.locked(key, self._deadline):
            record = self._records.load(key)
            if record is not None and self.remove(record):
                self.send_owed()

    def remove(self, record: Record) -> bool:
        """Remove the attachment, with its lock held; returns whether the daemon carried out the detach. Never raises: a
        failed step is logged, and the record stays."""
        told = self._told(record)
        try:
            host_end.remove(record)
            netns_holder.end(record.holder)
            if told:
                self._records.drop(record.key)
            else:
                self._records.add_owed(record)
        except (OSError, CniError) as error:
            log.warning("%s of %s: %s; a later DEL or GC will try again", record.ifname, record.container, error)
        return told

    def send_owed(self) -> None:
        """Send the owed detaches to the daemon. Stops at the first failure; never raises."""
        for record in self._records.owed()[:MOST_OWED]:
            if record.socket != self._daemon.socket:
                continue
            if not self._told(record):
                return
            self._records.drop_owed(record)

    def _told(self, record: Record) -> bool:
        """Detach on the daemon; returns whether it carried the detach out."""
        if host_end.is_anothers(record):
            # A detach deletes `veth-<pid>-s` also if it belongs to another process (contract 5.3/13, 7.2).
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
            reason = f"{error.msg} ({error.details})" if error.details else error.msg
            log.warning("%s; it is told later that %s of %s is gone", reason, record.ifname, record.container)
            return False
        return True
