"""Restores the leases of ZLayer's daemon after it was killed.

A killed daemon leaves bridges and veths, and its successor has no leases: it begins again at the lowest address, which
a living container has (contract 6.14, observed on ZLayer's daemon). So the first attach to a service after a restart of
the daemon leases again, one by one, the addresses of living attachments. The daemon leases the lowest free address, so
the addresses in between that no attachment has are released at the end.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator

import msgspec

from cni.errors import CniError
from cni.isolation import SHARED
from cni.overlay.client import Deadline
from cni.upstream import host_end
from cni.upstream.daemon import Daemon
from cni.upstream.records import Record, Records

log = logging.getLogger(__name__)

MOST = 256  # the most leases that are requested: a subnet of the daemon is a /26
KEPT = 12.0  # seconds of the ADD reserved for the attach that follows


class Leases:
    """The leases of our attachments on one daemon."""

    def __init__(self, daemon: Daemon, records: Records, deadline: Deadline) -> None:
        self._daemon = daemon
        self._records = records
        self._deadline = deadline

    def put_in_order(self, service: str, mode: str, bridge: str) -> None:
        """Ensure that the daemon does not lease the address of a living container to the service's next container.

        Reads one file, and all records only after a restart of the daemon. Raises what the daemon's calls raise.
        """
        socket, life = self._daemon.socket, self._daemon.life()
        if not life or self._records.life(socket, bridge) == life:
            return
        with self._records.locked((socket, bridge), self._deadline):
            if self._records.life(socket, bridge) == life:
                return
            by_address = {record.ips[0]: record for record in self._stranded(service, mode, life)}
            if by_address and not self._daemon.is_ours(KEPT):  # ours forgets nothing
                self._lease_again(service, life, by_address)
            self._records.set_life(socket, bridge, life)

    def _stranded(self, service: str, mode: str, life: str) -> Iterator[Record]:
        """Living attachments in the service's subnet whose addresses were leased before the daemon's restart."""
        for record in self._records.every():
            same = record.mode == mode and (mode == SHARED or record.service == service)
            ours = record.socket == self._daemon.socket and record.state == "live" and same
            if ours and record.life != life and record.ips and host_end.is_there(record):
                yield record

    def _lease_again(self, service: str, life: str, by_address: dict[str, Record]) -> None:
        """Lease every address in `by_address`, and record that the lease is ours: the detach by PID does not release
        it."""
        missing, spare = dict(by_address), []
        try:
            for _ in range(MOST):
                ip = self._daemon.allocate(service, KEPT)
                record = missing.pop(ip, None)
                if record is None or not self._note(record, life):
                    spare.append(ip)
                if not any(same_subnet(other, ip) for other in missing.values()):
                    break
        except CniError as error:
            log.warning("the overlay daemon has no lease for %s: %s", ", ".join(missing), error.msg)
        for ip in spare:
            self._daemon.release(ip, KEPT)
        if count := len(by_address) - len(missing):
            log.warning("the overlay daemon was restarted: %d addresses of living containers leased again", count)

    def _note(self, before: Record, life: str) -> bool:
        """Record that the plugin has to release the lease; False if the attachment was removed meanwhile."""
        with self._records.locked(before.key, self._deadline):
            record = self._records.load(before.key)
            if record is None or record.pid != before.pid:
                return False
            self._records.save(msgspec.structs.replace(record, life=life, by_hand=True))
        return True


def same_subnet(record: Record, ip: str) -> bool:
    """Whether the attachment's address is in the subnet of `ip`: otherwise the daemon never leases it."""
    return ipaddress.ip_address(ip) in ipaddress.ip_interface(record.addresses[0][0]).network
