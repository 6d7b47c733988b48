"""The network policies of a directory: its files are read, followed, and put in force.

A file that cannot be read as policies keeps the last good one, which is recorded, so that a daemon that starts has it
too. A policy of which no content could be read ever isolates what it selects, and allows nothing. A file that is gone
takes its policies with it; a directory that cannot be listed takes none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cni.daemon.fence.members import FenceMembers
from cni.daemon.policy import reader
from cni.daemon.policy.files import files_of, read_file
from cni.daemon.policy.model import Policy, PolicyName
from cni.daemon.policy.stand_in import read_each
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.tables import PolicyFile, Table
from cni.errors import CniError, InvalidConfig
from cni.host.directory_watch import DirectoryWatch
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

SETTLE = 0.03  # seconds from an event to the reading, so that a burst of events is read once
_PATIENCE = 5.0  # seconds that a running change may take when the daemon ends
PROBLEM = "policy-file"


class _File(NamedTuple):
    """A file as it was read: its record, the policies of its last good text, and those of its refused text that the
    last good one has not."""

    record: PolicyFile
    good: list[Policy]
    others: list[Policy]

    @property
    def policies(self) -> list[Policy]:
        """What the file puts in force."""
        return [*self.good, *self.others]


_NEVER_READ = _File(PolicyFile(None), [], [])


class PolicyFiles:
    """Follows the directory, in a thread of its own."""

    def __init__(
        self, directory: str, fence: FenceMembers, records: Table[PolicyFile], board: ProblemBoard, crew: Crew
    ) -> None:
        """`directory`: empty for none. Raises OSError."""
        self._directory, self._fence, self._records, self._board = directory, fence, records, board
        self._read: dict[str, _File] = {}
        self._watch = DirectoryWatch(directory) if directory else None
        self._ended = threading.Event()
        self._worker = crew.worker("policies", self._run)

    def take_in(self) -> None:
        """Reads the directory before the fence is loaded. Raises FenceFailed."""
        for name, record in self._records.all().items():
            try:
                good = [] if record.text is None else reader.read_text(record.text)
                self._read[name] = _refused(_File(record, good, []), record.refused)
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
        found: dict[str, _File] = {}
        faults: dict[str, str] = {}
        owners: dict[PolicyName, str] = {}
        for path in paths:
            name = path.name
            file, fault = _read_anew(path, self._read.get(name, _NEVER_READ), owners)
            if fault:
                faults[name] = fault
            if file != _NEVER_READ:
                found[name] = file
                owners |= {policy.key: name for policy in file.policies if policy.key not in owners}
        self._board.set_all(PROBLEM, faults)
        if found != self._read or (first and found):
            self._put_in_force(found)

    def _put_in_force(self, found: dict[str, _File]) -> None:
        earlier, self._read = self._read, found
        gone: dict[str, PolicyFile | None] = dict.fromkeys(earlier.keys() - found.keys())
        recorded = self._records.all()
        self._records.apply({**gone, **{n: file.record for n, file in found.items() if file.record != recorded.get(n)}})
        policies = list(_first_of_each(policy for file in found.values() for policy in file.policies))
        log.info("%d network policies of %s are put in force", len(policies), self._directory)
        self._fence.change_policies(lambda table: table.set_policies("files", policies))


def _read_anew(path: Path, last: _File, owners: Mapping[PolicyName, str]) -> tuple[_File, str]:
    """The file as it is now, and its fault, "" if it has none. `owners`: the policies of other files."""
    try:
        text = read_file(path)
    except (OSError, InvalidConfig) as error:
        return last, _fault(path, error, last)
    is_unchanged = text == last.record.text
    try:
        good = last.good if is_unchanged else reader.read_text(text)
        _refuse_twice(good, owners)
        return _File(PolicyFile(text), good, []), ""
    except InvalidConfig as error:
        file = _refused(last, None if is_unchanged else text)
        return file, _fault(path, error, file)


def _refused(last: _File, text: str | None) -> _File:
    """The file with its last good text in force, after `text` was refused; None if that is the last good text."""
    known = {policy.key for policy in last.good}
    others = [] if text is None else [policy for policy in read_each(text) if policy.key not in known]
    return _File(PolicyFile(last.record.text, text), last.good, others)


def _first_of_each(policies: Iterable[Policy]) -> Iterator[Policy]:
    """Each policy once: a name that two files have means that of the first."""
    seen = set()
    for policy in policies:
        if policy.key not in seen:
            seen.add(policy.key)
            yield policy


def _refuse_twice(policies: list[Policy], owners: Mapping[PolicyName, str]) -> None:
    for policy in policies:
        if policy.key in owners:
            raise InvalidConfig(f"{policy.title} is in {owners[policy.key]} too")


def _fault(path: Path, error: OSError | CniError, file: _File) -> str:
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = f"{error.msg}: {error.details}" if error.details else error.msg
    effect = "; its last good content stays in force" if file.record.text is not None else ""
    if file.others:
        effect += "; a policy of it that cannot be read isolates what it selects"
    return f"{path}: {reason}{effect}"
