"""Userspace WireGuard engines in a process of their own, for a daemon that runs in a container: what that container
has started ends with it, and an engine must not.

`serve` is that process; the daemon asks it by `ask`, one JSON object and one answer for each connection. The run
directory has the socket, which only root may open.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cni.peer_credentials import Peer

log = logging.getLogger(__name__)

NAME = "engines.sock"  # in the run directory
PATIENCE = 30.0  # seconds: longer than an engine may take to start
LONGEST = 4096  # bytes of a request, and of an answer
IDLE = 1.0  # seconds between two looks for engines that have ended


class Engines(Protocol):
    """The engines of this process."""

    def start(self, program: str, name: str) -> None:
        """Start an engine. Raises OSError."""

    def kill(self, name: str) -> None:
        """Kill an engine. Raises OSError."""

    def tune(self, name: str, index: int, port: int, fragments: bool) -> None:
        """Tune an engine's sockets."""

    def reap(self) -> None:
        """Reap engines that have ended."""


def ask(run_dir: str, work: str, *words: Any) -> None:
    """Have the engine host call the method `work` of its engines. Raises OSError: its own, or because no engine host
    answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(Path(run_dir, NAME)))
            sock.send(json.dumps([work, *words]).encode())
            answer = sock.recv(LONGEST)
    except OSError as error:
        raise OSError(error.errno, f"the engine host does not answer at {run_dir}/{NAME}: {error}") from error
    if answer != b"{}":
        raise OSError(json.loads(answer or b'{"error": "the engine host hung up"}')["error"])


def serve(run_dir: str, engines: Engines) -> None:
    """Answer requests until the process ends. Raises OSError."""
    path = Path(run_dir, NAME)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener:
        before = os.umask(0o177)
        listener.bind(str(path))
        os.umask(before)
        listener.listen(16)
        listener.settimeout(IDLE)
        while True:
            engines.reap()
            with contextlib.suppress(TimeoutError):
                client, _ = listener.accept()
                with client:
                    _answer(client, engines)


def _answer(client: socket.socket, engines: Engines) -> None:
    """Carry out one request."""
    client.settimeout(PATIENCE)
    try:
        if Peer(client).uid not in (0, os.geteuid()):
            return
        work, *words = json.loads(client.recv(LONGEST))
        calls: dict[str, Callable[..., None]] = {"start": engines.start, "kill": engines.kill, "tune": engines.tune}
        calls[work](*words)
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("a request failed: %s", error)
        answer = json.dumps({"error": str(error)[:1000]}).encode()
    else:
        answer = b"{}"
    with contextlib.suppress(OSError):
        client.send(answer)
