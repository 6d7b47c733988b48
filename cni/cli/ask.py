"""Requests to the running daemon, over the CNI socket."""

from __future__ import annotations

import json
import os
from typing import Any

from cni.plugin import client as plugin_door

NOT_RUNNING = 3  # exit code: there is no daemon to ask (the number init scripts use for "not running")
PATIENCE = 10.0  # seconds


class NoDaemon(Exception):
    """No daemon answers on the run directory; the text names the socket and the reason."""


class Refused(Exception):
    """The daemon answered with an error; the text is the daemon's."""


class NeedsRoot(Refused):
    """The daemon's socket is not open to this user, so whether a daemon runs is unknown."""


def ask(run_dir: str, question: str, **more: str) -> Any:
    """The daemon's answer to `question`, decoded. Raises NoDaemon, Refused, NeedsRoot."""
    waiter = plugin_door.Waiter(PATIENCE)
    pairs = {b"TOOL": question.encode(), **{k.upper().encode(): v.encode() for k, v in more.items()}}
    try:
        sock = plugin_door.connect(run_dir, waiter)
        try:
            code, out, _ = plugin_door.ask(sock, plugin_door.request(pairs, b""), (), waiter)
        finally:
            sock.close()
    except plugin_door.Closed as error:
        if os.geteuid() and isinstance(error.__cause__, PermissionError):
            raise NeedsRoot(f"this needs root, and runs as user {os.geteuid()}: {error}") from error
        raise NoDaemon(f"no overlay daemon answers at {error}") from error
    except plugin_door.NoAnswer as error:
        raise NoDaemon(f"the overlay daemon on {run_dir} hung up: {error}") from error
    except plugin_door.OutOfTime as error:
        raise NoDaemon(f"the overlay daemon on {run_dir} did not answer within {PATIENCE:g} s") from error
    answer = json.loads(out)
    if code:
        details = f": {answer['details']}" if answer.get("details") else ""
        raise Refused(f"{answer['msg']}{details}")
    return answer
