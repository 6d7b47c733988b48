"""The network policies of a directory: its files are read, followed, and put in force.

A file that cannot be read as policies keeps the last good one, which is recorded, so that a daemon that starts has it
too. A file that is gone takes its policies with it; a directory that cannot be listed takes none.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from cni.daemon.fence.members import FenceMembers
from cni.daemon.policy import reader
from cni.daemon.policy.files import files_of, read_file
from cni.daemon.policy.model import Policy
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.tables import PolicyFile, Table
from cni.errors import CniError, InvalidConfig
from cni.host.directory_watch import DirectoryWatch
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

SETTLE = 0.03  # seconds from an event to the reading, so that a burst of events is read once
_PATIENCE = 5.0  # seconds that a running change may take when the daemon ends
PROBLEM = "policy-file"


class PolicyFiles:
    """Follows the directory, in a thread of its own."""

    def __init__(
        self, directory: str, fence: FenceMembers, records: Table[PolicyFile], board: ProblemBoard, crew: Crew
    ) -> None:
        """`directory`: empty for none. Raises OSError."""
        self._directory, self._fence, self._records, self._board = directory, fence, records, board
        self._read: dict[str, tuple[str, list[Policy]]] = {}
        self._watch = DirectoryWatch(directory) if directory else None
        self._ended = threading.Event()
        self._worker = crew.worker("policies", self._run)

    def take_in(self) -> None:
        """Reads the directory before the fence is loaded. Raises FenceFailed."""
        for name, record in self._records.all().items():
            try:
                self._read[name] = (record.text, reader.read_text(record.text))
            except InvalidConfig as error:  # a record of another version
                log.warning("the last good text of %s cannot be read: %s", name, error.msg)
        if self._watch is not None:
            self._watch.begin()
        self._look(first=True)

    def start(self) -> None:
        """Starts the thread."""
        if self._watch is not None:
            self._worker.start()

    def stop(self) -> None:
        """Ends the thread; policies stay in force."""
        if self._watch is not None:
            self._worker.retire()
            self._ended.set()
            self._watch.wake()
            self._worker.join(_PATIENCE)

    def _run(self) -> None:
        assert self._watch is not None
        while not self._ended.is_set():
            beat(IDLE)
            if self._watch.wait(IDLE) and not self._ended.wait(SETTLE):
                self._watch.begin()
                with self._board.step("look-incomplete", "policies", "the policies could not be followed"):
                    self._look()

    def _look(self, first: bool = False) -> None:
        """Reads what has changed, and puts it in force; at `first` also what was recorded."""
        try:
            paths = files_of(self._directory) if self._directory else []
        except OSError as error:
            self._board.note(PROBLEM, self._directory, f"{self._directory}: {error.strerror}; its policies stay")
            if first and self._read:
                self._put_in_force(self._read)
            return
        self._board.clear(PROBLEM, self._directory)
        found: dict[str, tuple[str, list[Policy]]] = {}
        faults: dict[str, str] = {}
        owners: dict[tuple[str, str], str] = {}
        for path in paths:
            name, last = path.name, self._read.get(path.name)
            try:
                text = read_file(path)
                fresh = last
                if last is None or last[0] != text:
                    fresh = (text, reader.read_text(text))
                _refuse_twice(fresh[1] if fresh else [], owners)
            except (OSError, InvalidConfig) as error:
                faults[name] = _fault(path, error, last is not None)
                fresh = last if last is not None and not any(p.key in owners for p in last[1]) else None
            if fresh is not None:
                found[name] = fresh
                owners |= {policy.key: name for policy in fresh[1]}
        self._board.set_all(PROBLEM, faults)
        if found != self._read or (first and found):
            self._put_in_force(found)

    def _put_in_force(self, found: dict[str, tuple[str, list[Policy]]]) -> None:
        earlier, self._read = self._read, found
        changes = {name: PolicyFile(text) for name, (text, _) in found.items() if earlier.get(name, ("",))[0] != text}
        self._records.apply({**dict.fromkeys(earlier.keys() - found.keys()), **changes})
        policies = [policy for _, of_file in found.values() for policy in of_file]
        log.info("%d network policies of %s are put in force", len(policies), self._directory)
        self._fence.change_policies(lambda table: table.set_policies("files", policies))


def _refuse_twice(policies: list[Policy], owners: dict[tuple[str, str], str]) -> None:
    for policy in policies:
        if policy.key in owners:
            raise InvalidConfig(f"{policy.title} is in {owners[policy.key]} too")


def _fault(path: Path, error: OSError | CniError, has_last: bool) -> str:
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = f"{error.msg}: {error.details}" if error.details else error.msg
    return f"{path}: {reason}" + ("; its last good content stays in force" if has_last else "")
