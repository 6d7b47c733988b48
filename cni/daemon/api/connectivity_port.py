"""The port for other nodes' connectivity tests, while `connectivity: allow` is set.

The daemon only listens. When a connection waits, it starts the tool with the listening sockets; the tool judges who
asks, takes part in the test, and ends when no test came for a while.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket

from cni import defaults
from cni.daemon.state.state import State
from cni.host.program import Child, start_with
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

AGAIN = 5.0  # seconds until the addresses are looked at again
STEP = 0.5  # seconds between two looks at the tool


class ConnectivityPort:
    """Listens at the node's own addresses, in a thread of its own."""

    def __init__(self, state: State, run_dir: str, crew: Crew) -> None:
        self._state, self._run_dir = state, run_dir
        self._listeners: dict[str, socket.socket] = {}
        self._end, self._stop = socket.socketpair()
        self._worker = crew.worker("connectivity", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self) -> None:
        """End the thread, and the tool if it runs."""
        self._worker.retire()
        self._stop.close()
        self._worker.join(2 * STEP)

    def _run(self) -> None:
        try:
            while True:
                beat(IDLE)
                self._open()
                ready = select.select([*self._listeners.values(), self._end], [], [], AGAIN)[0]
                if self._end in ready or (ready and self._is_stopped_while_the_tool_runs()):
                    return
        finally:
            self._close()

    def _open(self) -> None:
        """Listen at the addresses that the node has now; an address that is not set yet is tried again."""
        wanted = {str(address) for address in self._state.node_addresses()}
        for address in self._listeners.keys() - wanted:
            self._listeners.pop(address).close()
        for address in sorted(wanted - self._listeners.keys()):
            with contextlib.suppress(OSError):
                self._listeners[address] = _listener(address)

    def _is_stopped_while_the_tool_runs(self) -> bool:
        """Let the tool take the connections until it ends; whether the daemon was told to stop meanwhile."""
        words = ("connectivity", "accept", "--run-dir", self._run_dir)
        try:
            child = start_with(words, list(self._listeners.values()))
        except OSError as error:
            log.warning("another node's connectivity test is not answered: the tool cannot be started: %s", error)
            self._close()  # its connection is reset
            return bool(select.select([self._end], [], [], AGAIN)[0])
        return self._waited_for(child)

    def _waited_for(self, child: Child) -> bool:
        while not child.has_ended():
            beat(IDLE)
            if select.select([self._end], [], [], STEP)[0]:
                child.end()
                return True
        return False

    def _close(self) -> None:
        for sock in self._listeners.values():
            sock.close()
        self._listeners = {}


def _listener(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, defaults.CONNECTIVITY_PORT))
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock
