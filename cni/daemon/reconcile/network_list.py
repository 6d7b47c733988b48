"""Writes the network list of the settings where the runtime looks for it, when the daemon can serve; and looks for a
list that the runtime prefers.

For a daemon in a container, whose list is in a ConfigMap: a runtime that finds a list attaches containers, so the list
comes last. It is replaced by a rename, and it stays when the daemon ends: calls that come meanwhile are tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from cni import files
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import NetworkList
from cni.errors import CniError
from cni.host.worker import Crew, beat

SUFFIXES = (".conf", ".conflist", ".json")  # what containerd and CRI-O load
SOON, LATER = 0.5, 10.0  # seconds between two looks: until the list is in place, and then


class NetworkListKeeper:
    """Keeps one network list in place, in a thread of its own."""

    def __init__(self, places: NetworkList, refuse: Callable[[], object], board: ProblemBoard, crew: Crew) -> None:
        """`refuse` raises CniError while an ADD would fail."""
        self._places, self._refuse, self._board = places, refuse, board
        self._stopped = threading.Event()
        self._worker = crew.worker("network-list", self._run)

    def start(self) -> None:
        """Start looking."""
        self._worker.start()

    def stop(self) -> None:
        """Stop looking; the list stays."""
        self._worker.retire()
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            in_place = self._look()
            pause = LATER if in_place else SOON
            beat(pause)
            self._stopped.wait(pause)

    def _look(self) -> bool:
        """Write the list if it differs; whether it is in place."""
        target = Path(self._places.target)
        self._board.set("network-list-shadowed", "", shadowed(target))
        if not self._places.source:
            return True
        try:
            wanted = Path(self._places.source).read_bytes()
            if _content(target) != wanted:
                self._refuse()
                files.write(str(target), wanted, 0o644, alone=False)
        except CniError:
            return False  # STATUS says why
        except OSError as error:
            text = f"the network list {target} is not written from {self._places.source}: {error}"
            self._board.note("network-list-not-written", "", text)
            return False
        self._board.clear("network-list-not-written")
        return True


def shadowed(target: Path) -> str:
    """Which list the runtime uses in place of `target`, as a sentence; "" if it uses `target`, or there is no such
    list: a runtime takes the first by name."""
    try:
        names = sorted(path.name for path in target.parent.iterdir() if path.suffix in SUFFIXES)
    except OSError:
        return ""
    if target.name not in names or names[0] == target.name:
        return ""
    return f"{target.parent / names[0]} sorts before {target.name}: the runtime attaches new containers by that list"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
