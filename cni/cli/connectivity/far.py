"""Another node's part in a test: one connection to its node address, and the namespaces that it attaches for it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from cni import defaults

CONTROL = defaults.CONNECTIVITY_PORT
LONGEST = 60.0  # seconds that the other node keeps its namespaces
_MOST = 1 << 16


@dataclass(frozen=True)
class FarBox:
    """A namespace on the other node. `network`: its isolation network, None for the flat mesh."""

    name: str
    network: str | None
    addresses: tuple[str, ...]
    mtu: int


class FarNode:
    """The open connection to a node that takes part; the other node removes its namespaces when it is closed."""

    def __init__(self, sock: socket.socket, boxes: tuple[FarBox, ...], skew: float) -> None:
        """`skew`: by how many seconds its clock is ahead of this node's."""
        self._sock, self.boxes, self.skew = sock, boxes, skew

    def close(self) -> None:
        """End the other node's part. Idempotent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Refused(Exception):
    """The other node does not take part; the text says why."""


def open_node(address: str, tag: str, network: str, seconds: float) -> FarNode:
    """Ask the node at `address` to take part, with a namespace on the flat mesh and one in `network`. Raises Refused,
    OSError: ConnectionRefusedError if it accepts no test."""
    sock = socket.create_connection((address, CONTROL), seconds)
    try:
        sock.settimeout(seconds + 20)
        sock.sendall(json.dumps({"test": 1, "tag": tag, "network": network}).encode() + b"\n")
        sent = time.time()
        answer = json.loads(read_line(sock))
        skew = float(answer.get("time", sent)) - (sent + time.time()) / 2 + float(answer.get("took", 0)) / 2
        if answer.get("error"):
            raise Refused(str(answer["error"]))
        return FarNode(sock, tuple(_box(each) for each in answer["boxes"]), skew)
    except (KeyError, TypeError, ValueError) as error:
        sock.close()
        raise Refused(f"it answers as another version does: {error}") from error
    except BaseException:
        sock.close()
        raise


def _box(each: Any) -> FarBox:
    return FarBox(str(each["name"]), each["network"], tuple(map(str, each["addresses"])), int(each["mtu"]))


def read_line(sock: socket.socket) -> bytes:
    """One line, of at most 64 KiB. Raises OSError, ConnectionError at an early end."""
    data = b""
    while not data.endswith(b"\n"):
        part = sock.recv(4096)
        if not part or len(data) > _MOST:
            raise ConnectionResetError("the connection ended early")
        data += part
    return data
