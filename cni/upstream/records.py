"""What the plugin remembers of its attachments on a foreign overlayd: one small file each, below the run directory.

    <run directory>/foreign/<16 digits>.json       an attachment, being made or live
    <run directory>/foreign/owed/<digits>-<pid>    one that is gone, but that the daemon has not been told of yet
    <run directory>/foreign/daemon/<16 digits>     the life of the daemon in which a bridge's leases are in order

Such a daemon knows a PID and nothing else, so whoever attached must remember it. Written whole or not at all (by
rename), for root alone, and void after a boot, as are the processes and links they speak of. Plugins take turns per
attachment by a byte-range lock, which ends with the process that holds it and is not inherited by a holder.
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

_STEP = 0.01  # seconds between two tries for a lock

Key = tuple[str, str, str]
"""(network, container id, interface name)."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment. `intent` = being made or unmade; `live` = answered for; `owed` = gone but for the daemon."""

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
    life: str = ""  # the life of the daemon that has leased the address
    by_hand: bool = False  # leased again by us after a restart, so that the detach does not give it back

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
        found = self._read(self._home / f"{digits(*key)}.json")
        return found if found is not None and found.key == key else None

    def save(self, record: Record) -> None:
        """Remember it, whole or not at all. Raises InputOutput (5), InterfaceExists (101) where the file, whose name is
        a hash of the key, is another attachment's."""
        there = self._read(self._home / f"{digits(*record.key)}.json")
        if there is not None and there.key != record.key:
            raise InterfaceExists(
                f"the record {digits(*record.key)} of this attachment is that of {'/'.join(there.key)}",
                "nothing of the other was touched; attach under another container ID",
            )
        self._write(self._home / f"{digits(*record.key)}.json", msgspec.json.encode(record))

    def drop(self, key: Key) -> None:
        """Forget it. Safe to repeat; another attachment's record of that file name stays."""
        if self.load(key) is None:
            return
        (self._home / f"{digits(*key)}.json").unlink(missing_ok=True)

    def every(self) -> list[Record]:
        """All attachments: O(attachments), never on the path of an ADD or DEL but after a daemon's death."""
        return self._all("*.json")

    # --- what the daemon has still to be told -----------------------------------------------------------------------

    def owe(self, record: Record) -> None:
        """The attachment is gone; the daemon will have to be told when it answers again. Raises InputOutput."""
        name = f"owed/{digits(*record.key)}-{record.pid}.json"
        self._write(self._home / name, msgspec.json.encode(msgspec.structs.replace(record, state="owed")))
        self.drop(record.key)

    def owed(self) -> list[Record]:
        """What daemons have still to be told."""
        return self._all("owed/*.json")

    def settle(self, record: Record) -> None:
        """The daemon has been told. Safe to repeat."""
        (self._home / f"owed/{digits(*record.key)}-{record.pid}.json").unlink(missing_ok=True)

    # --- the life of a daemon ---------------------------------------------------------------------------------------

    def life(self, socket: str, bridge: str) -> str:
        """The life of the daemon in which the bridge's leases were last in order; "" if none is known."""
        try:
            return (self._home / "daemon" / digits(socket, bridge)).read_text()
        except FileNotFoundError:
            return ""

    def set_life(self, socket: str, bridge: str, life: str) -> None:
        """The bridge's leases are in order in this life of the daemon. Raises InputOutput."""
        self._write(self._home / "daemon" / digits(socket, bridge), life.encode())

    # --- locks ------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, what: tuple[str, ...], deadline: Deadline) -> Iterator[None]:
        """The block, while no other plugin is at the same thing. Raises TryAgainLater (11) when that takes too long."""
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
            # Never closed: closing any descriptor of the file would give back every lock this process has on it.
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
        found = (self._read(path) for path in sorted(self._home.glob(pattern)))
        return [record for record in found if record is not None]

    def _read(self, path: Path) -> Record | None:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: %s; taken as absent", path, error)
            return None
        if record.boot != self.boot:
            path.unlink(missing_ok=True)  # its processes and links ended with that boot
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
            files.write(str(path), data, durable=False, alone=False)  # the directory ends with the boot
        except OSError as error:
            raise InputOutput(f"cannot write {path}: {error.strerror}") from error


def digits(*parts: str) -> str:
    """The name of what belongs to `parts`: 16 hexadecimal digits."""
    return f"{name_hash(parts, 'foreign'):016x}"
