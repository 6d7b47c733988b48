"""The CNI socket: a plugin connects, sends a call and a namespace, and prints the reply.

cni/plugin_protocol.py has the frame's constants. Only root may connect. If a client closes its connection
before its ADD is committed, the ADD is undone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from cni import plugin_protocol
from cni.daemon.api import sockets
from cni.daemon.api.incoming import Incoming, SlowClients

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a client may take to read its reply
AT_ONCE = 24  # calls that change the node at a time; most of the time they wait for the kernel
SPARE = 24  # threads that wait for a connection; further ones end
MOST = 256  # calls at a time; further ones wait in the socket's backlog
SILENT = 4096  # connections at a time whose request is not complete; further ones are closed
STALLED = 60.0  # seconds that a client may leave a stream unread
_PATIENCE, _STALLED = (struct.pack("@ll", int(seconds), 0) for seconds in (PATIENCE, STALLED))  # struct timeval


@dataclass(frozen=True)
class CniRequest:
    """One request: the plugin's environment and the variables it added, its stdin, and the namespace's descriptor.
    `caller_waits` returns False when the client has closed its connection."""

    env: dict[str, str]
    stdin: bytes
    netns_fd: int | None
    caller_waits: Callable[[], bool] = field(default=lambda: True)


@dataclass(frozen=True)
class Reply:
    """The plugin's exit code and output. `more`: what is sent after it for as long as the client stays; an empty piece
    only asks whether it is still there."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    more: Generator[bytes] | None = None


Handler = Callable[[CniRequest], Reply]


class CniSocket:
    """Serves the CNI socket by threads that block: each accepts a connection, reads, works and answers.

    A call passes through no event loop and no queue between threads, which took 60 % of the time of an ADD in which the
    interpreter lock was held. A thread that accepts a connection starts another if no other thread waits for one, up
    to MOST; more than SPARE waiting threads end. The listener is a blocking socket.
    """

    def __init__(self, listener: socket.socket, handler: Handler, undo: Callable[[str], None] = lambda _: None) -> None:
        """`undo` is called with the attempt of an ADD that succeeded and whose plugin was killed before its runtime had
        the result."""
        self._undo = undo
        self._listener = listener
        self._handler = handler
        self._lock = threading.Lock()
        self._waiting, self._threads = 0, 0
        self._idle = threading.Condition(self._lock)
        self._at_once = threading.BoundedSemaphore(AT_ONCE)
        self._late = threading.BoundedSemaphore(MOST)
        self._slow = SlowClients(self._serve_late, SILENT)
        self._closed = False

    def start(self) -> None:
        """Begin to accept connections."""
        self._listener.setblocking(True)
        with self._lock:
            self._add_thread()

    def close(self) -> None:
        """Accept no more connections; running calls go on."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the threads that block in accept (unix(7) on Linux)

    def finish(self, seconds: float) -> None:
        """After `close`: wait up to `seconds` for the running calls to finish."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._threads and (left := deadline - time.monotonic()) > 0:
                self._idle.wait(left)

    def _add_thread(self) -> None:
        """Start a thread that waits for a connection; called with the lock. Where the system refuses one, the threads
        that are there accept further connections after their calls."""
        try:
            threading.Thread(target=self._serve, name="call", daemon=True).start()
        except RuntimeError as error:
            log.warning("cannot start a thread for plugins' calls: %s", error)
            return
        self._threads += 1
        self._waiting += 1

    def _serve(self) -> None:
        try:
            while self._accept():
                pass
        finally:
            with self._lock:
                self._threads -= 1
                self._idle.notify_all()

    def _accept(self) -> bool:
        """Serve one connection; returns whether the thread goes on."""
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if self._closed or error.errno in (errno.EBADF, errno.EINVAL):
                return False
            log.warning("cannot accept a plugin's connection: %s", error)
            time.sleep(0.05)
            return True
        with self._lock:
            self._waiting -= 1
            if not self._waiting and self._threads < MOST:
                self._add_thread()
        try:
            self._client(client)
        except Exception:
            log.exception("unexpected error in a connection of the CNI socket")
        with self._lock:
            if self._waiting >= SPARE:
                return False
            self._waiting += 1
        return True

    def _client(self, client: socket.socket) -> None:
        """Serve a connection whose request comes at once; the slow ones wait together, and are served when they are
        complete."""
        if not sockets.is_root(client):
            client.close()
            return
        incoming = Incoming(client)
        try:
            if incoming.wait():
                self._answer(incoming)
            elif self._slow.take(incoming):
                return
            else:
                log.warning("too many clients of the CNI socket are silent: one is refused")
        except OSError as error:
            log.debug("a plugin's connection ended: %r", error)
        except BaseException:
            incoming.close()
            raise
        incoming.close()

    def _serve_late(self, incoming: Incoming) -> None:
        """Serve a slow client's complete request in a thread of its own, at most MOST at a time; without a thread, in
        the one that waits for the slow clients."""
        self._late.acquire()
        with self._lock:
            self._threads += 1
        thread = threading.Thread(target=self._answer_late, args=(incoming,), name="late-call", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._answer_late(incoming)

    def _answer_late(self, incoming: Incoming) -> None:
        try:
            self._answer(incoming)
        except OSError as error:
            log.debug("a plugin's connection ended: %r", error)
        except Exception:
            log.exception("unexpected error in a connection of the CNI socket")
        finally:
            incoming.close()
            self._late.release()
            with self._lock:
                self._threads -= 1
                self._idle.notify_all()

    def _answer(self, incoming: Incoming) -> None:
        client = incoming.client
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        request = parse(incoming.body, incoming.fds[0] if incoming.fds else None, lambda: _still_there(client))
        if request is None:
            return
        reply = self._handle(request)
        answer = b"%d %d\n" % (reply.code, len(reply.stdout)) + reply.stdout + reply.stderr
        delivered = reply.code != 0 or plugin_protocol.CONFIRMS not in request.env
        try:
            client.sendall(struct.pack(">I", len(answer)) + answer)
            delivered = delivered or client.recv(1) != b""
        except BlockingIOError:
            delivered = True  # the plugin is alive and slow: its runtime may have the result, or may still get it
        except OSError:
            log.debug("a plugin closed its connection before it had its reply")
        if reply.more is not None:
            _send_more(client, reply.more)
        if not delivered:
            self._undo(request.env.get(plugin_protocol.ATTEMPT, ""))

    def _handle(self, request: CniRequest) -> Reply:
        """Carry out the request; STATUS and the tool do not wait behind the calls that change the node."""
        if request.env.get("CNI_COMMAND") in ("STATUS", None):
            return self._handler(request)
        with self._at_once:
            return self._handler(request)


def parse(body: bytes, fd: int | None, caller_waits: Callable[[], bool]) -> CniRequest | None:
    """The request in `body`, None if it is malformed. Bytes that are not UTF-8 are kept as surrogates."""
    head, separator, stdin = body.partition(b"\0\0")
    lines = head.split(b"\0")
    if not separator or lines[0] != plugin_protocol.MAGIC:
        log.warning("malformed request on the CNI socket")
        return None
    env = {}
    for line in lines[1:]:
        key, _, value = line.partition(b"=")
        env[key.decode("ascii", "replace")] = value.decode("utf-8", "surrogateescape")
    return CniRequest(env, stdin, fd, caller_waits)


def _send_more(client: socket.socket, pieces: Generator[bytes]) -> None:
    """Send what follows a reply, until it ends or the client has gone. Raises OSError."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _STALLED)
    with contextlib.closing(pieces):
        for piece in pieces:
            if piece:
                client.sendall(piece)
            elif not _still_there(client):
                return


def _still_there(client: socket.socket) -> bool:
    """Whether the client still waits for its reply. May be called from any thread."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno == errno.EINTR
