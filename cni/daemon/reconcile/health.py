"""Looks for what is about to go wrong on the node: addresses, disks, the clock, the queue of deletions, the YAML, and
WireGuard's port behind the host's firewall. Each becomes a problem; nothing is repaired here.

Called after every comparison with the kernel (10 s). What starts other programs is asked every FIREWALLS seconds.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cni.daemon.fence.model import TABLE
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model import usage
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.settings_file import SettingsFile
from cni.daemon.state.state import State
from cni.host import container, probe, rights
from cni.host.closed_port import Arrival, ClosedPort, closed_by, of_containers, of_peers
from cni.host.tunnels import KERNEL
from cni.host.worker import beat
from cni.plugin import delete_queue

FIREWALLS = 60.0  # seconds between two looks at the host's firewalls: each runs up to four programs
QUEUE_LATE = 60.0  # seconds after which a queued deletion should have been carried out: it is tried every 10 s
LEAST_FREE = 16 << 20  # bytes: a record and the log take less than a tenth of it
LEAST_SHARE = 0.01  # of a file system; less than both is full
BEHIND = 60.0  # seconds that a file may be newer than the clock: file servers and other machines write some


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """A directory's file system: bytes free and in all, free inodes (None if it does not count them)."""

    path: str
    free: int
    size: int
    inodes: int | None
    read_only: bool


def full(disk: DiskSpace) -> str:
    """Why a directory's disk is full; empty if it is not. Pure."""
    if disk.free < LEAST_FREE and disk.free < LEAST_SHARE * disk.size:
        return f"the file system of {disk.path} has {disk.free >> 20} MiB free of {disk.size >> 20}"
    if disk.inodes is not None and disk.inodes < 16:
        return f"the file system of {disk.path} has {disk.inodes} inodes free"
    return ""


class NodeHealth:
    """The looks at one node. For one thread at a time."""

    def __init__(
        self,
        *,
        settings: Settings,
        settings_file: SettingsFile,
        state: State,
        mesh: Mesh,
        board: ProblemBoard,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: Unix seconds."""
        self._settings, self._settings_file, self._state = settings, settings_file, state
        self._mesh, self._board, self._clock = mesh, board, clock
        self._firewalls_at = -math.inf

    def look(self) -> None:
        """Look at everything once, and update the problems. Never raises OSError, CniError."""
        for subject, work in (
            ("addresses in use", self._note_addresses),
            ("queued deletions", self._note_queue),
            ("disks", self._note_disks),
            ("the clock", self._note_clock),
            ("settings file", self.note_settings),
            ("the rights of the container", self._note_rights),
            ("the engine of the tunnels", self._note_engine),
            ("the firewalls of the host", self._note_firewalls),
        ):
            beat()
            with self._board.step("look-incomplete", subject, f"{subject} could not be looked at"):
                work()

    def _note_addresses(self) -> None:
        view = self._state.pool_view()
        self._board.set_all("addresses-low", usage.running_out(usage.usages(view), view.spare_slots))

    def _note_queue(self) -> None:
        now, directory = self._clock(), Path(delete_queue.directory(self._settings.run_dir))
        ages = []
        for name in delete_queue.names(self._settings.run_dir):
            with contextlib.suppress(FileNotFoundError):
                ages.append(now - (directory / name).stat().st_mtime)
        late = [age for age in ages if age > QUEUE_LATE]
        text = f"{len(late)} queued deletions wait for {max(late, default=0):.0f} s"
        text += f", and are not carried out: the log has each one's reason ({directory})"
        self._board.set("delete-queue-stuck", "", text if late else "")

    def _note_disks(self) -> None:
        disks = [_disk(path) for path in (self._settings.data_dir, self._settings.run_dir)]
        self._board.set_all("disk-full", {disk.path: text for disk in disks if (text := full(disk))})
        texts = {disk.path: f"{disk.path} is on a file system that is mounted read-only" for disk in disks}
        self._board.set_all("disk-read-only", {disk.path: texts[disk.path] for disk in disks if disk.read_only})

    def _note_clock(self) -> None:
        newest, name = max(_times(Path(self._settings.data_dir)), default=(0.0, ""))
        behind = newest - self._clock()
        text = f"the clock is {behind:.0f} s behind {name}, which this node has written: peers refuse its handshakes"
        self._board.set("clock-behind", "", text if behind > BEHIND else "")

    def _note_rights(self) -> None:
        settings = self._settings
        starts_engines = not settings.engine_host and self._mesh.wanted() and settings.wireguard_engine != KERNEL
        reading = self._mesh.last_reading()
        engine = starts_engines and (reading is None or reading.pid != 0)
        directories = (settings.run_dir, settings.data_dir)
        self._board.set_all("right-missing", rights.missing_here(directories, engine=engine))

    def _note_engine(self) -> None:
        reading, place = self._mesh.last_reading(), container.own()
        text = ""
        if place and reading is not None and reading.pid > 0 and container.ends_with_this(reading.pid):
            text = f"{reading.engine} (process {reading.pid}) ends with the daemon, which runs in {place}:"
            text += " the node's tunnels stop until the next daemon has started another one"
        self._board.set("engine-ends-with-daemon", "", text)

    def note_settings(self) -> None:
        """Update the problem about the YAML: it has changed, or cannot be used."""
        notes = self._settings_file.notes(self._settings)
        self._board.set("settings-not-applied", "", "; ".join(notes))

    def _note_firewalls(self) -> None:
        now = time.monotonic()
        if now - self._firewalls_at < FIREWALLS:
            return
        self._firewalls_at = now
        tables, dns = probe.filter_rules(), self._settings.dns
        peers = [of_peers(self._state.node.wg_port)] if self._mesh.interface() is not None else []
        askers = [of_containers(dns.port, cidr) for cidr in self._state.cidrs] if dns.serve else []
        for code, arrivals in (("wireguard-port-closed", peers), ("dns-port-closed", askers)):
            found = [closed for each in arrivals for closed in _closed(each, tables)]
            self._board.set_all(code, {each.text: f"{each.text}; {each.fix}" for each in found})


def _closed(arrival: Arrival, tables: Mapping[str, Sequence[str]]) -> list[ClosedPort]:
    return closed_by(arrival, tables, probe.closed_inputs(arrival.flow, TABLE))


def _disk(path: str) -> DiskSpace:
    """The file system of a directory, or of its first existing parent. Raises OSError."""
    there = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    seen = os.statvfs(there)
    return DiskSpace(
        path,
        free=seen.f_bavail * seen.f_frsize,
        size=seen.f_blocks * seen.f_frsize,
        inodes=seen.f_favail if seen.f_files else None,
        read_only=bool(seen.f_flag & os.ST_RDONLY),
    )


def _times(data_dir: Path) -> Iterator[tuple[float, str]]:
    """When the files of identity and keys were written, in Unix seconds, with their paths; none without them."""
    with contextlib.suppress(FileNotFoundError):
        for path in data_dir.iterdir():
            if path.suffix in (".key", ".json") and path.is_file():
                yield path.stat().st_mtime, str(path)
