"""Serves the page: one thread for each connection, a bounded number of them. It reads, and changes nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import NoReturn

from cni.cli.ui import http
from cni.cli.ui.live import Live
from cni.cli.ui.page import PAGE, POLICY

MOST = 32  # connections at once
PATIENCE = 10.0  # seconds for the head of a request, and for each write
KEEP = 15.0  # seconds after which an empty line tells whether a page is still open


class Server:
    """Serves one daemon's page at one listener."""

    def __init__(self, listener: socket.socket, key: str, live: Live) -> None:
        """`key`: what the path of every request begins with; "" for none."""
        self._listener, self._key, self._live = listener, key, live
        self._port = None if listener.family == socket.AF_UNIX else int(listener.getsockname()[1])
        self._room = threading.BoundedSemaphore(MOST)

    def serve(self) -> NoReturn:
        """Answer until the process is told to end. Raises OSError."""
        while True:
            client, _ = self._listener.accept()
            if not self._room.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                client.settimeout(PATIENCE)
                self._answer(client)
        finally:
            self._room.release()

    def _answer(self, client: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = client.recv(4096)
            data += part
            if not part or len(data) > http.LONGEST:
                return
        request = http.parse(data[: data.index(b"\r\n\r\n") + 4])
        status = http.refusal(request, self._key, self._port)
        if status or request is None:
            body = f"{status}\n".encode()
            client.sendall(http.head(status, "text/plain", len(body), POLICY) + body)
            return
        is_live = http.below(request.path, self._key) == http.LIVE
        length = None if is_live else len(PAGE)
        client.sendall(http.head("200 OK", "text/event-stream" if is_live else "text/html", length, POLICY))
        if request.method == "GET":
            if is_live:
                self._stream(client)
            else:
                client.sendall(PAGE)

    def _stream(self, client: socket.socket) -> None:
        self._live.opened()
        try:
            number = 0
            while True:
                now, text = self._live.after(number, KEEP)
                client.sendall(b": still there\n\n" if now == number else b"data: " + text + b"\n\n")
                number = now
        finally:
            self._live.closed()


def at_address(address: str, port: int) -> socket.socket:
    """A listener at a loopback address. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock


def at_path(path: str) -> socket.socket:
    """A listener at a Unix socket that this user alone may open, in place of one without a server. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _forget(path)
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock


def _forget(path: str) -> None:
    """Remove a socket without a server. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except FileNotFoundError:
            pass
