"""The CNI socket: a plugin connects, sends a call and a namespace, and prints the reply.

cni/plugin_protocol.py has the frame's constants. Only root may connect. If a client closes its connection
before its ADD is committed, the ADD is undone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from cni import plugin_protocol
from cni.daemon.api import sockets

log = logging.getLogger(__name__)

CHUNK = 1 << 16
PATIENCE = 10.0  # seconds that a client may take to send its request, and to read its reply
MOST_DESCRIPTORS = 4  # descriptors per message; the first one received is used, the rest are closed at once
WAITING = 4096  # clients at a time; further ones wait in the socket's backlog


@dataclass(frozen=True)
class CniRequest:
    """One request: the plugin's environment and the variables it added, its stdin, and the namespace's descriptor.
    `wanted` returns False when the client has closed its connection."""

    env: dict[str, str]
    stdin: bytes
    netns_fd: int | None
    wanted: Callable[[], bool] = field(default=lambda: True)


@dataclass(frozen=True)
class Reply:
    """The plugin's exit code and output."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""


Handler = Callable[[CniRequest], Reply]


class CniSocket:
    """Serves the CNI socket: reads on the event loop, works in threads."""

    def __init__(
        self,
        listener: socket.socket,
        handler: Handler,
        workers: Executor,
        quick: Executor,
        undo: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`quick` serves STATUS alone, so that STATUS does not wait behind slow calls. `undo` is called with the
        attempt of an ADD that succeeded and whose plugin was killed before its runtime had the result."""
        self._undo = undo
        self._listener = listener
        self._handler = handler
        self._workers = workers
        self._quick = quick
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(WAITING)

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._slots.release()
                log.warning("cannot accept a plugin's connection: %s", error)
                await asyncio.sleep(0.05)
                continue
            task = loop.create_task(self._client(client))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def finish(self, seconds: float) -> None:
        """Wait up to `seconds` for the running calls to finish."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def _client(self, client: socket.socket) -> None:
        fds: list[int] = []
        try:
            client.setblocking(False)
            if not sockets.is_root(client):
                return
            body = await asyncio.wait_for(_receive(client, fds), PATIENCE)
            if body is not None:
                await self._answer(client, body, fds)
        except (TimeoutError, OSError) as error:
            log.debug("a plugin's connection ended: %r", error)
        finally:
            for fd in fds:
                os.close(fd)
            client.close()

    async def _answer(self, client: socket.socket, body: bytes, fds: list[int]) -> None:
        request = parse(body, fds[0] if fds else None, lambda: _still_there(client))
        if request is None:
            return
        loop = asyncio.get_running_loop()
        pool = self._quick if request.env.get("CNI_COMMAND") == "STATUS" else self._workers
        reply = await loop.run_in_executor(pool, self._handler, request)
        head = f"{reply.code} {len(reply.stdout)}\n".encode()
        answer = head + reply.stdout + reply.stderr
        delivered = reply.code != 0 or plugin_protocol.CONFIRMS not in request.env
        try:
            await asyncio.wait_for(loop.sock_sendall(client, struct.pack(">I", len(answer)) + answer), PATIENCE)
            delivered = delivered or await asyncio.wait_for(_confirmed(client), PATIENCE)
        except TimeoutError:
            delivered = True  # the plugin is alive and slow: its runtime may have the result, or may still get it
        except OSError:
            log.debug("a plugin closed its connection before it had its reply")
        if not delivered:
            await loop.run_in_executor(pool, self._undo, request.env.get(plugin_protocol.ATTEMPT, ""))


async def _receive(client: socket.socket, fds: list[int]) -> bytes | None:
    """The body of one request, None if the client closed early or sends more than LARGEST. The first descriptor is
    appended to `fds`."""
    data = bytearray()
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        await _readable(client)
        try:
            chunk, received, _, _ = socket.recv_fds(client, CHUNK, MOST_DESCRIPTORS)
        except BlockingIOError:
            continue
        for fd in received:
            if fds:
                os.close(fd)
            else:
                fds.append(fd)
        if not chunk:
            return None
        data += chunk
        if len(data) >= 4 and int.from_bytes(data[:4], "big") > plugin_protocol.LARGEST:
            log.warning("a plugin's request is larger than %d bytes", plugin_protocol.LARGEST)
            return None
    return bytes(data[4:])


async def _confirmed(client: socket.socket) -> bool:
    """Wait for the plugin's byte that confirms that its runtime has the result; False if the plugin ends without it."""
    await _readable(client)
    try:
        return client.recv(1) != b""
    except OSError:
        return False


async def _readable(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(client, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(client)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def parse(body: bytes, fd: int | None, wanted: Callable[[], bool]) -> CniRequest | None:
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
    return CniRequest(env, stdin, fd, wanted)


def _still_there(client: socket.socket) -> bool:
    """Whether the client still waits for its reply. May be called from any thread."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno == errno.EINTR
