"""Starts the forwarder (`daemon/nat/forwarder.py`) so that it outlives the daemon, and connects to it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from cni import log_files
from cni.host import privileges

CAPABILITIES = (privileges.NET_ADMIN,)  # the firewall mark of what it sends
LOG = "relay-forwarder.log"
_OF_SOURCE = ("PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class ForwarderProcess:
    """The forwarder of one daemon, or one that an earlier daemon left running. For one thread."""

    def __init__(self, path: str, log_dir: str) -> None:
        """`path`: of its control socket."""
        self._path, self._log_dir = path, log_dir
        self._child: subprocess.Popen[bytes] | None = None

    def connect(self) -> socket.socket | None:
        """A connection that never blocks; None if no forwarder listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            return None
        return sock

    def start(self) -> None:
        """Start the forwarder, unless one that this daemon started still begins. Raises OSError."""
        if self._child is not None and self._child.poll() is None:
            return
        frozen = bool(getattr(sys, "frozen", False))
        words = [sys.executable, *(() if frozen else ("-m", "cni")), "relay-forwarder", self._path]
        kept = {} if frozen else {name: os.environ[name] for name in _OF_SOURCE if name in os.environ}
        log_path = Path(self._log_dir, LOG)
        with contextlib.suppress(FileNotFoundError):
            log_path.replace(f"{log_path}{log_files.EARLIER}")
        with log_path.open("ab") as log:
            self._child = privileges.lowered(
                CAPABILITIES,
                lambda: subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=None if not frozen else "/",
                    env={"PATH": os.defpath, "LANG": "C.UTF-8", **kept},
                    start_new_session=True,  # it outlives the daemon
                ),
            )

    def reap(self) -> None:
        """Reap a forwarder that has ended."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
