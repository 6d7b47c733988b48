"""A FAKE of the daemon's end of the CNI door, and the program that knocks at it.

The real daemon cannot be made to hang, to die over one request, to answer with 2 MiB, or to tell afterwards what
bytes it was sent. This one can; it attaches nothing. What the plugin and the real daemon do together is shown by
test_autostart.py and the black-box suite.
"""

import array
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Request:
    """One request as it came off the wire."""

    pairs: dict[bytes, bytes]
    stdin: bytes
    netns: tuple[int, int] | None
    """(st_dev, st_ino) of the descriptor that came along."""
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set when the client is gone before it got an answer."""


Behaviour = Callable[[Request], bytes | None]
"""From a request to the raw body of the answer; None hangs up without one."""


def answer(code: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> bytes:
    """The body of an answer as the daemon writes it."""
    return b"%d %d\n" % (code, len(stdout)) + stdout + stderr


class FakeDoor:
    """Listens at `<run directory>/cni.sock`; behaves as told, one behaviour a request, the last one for ever."""

    def __init__(self, run_dir: Path, *behaviours: Behaviour) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "cni.sock"
        self.requests: list[Request] = []
        self.arrived = threading.Semaphore(0)
        self._behaviours = list(behaviours) or [lambda _: answer()]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(100)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._client, args=(client,), daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        with client:
            request = _read(client)
            if request is None:
                return
            with self._lock:
                self.requests.append(request)
                behave = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
            threading.Thread(target=_watch, args=(client.dup(), request), daemon=True).start()
            self.arrived.release()
            body = behave(request)
            with suppress(OSError):
                if body is not None:
                    client.sendall(len(body).to_bytes(4, "big") + body)
                client.shutdown(socket.SHUT_RDWR)  # The watcher holds a copy of the descriptor.


def _watch(client: socket.socket, request: Request) -> None:
    with client:
        try:
            gone = client.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            gone = True
        if gone:
            request.hung_up.set()


def _read(client: socket.socket) -> Request | None:
    data, fds = b"", array.array("i")
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        part, received, _, _ = socket.recv_fds(client, 1 << 16, 4)
        fds.extend(received)
        if not part:
            return None
        data += part
    netns = None
    for fd in fds:
        status = os.fstat(fd)
        netns = (status.st_dev, status.st_ino)
        os.close(fd)
    magic, rest = data[4:10], data[10:]
    assert magic == b"zcni1\0"
    pairs = {}
    while not rest.startswith(b"\0"):
        pair, _, rest = rest.partition(b"\0")
        key, _, pairs[key] = pair.partition(b"=")
    return Request(pairs, rest[1:], netns)


@dataclass
class Program:
    """One form of the program, to be run as a runtime would."""

    form: str
    argv: list[str]
    env: dict[str, str]

    def environment(self, command: str | None, **more: str | bytes) -> dict[bytes, bytes]:
        """A runtime's environment: no HOME, no PATH, nothing but the call."""
        env: dict[str, str | bytes] = dict(self.env)
        if command is not None:
            env["CNI_COMMAND"] = command
        if command in ("ADD", "DEL", "CHECK"):
            env |= {"CNI_CONTAINERID": "cafe01", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/net"}
        elif command == "GC":
            env["CNI_PATH"] = "/opt/cni/bin"
        return {os.fsencode(k): os.fsencode(v) for k, v in (env | more).items() if v is not None}

    def run(self, command: str | None, stdin: bytes = b"", **more: str | bytes) -> subprocess.CompletedProcess[bytes]:
        """Run one verb to its end."""
        env = self.environment(command, **more)
        return subprocess.run(self.argv, env=env, input=stdin, capture_output=True, timeout=60, check=False)

    def start(self, command: str, given: bytes, **options: Any) -> subprocess.Popen[bytes]:
        """Start one verb and hand it its stdin."""
        process: subprocess.Popen[bytes] = subprocess.Popen(
            self.argv,
            env=self.environment(command),
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        if process.stdin is not None:
            process.stdin.write(given)
            process.stdin.close()
            process.stdin = None
        return process


def hang(until: threading.Event, seconds: float = 60.0) -> None:
    """A behaviour that answers nothing until the event is set, for so many seconds at most."""
    until.wait(seconds)


@contextmanager
def opened(run_dir: Path, *behaviours: Behaviour) -> Iterator[FakeDoor]:
    """A fake door for as long as the block lasts."""
    door = FakeDoor(run_dir, *behaviours)
    try:
        yield door
    finally:
        door.close()
