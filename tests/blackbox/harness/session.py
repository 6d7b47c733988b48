"""One run of the suite: what it makes is named after it, and goes with it, also when it was killed."""

from __future__ import annotations

import fcntl
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import IO

from . import netns

PREFIX = "zlt-bb-"


class Session:
    """One run of the suite: a directory whose name is in the name of every namespace that it makes.

    The directory holds a lock as long as the run lives, so that a later run can tell the remains of a dead one.
    """

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self.name = self.dir.name
        self._lock: IO[str] = (self.dir / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._numbers = itertools.count(1)

    def namespace(self, kind: str) -> Path:
        return netns.make(f"{self.name}-{kind}{next(self._numbers)}")

    def directory(self, kind: str) -> Path:
        path = self.dir / f"{kind}{next(self._numbers)}"
        path.mkdir()
        return path

    def close(self) -> list[str]:
        """Nothing of the run stays; returns what had to be killed."""
        killed = remove_run(self.dir)
        self._lock.close()
        return killed


def remove_run(directory: Path) -> list[str]:
    """Everything a run left: processes in its namespaces, the namespaces, mounts, the directory."""
    spaces = [path for path in netns.RUN_NETNS.glob(f"{directory.name}-*") if path.exists()]
    killed = netns.end_processes(spaces)
    for path in spaces:
        netns.delete(path)
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if point.is_relative_to(directory):
            netns.unmount(point)
    shutil.rmtree(directory, ignore_errors=True)
    return killed


def sweep() -> list[str]:
    """Remove the remains of runs that died: those whose lock can be taken."""
    swept = []
    for directory in Path("/tmp").glob(f"{PREFIX}*"):
        lock = directory / "lock"
        if not lock.is_file():
            continue
        with lock.open("r+") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            remove_run(directory)
            swept.append(directory.name)
    return swept
