"""Requests to the running daemon, over the CNI socket."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cni import answers, plugin_protocol
from cni.plugin import client

if TYPE_CHECKING:
    import _socket
    import socket

NOT_RUNNING = 3  # exit code: there is no daemon to ask (the number init scripts use for "not running")
UNCLEAR = 2  # exit code: an argument names nothing, or several things
PATIENCE = 10.0  # seconds

NONE: Mapping[str, str] = {}
T = TypeVar("T")


class NoDaemon(Exception):
    """No daemon answers on the run directory; the text names the socket and the reason."""


class Refused(Exception):
    """The daemon answered with an error; the text is the daemon's. Or its answer is of another version's form."""


class NeedsRoot(Refused):
    """The daemon's socket is not open to this user, so whether a daemon runs is unknown."""


def ask(run_dir: str, question: str, answer: type[T], arguments: Mapping[str, str] = NONE) -> T:
    """The daemon's answer to `question`, a type of cni/answers/. Raises NoDaemon, Refused, NeedsRoot."""
    raw = request(run_dir, question, arguments)
    try:
        return msgspec.json.decode(raw, type=answer)
    except msgspec.MsgspecError as error:
        raise Refused(f"the daemon on {run_dir} answers {question!r} as another version does: {error}") from error


def ask_clearly(run_dir: str, question: str, answer: type[T], arguments: Mapping[str, str]) -> T | None:
    """The daemon's answer as of `ask`; None after a refusal, which is printed: an argument is unclear, and the command
    ends with UNCLEAR. Raises NoDaemon, NeedsRoot."""
    try:
        return ask(run_dir, question, answer, arguments)
    except NeedsRoot:
        raise
    except Refused as error:
        sys.stderr.write(f"zlayer-cni: {error}\n")
        return None


def print_json(answer: object) -> None:
    """Print an answer, or a list of them, for `--json`."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(answer), indent=2) + "\n")


@contextlib.contextmanager
def stream(run_dir: str, question: str) -> Iterator[socket.socket]:
    """A connection on which the daemon sends what follows its answer. Raises NoDaemon, Refused, NeedsRoot."""
    import socket  # 12 ms, which the other commands do without

    asked, _ = _asked(run_dir, question, NONE)
    with socket.socket(fileno=asked.detach()) as sock:
        sock.setblocking(True)
        yield sock


def request(run_dir: str, question: str, arguments: Mapping[str, str] = NONE) -> bytes:
    """The JSON text of the daemon's answer. Raises NoDaemon, Refused, NeedsRoot."""
    sock, out = _asked(run_dir, question, arguments)
    sock.close()
    return out


def _asked(run_dir: str, question: str, arguments: Mapping[str, str]) -> tuple[_socket.socket, bytes]:
    """The open connection, and the JSON text of the daemon's answer. Raises NoDaemon, Refused, NeedsRoot."""
    waiter = client.Waiter(PATIENCE)
    keys = {key: value.encode() for key, value in {plugin_protocol.TOOL: question, **arguments}.items()}
    try:
        sock = client.connect(run_dir, waiter)
        try:
            code, out, _ = client.ask(sock, client.request({}, keys, b""), (), waiter)
        except BaseException:
            sock.close()
            raise
    except client.Closed as error:
        if os.geteuid() and isinstance(error.__cause__, PermissionError):
            raise NeedsRoot(f"this needs root, and runs as user {os.geteuid()}: {error}") from error
        raise NoDaemon(f"no overlay daemon answers at {error}") from error
    except client.NoAnswer as error:
        raise NoDaemon(f"the overlay daemon on {run_dir} hung up: {error}") from error
    except client.OutOfTime as error:
        raise NoDaemon(f"the overlay daemon on {run_dir} did not answer within {PATIENCE:g} s") from error
    if code:
        sock.close()
        raise Refused(_failure(out))
    return sock, out


def _failure(out: bytes) -> str:
    try:
        failure = msgspec.json.decode(out, type=answers.Failure)
    except msgspec.MsgspecError:
        return out.decode("utf-8", "replace")
    return failure.msg + (f": {failure.details}" if failure.details else "")
