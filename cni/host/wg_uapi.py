"""WireGuard's text protocol to a userspace engine (wireguard.com/xplatform), over its Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cni.host.wg_types import PeerChange, PeerSeen, Reading, raw, text
from cni.peer_credentials import Peer

PATIENCE = 20.0  # seconds of silence in a change, which may be of thousands of peers
BRIEFLY = 5.0  # seconds of silence in an answer to a question
ELSEWHERE = -1  # in place of a PID: a process in another PID namespace, which has none here
_SINCE = 1_000_000_000  # Unix seconds are above this since 2001; boringtun reports seconds since the handshake instead


class Uapi:
    """The devices whose control sockets are in one directory."""

    def __init__(self, directory: str = "/var/run/wireguard") -> None:
        self.directory = directory

    def path(self, name: str) -> str:
        """The path of the device's control socket."""
        return f"{self.directory}/{name}.sock"

    def read(self, name: str) -> Reading | None:
        """The device; None if it has no engine. Raises OSError; TimeoutError if the engine does not answer."""
        try:
            return parse(self._exchange(name, "get=1\n\n", BRIEFLY))
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    def write(self, name: str, private_key: bytes | None, port: int | None, changes: Sequence[PeerChange]) -> None:
        """Set the given values; the others stay. Raises OSError with the engine's error number; the changes before the
        failure have taken effect."""
        self._exchange(name, render(private_key, port, changes), PATIENCE)

    def owner(self, name: str) -> int:
        """The PID of the device's engine (SO_PEERCRED); 0 if there is none, ELSEWHERE for one in another PID
        namespace."""
        try:
            with self._connect(name) as sock:
                return Peer(sock).pid or ELSEWHERE
        except (FileNotFoundError, ConnectionRefusedError):
            return 0

    def _connect(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(self.path(name))
        except BaseException:
            sock.close()
            raise
        return sock

    def _exchange(self, name: str, request: str, patience: float) -> str:
        with self._connect(name) as sock:
            sock.settimeout(patience)
            try:
                answer = _request(sock, request)
            except TimeoutError as error:
                raise TimeoutError(errno.ETIMEDOUT, f"the engine of {name} does not answer") from error
        if not answer.endswith("\n\n"):
            raise OSError(errno.EPIPE, f"the engine of {name} hung up")
        code = int(answer.rstrip("\n").rpartition("errno=")[2] or 0)
        if code:
            raise OSError(abs(code), f"the engine of {name} refused: {os.strerror(abs(code))}")
        return answer


def _request(sock: socket.socket, request: str) -> str:
    """Send a request and return the answer, up to the empty line that ends it, or until the engine hangs up."""
    sock.sendall(request.encode())
    answer = bytearray()
    while not answer.endswith(b"\n\n") and (data := sock.recv(1 << 16)):
        answer += data
    return answer.decode(errors="replace")


def render(private_key: bytes | None, port: int | None, changes: Sequence[PeerChange]) -> str:
    """A `set` request."""
    lines = ["set=1"]
    if private_key is not None:
        lines.append(f"private_key={private_key.hex()}")
    if port is not None:
        lines.append(f"listen_port={port}")
    for change in changes:
        lines += _peer_lines(change)
    return "\n".join(lines) + "\n\n"


def _peer_lines(change: PeerChange) -> Iterator[str]:
    yield f"public_key={raw(change.public_key).hex()}"
    if change.remove:
        yield "remove=true"
        return
    if change.endpoint:
        yield f"endpoint={change.endpoint}"
    if change.keepalive is not None:
        yield f"persistent_keepalive_interval={change.keepalive}"
    if change.replace:
        yield "replace_allowed_ips=true"
    for cidr in change.allowed_ips:
        yield f"allowed_ip={cidr}"


def parse(answer: str, now: float | None = None) -> Reading:
    """The answer to a `get`. Unknown keys are skipped."""
    private, port, mark = b"", 0, 0
    peer_fields: list[dict[str, list[str]]] = []
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        if key == "public_key":
            peer_fields.append({key: [value]})
        elif peer_fields:
            peer_fields[-1].setdefault(key, []).append(value)
        elif key == "private_key":
            private = bytes.fromhex(value)
        elif key == "listen_port":
            port = int(value)
        elif key == "fwmark":
            mark = int(value, 0)
    peers = [_peer(fields, time.time() if now is None else now) for fields in peer_fields]
    return Reading(private, port, {peer.public_key: peer for peer in peers}, mark)


def _peer(fields: dict[str, list[str]], now: float) -> PeerSeen:
    def number(key: str) -> int:
        return int(fields.get(key, ["0"])[-1])

    handshake = number("last_handshake_time_sec")
    return PeerSeen(
        public_key=text(bytes.fromhex(fields["public_key"][0])),
        endpoint=fields.get("endpoint", [""])[-1],
        allowed_ips=frozenset(fields.get("allowed_ip", ())),
        keepalive=number("persistent_keepalive_interval"),
        last_handshake=handshake if handshake == 0 or handshake > _SINCE else int(now) - handshake,
        received=number("rx_bytes"),
        sent=number("tx_bytes"),
    )


def remove_socket(path: str) -> None:
    """Remove the socket file; the engine that listens on it ends then."""
    Path(path).unlink(missing_ok=True)
