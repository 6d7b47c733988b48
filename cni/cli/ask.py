"""Requests to the running daemon, over the CNI socket."""

from __future__ import annotations

import json
import os
import sys
from typing import TypeVar

import msgspec

from cni import answers
from cni.plugin import client as plugin_door

NOT_RUNNING = 3  # exit code: there is no daemon to ask (the number init scripts use for "not running")
PATIENCE = 10.0  # seconds

T = TypeVar("T")


class NoDaemon(Exception):
    """No daemon answers on the run directory; the text names the socket and the reason."""


class Refused(Exception):
    """The daemon answered with an error; the text is the daemon's. Or its answer is of another version's form."""


class NeedsRoot(Refused):
    """The daemon's socket is not open to this user, so whether a daemon runs is unknown."""


def ask(run_dir: str, question: str, answer: type[T], **more: str) -> T:
    """The daemon's answer to `question`, a type of cni/answers.py. Raises NoDaemon, Refused, NeedsRoot."""
    raw = request(run_dir, question, **more)
    try:
        return msgspec.json.decode(raw, type=answer)
    except msgspec.MsgspecError as error:
        raise Refused(f"the daemon on {run_dir} answers {question!r} as another version does: {error}") from error


def print_json(answer: object) -> None:
    """Print an answer, or a list of them, for `--json`."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(answer), indent=2) + "\n")


def request(run_dir: str, question: str, **more: str) -> bytes:
    """The JSON text of the daemon's answer. Raises NoDaemon, Refused, NeedsRoot."""
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
    if code:
        raise Refused(_failure(out))
    return out


def _failure(out: bytes) -> str:
    try:
        failure = msgspec.json.decode(out, type=answers.Failure)
    except msgspec.MsgspecError:
        return out.decode("utf-8", "replace")
    return failure.msg + (f": {failure.details}" if failure.details else "")
