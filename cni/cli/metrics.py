"""`zlayer-cni metrics`: one scrape of the running daemon, in Prometheus' text format. Exit code 0, or 3 without a
daemon."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from cni import defaults
from cni.cli.ask import NeedsRoot, NoDaemon, Refused

PATIENCE = 10.0  # seconds


def run(run_dir: str) -> int:
    """Print the metrics; raises NoDaemon, Refused, NeedsRoot."""
    head, _, body = scrape(str(Path(run_dir) / defaults.METRICS_SOCKET)).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
    if not status.startswith("200 "):
        raise Refused(f"the daemon on {run_dir} answers {status or 'nothing'}: {body.decode(errors='replace').strip()}")
    sys.stdout.write(body.decode())
    return 0


def scrape(path: str) -> bytes:
    """The whole HTTP answer of the metrics socket at `path`. Raises NoDaemon, NeedsRoot."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(path)
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n")
            chunks = []
            while chunk := sock.recv(1 << 16):
                chunks.append(chunk)
        except PermissionError as error:
            raise NeedsRoot(f"this needs root or the group zlayer, and runs as user {os.geteuid()}: {path}") from error
        except OSError as error:
            raise NoDaemon(f"no overlay daemon answers at {path}: {error}") from error
    return b"".join(chunks)
