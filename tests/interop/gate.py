"""A gate in front of a daemon: it lets everything through, and does something when a certain operation comes by.

For what must happen between two requests of a plugin, to the moment; the daemon behind it is the real one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def gate(path: str, daemon: str, operation: str, act: Callable[[], None]) -> Iterator[None]:
    """Listen at `path` for the socket `daemon`. `act` is called once, before the first `operation` goes through."""
    sign = f'"op":"{operation}"'.encode()
    armed = [True]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)

    def forward(source: socket.socket, target: socket.socket, watch: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if watch and armed[0] and sign in data:
                    armed[0] = False
                    act()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                behind = socket.socket(socket.AF_UNIX)
                behind.connect(daemon)
                for pair in ((client, behind, True), (behind, client, False)):
                    threading.Thread(target=forward, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
