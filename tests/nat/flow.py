"""A flow of echoes between two nodes, and what a fault costs it."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
from types import TracebackType

from tests.mesh.fleet import Node

EACH = 0.05  # seconds between two echoes


class Flow:
    """Echoes from a node to an address, from `with` to its end. Afterwards: `sent`; `lost`; `gap`, the longest time in
    seconds without an answer."""

    def __init__(self, node: Node, address: str) -> None:
        words = ["ip", "netns", "exec", node.name, "ping", "-n", "-D", "-O", "-i", str(EACH), "-W", "1", address]
        self._ping = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.sent = self.lost = 0
        self.gap = 0.0

    def __enter__(self) -> Flow:
        assert self._ping.stdout is not None
        self._ping.stdout.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ping.send_signal(signal.SIGINT)
        text, _ = self._ping.communicate(timeout=20)
        answered = [float(at) for at in re.findall(r"^\[([0-9.]+)\] \d+ bytes from", text, re.MULTILINE)]
        found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        if kind is None:
            assert found is not None, text
            self.sent, received = int(found[1]), int(found[2])
            self.lost = self.sent - received
            lines = re.findall(r"^\[([0-9.]+)\]", text, re.MULTILINE)
            ends = [float(lines[0]), *answered, float(lines[-1])]
            self.gap = max(later - before for before, later in itertools.pairwise(ends))
