"""Servers in containers that tell each client their name and the client's address, and clients that ask them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from tests.mesh.fleet import SLOW, Container, inside

from .objects import TARGET

WAIT = 2.5 * SLOW  # seconds: a neighbour request that is lost is sent again after one


class Listeners:
    """TCP and UDP, IPv4 and IPv6, of every container that was added."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, "")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def add(self, container: Container) -> None:
        """The container answers from now on."""
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for family, address in ((socket.AF_INET, container.address), (socket.AF_INET6, container.address6)):
                ear = container.socket(kind, family)
                ear.bind((address, TARGET))
                if kind == socket.SOCK_STREAM:
                    ear.listen(64)
                ear.setblocking(False)
                self._selector.register(ear, selectors.EVENT_READ, container.name)
        self._waker.send(b"x")

    def close(self) -> None:
        """End every server."""
        self._waker.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ear = key.fileobj
                assert isinstance(ear, socket.socket)
                if ear is self._wake:
                    if not ear.recv(100):
                        return
                    continue
                with contextlib.suppress(OSError):
                    _answer(ear, key.data)


def _answer(ear: socket.socket, name: str) -> None:
    if ear.type == socket.SOCK_DGRAM:
        _, peer = ear.recvfrom(100)
        ear.sendto(f"{name} {peer[0]}".encode(), peer)
        return
    speaker, peer = ear.accept()
    with speaker:
        speaker.sendall(f"{name} {peer[0]}".encode())


def ask(netns: str, address: str, port: int, udp: bool = False, wait: float = WAIT) -> str:
    """Who answers there, and as whom it sees the client; "" for no answer, `refused` for a refusal. `netns`: the path
    of the client's network namespace.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    with inside(netns, lambda: socket.socket(family, kind)) as sock:
        sock.settimeout(wait)
        try:
            sock.connect((address, port))
            if udp:
                sock.send(b"hello")
            return sock.recv(200).decode()
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return ""
