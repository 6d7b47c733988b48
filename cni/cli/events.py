"""`zlayer-cni events`: what happens on the node, one JSON object a line, until it is interrupted. Exit code 0, 1 if the
daemon ended the stream, or 3 without a daemon."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import msgspec

from cni import answers
from cni.cli import ask

ENDED = "end"


def run(run_dir: str) -> int:
    """Print the events; raises NoDaemon, Refused, NeedsRoot."""
    with ask.stream(run_dir, "events") as sock:
        try:
            for line in lines(sock):
                sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()
                if is_end(line):
                    break
        except KeyboardInterrupt:
            return 0
    sys.stderr.write("zlayer-cni: the daemon has ended the stream of events\n")
    return 1


def lines(sock: socket.socket, patience: float | None = None) -> Iterator[bytes]:
    """The lines as they come, without their breaks; ends with the connection. Yields an empty one if none comes for
    `patience` seconds (None: waits)."""
    sock.settimeout(patience)
    rest = b""
    while True:
        try:
            chunk = sock.recv(1 << 16)
        except TimeoutError:
            yield b""
            continue
        except ConnectionError:
            return
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def is_end(line: bytes) -> bool:
    """Whether the line is the last of its stream."""
    return msgspec.json.decode(line, type=answers.EventLine).event == ENDED
