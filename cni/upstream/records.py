"""The plugin's records of its attachments on ZLayer's overlayd: one small file each, below the run directory.

    <run directory>/foreign/<16 digits>.json       an attachment, in progress or live
    <run directory>/foreign/owed/<digits>-<pid>    a removed attachment whose detach the daemon has not carried out
    <run directory>/foreign/daemon/<16 digits>     the instance of the daemon in which a bridge's leases were restored

ZLayer's daemon knows only the PID, so the plugin keeps the rest. The files are written atomically (by rename), readable
by root only, and void after a reboot, as are the processes and links that they name. Plugins exclude each other for
each attachment by a byte-range lock, which ends with its process and is not inherited by a holder.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from cni import files, proc
from cni.errors import InputOutput, InterfaceExists, TryAgainLater
from cni.host.netns_holder import Process
from cni.naming import name_hash
from cni.overlay.client import Deadline

log = logging.getLogger(__name__)

_STEP = 0.01  # seconds between two attempts at a lock

Key = tuple[str, str, str]
"""(network, container id, interface name)."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment. Its state is `intent` (an attach or detach is in progress), `live` (ADD has succeeded) or `owed`
    (removed, but not detached on the daemon)."""

    network: str
    container: str
    ifname: str
    state: Literal["intent", "live", "owed"]
    boot: str
    socket: str
    service: str
    mode: str
    pid: int
    start_time: int
    host_veth: str
    host_index: int = 0  # 0: not known yet
    host_mac: str = ""
    bridge: str = ""
    bridge_mac: str = ""
    mac: str = ""
    mtu: int = 0
    addresses: tuple[tuple[str, str], ...] = ()  # (address/prefix, gateway)
    routes: tuple[tuple[str, str], ...] = ()  # (destination, gateway)
    netns: tuple[int, int] = (0, 0)
    sandbox: str = ""
    attempt: str = ""
    ephemeral: bool = False
    life: str = ""  # the instance of the daemon that leased the address
    by_hand: bool = False  # leased again by the plugin after a restart, so the detach does not release the address

    @property
    def key(self) -> Key:
        return (self.network, self.container, self.ifname)

    @property
    def holder(self) -> Process:
        return Process(self.pid, self.start_time)

    @property
    def ips(self) -> tuple[str, ...]:
        """The addresses without their prefixes."""
        return tuple(address.partition("/")[0] for address, _ in self.addresses)


class Records:
    """The records below one run directory."""

    def __init__(self, run_dir: str) -> None:
        self._home = Path(run_dir) / "foreign"
        self.boot = proc.boot_id()
        self._lock = -1

    # --- attachments ------------------------------------------------------------------------------------------------

    def load(self, key: Key) -> Record | None:
        """The attachment's record, or None."""
        record = self._read(self._home / f"{digits(*key)}.json")
        return record if record is not None and record.key == key else None

    def save(self, record: Record) -> None:
        """Write the record atomically. Raises InputOutput (5); InterfaceExists (101) if the file, whose name is a hash
        of the key, belongs to another attachment."""
        existing = self._read(self._home / f"{digits(*record.key)}.json")
        if existing is not None and existing.key != record.key:
            raise InterfaceExists(
                f"the record {digits(*record.key)} of this attachment is that of {'/'.join(existing.key)}",
                "nothing of the other was touched; attach under another container ID",
            )
        self._write(self._home / f"{digits(*record.key)}.json", msgspec.json.encode(record))

    def drop(self, key: Key) -> None:
        """Remove the record. Safe to repeat; the record of another attachment in that file stays."""
        if self.load(key) is None:
            return
        (self._home / f"{digits(*key)}.json").unlink(missing_ok=True)

    def every(self) -> list[Record]:
        """All attachments: O(attachments), used by an ADD or DEL only after a restart of the daemon."""
        return self._all("*.json")

    # --- what the daemon has still to be told -----------------------------------------------------------------------

    def add_owed(self, record: Record) -> None:
        """Record that the attachment is removed and its detach is owed to the daemon. Raises InputOutput."""
        name = f"owed/{digits(*record.key)}-{record.pid}.json"
        self._write(self._home / name, msgspec.json.encode(msgspec.structs.replace(record, state="owed")))
        self.drop(record.key)

    def owed(self) -> list[Record]:
        """The owed detaches, of all daemons."""
        return self._all("owed/*.json")

    def drop_owed(self, record: Record) -> None:
        """Remove an owed detach that the daemon has carried out. Safe to repeat."""
        (self._home / f"owed/{digits(*record.key)}-{record.pid}.json").unlink(missing_ok=True)

    # --- the life of a daemon ---------------------------------------------------------------------------------------

    def life(self, socket: str, bridge: str) -> str:
        """The instance of the daemon in which the bridge's leases were last restored; "" if unknown."""
        try:
            return (self._home / "daemon" / digits(socket, bridge)).read_text()
        except FileNotFoundError:
            return ""

    def set_life(self, socket: str, bridge: str, life: str) -> None:
        """Record that the bridge's leases are restored in this instance of the daemon. Raises InputOutput."""
        self._write(self._home / "daemon" / digits(socket, bridge), life.encode())

    # --- locks ------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, what: tuple[str, ...], deadline: Deadline) -> Iterator[None]:
        """A context that excludes other plugins from `what`. Raises TryAgainLater (11) if the lock takes too long."""
        at = int(digits(*what), 16) >> 2
        while not self._lock_byte(fcntl.LOCK_EX | fcntl.LOCK_NB, at):
            if not deadline.left():
                raise TryAgainLater(f"another call for {'/'.join(what)} has been under way for {deadline.seconds:g} s")
            time.sleep(_STEP)
        try:
            yield
        finally:
            self._lock_byte(fcntl.LOCK_UN, at)

    def _lock_byte(self, how: int, at: int) -> bool:
        if self._lock < 0:
            # Never closed: closing any descriptor of the file releases every lock of this process on the file.
            self._mkdir(self._home)
            self._lock = os.open(self._home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._lock, how, 1, at)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise
            return False
        return True

    # --- files ------------------------------------------------------------------------------------------------------

    def _all(self, pattern: str) -> list[Record]:
        records = (self._read(path) for path in sorted(self._home.glob(pattern)))
        return [record for record in records if record is not None]

    def _read(self, path: Path) -> Record | None:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: %s; taken as absent", path, error)
            return None
        if record.boot != self.boot:
            path.unlink(missing_ok=True)  # its processes and links ended with the earlier boot
            return None
        return record

    def _mkdir(self, path: Path) -> None:
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputOutput(f"cannot make {path}: {error.strerror}") from error

    def _write(self, path: Path, data: bytes) -> None:
        self._mkdir(self._home)
        self._mkdir(path.parent)
        try:
            files.write(str(path), data, durable=False, alone=False)  # the directory does not survive a reboot
        except OSError as error:
            raise InputOutput(f"cannot write {path}: {error.strerror}") from error


def digits(*parts: str) -> str:
    """The file name for `parts`: 16 hexadecimal digits of a hash."""
    return f"{name_hash(parts, 'foreign'):016x}"
