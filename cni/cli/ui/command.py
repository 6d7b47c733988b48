"""`zlayer-cni ui`: serve the page until Ctrl-C. Exit code 0, 1 if it cannot listen, 2 if the address is none of this
machine's loopback."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

from cni.cli import ask
from cni.cli.ui import server
from cni.cli.ui.live import Live


def run(run_dir: str, listen: str, path: str) -> int:
    """Serve at `path` if there is one, else at `listen` (ADDRESS:PORT, port 0 for a free one). Raises NoDaemon,
    Refused, NeedsRoot, OSError."""
    ask.request(run_dir, "status")  # without a daemon there is nothing to show
    if path:
        listener, key = server.at_path(path), ""
        sys.stdout.write(f"curl --unix-socket {path} http://localhost/\n")
    else:
        where = _loopback(listen)
        if where is None:
            sys.stderr.write(f"zlayer-cni: {listen!r} is no port of a loopback address, such as 127.0.0.1:9475\n")
            return 2
        listener, key = server.at_address(*where), secrets.token_urlsafe(16)
        host = f"[{where[0]}]" if ":" in where[0] else where[0]
        sys.stdout.write(f"http://{host}:{listener.getsockname()[1]}/{key}/\n")
    sys.stdout.flush()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        server.Server(listener, key, Live(run_dir)).serve()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()
        if path:
            with contextlib.suppress(OSError):
                Path(path).unlink()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _loopback(listen: str) -> tuple[str, int] | None:
    address, _, port = listen.rpartition(":")
    try:
        found = ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    is_port = port.isascii() and port.isdigit() and int(port) < 1 << 16
    return (str(found), int(port)) if found.is_loopback and is_port else None
