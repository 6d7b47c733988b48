"""The overlay socket: ZLayer's protocol on a Unix socket, for agents (contract 1).

Each connection gets one reply per request, in order; connections are served concurrently. A malformed frame closes its
own connection and no other; a failed operation is an `err` reply, and the connection stays open. The event loop reads
and writes, threads carry out operations; a client that sends half a frame, or does not read, costs one waiting task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from collections.abc import Callable
from concurrent.futures import Executor

from cni import defaults
from cni.daemon.api import sockets
from cni.daemon.settings import Settings
from cni.overlay import sockets as overlay_sockets
from cni.overlay import wire
from cni.overlay.errors import CodecError, FrameTooLarge, TruncatedFrame
from cni.overlay.framing import Framer, frame

log = logging.getLogger(__name__)

MODE = 0o660
CHUNK = 1 << 16
LARGE = 1 << 16  # bytes: a larger frame is decoded in a thread, so that the event loop serves other clients
STALLED = 60.0  # seconds without progress of a frame, or of an unread reply, after which a connection is closed
MOST_PENDING = 1 << 28  # bytes of unfinished frames that all clients together may have buffered
MOST_CLIENTS = 1 << 14  # connections at a time, and at most half of the daemon's descriptors
MOST_EVENTS = 1 << 16  # bytes of events that may be buffered for a client; further events are dropped

Handler = Callable[[wire.AnyRequest], wire.AnyReply]


def socket_of(settings: Settings) -> str:
    """The socket's path: the settings' value, else ZLayer's rule for the data directory (contract 1.3). zlayer-cni's
    default data directory counts as ZLayer's default there."""
    if settings.overlay_socket is not None:
        return settings.overlay_socket
    if settings.data_dir == defaults.DATA_DIR:
        return overlay_sockets.DEFAULT_SOCKET
    return overlay_sockets.socket_path(settings.data_dir, os.geteuid(), os.environ.get("HOME"))


class OverlaySocket:
    """Serves one listening socket. Everything except the handler runs on the event loop that calls `open`."""

    def __init__(
        self,
        listener: sockets.Listener,
        handler: Handler,
        workers: Executor,
        quick: Executor,
        *,
        quick_requests: tuple[type, ...] = (),
        end: Callable[[], None] = lambda: None,
    ) -> None:
        """`quick` carries out `quick_requests`, so that they do not wait behind attaches. `end` is called after the
        reply to a shutdown."""
        self._listener = listener
        self._handler = handler
        self._workers = workers
        self._quick = quick
        self._quick_requests = quick_requests
        self._end = end
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._busy: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._closing = False
        self._most = MOST_CLIENTS
        self._full = False

    async def open(self) -> None:
        """Start accepting connections."""
        self._loop = asyncio.get_running_loop()
        self._most = min(MOST_CLIENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._server = await asyncio.start_unix_server(
            self._enter, sock=self._listener.sock, limit=CHUNK, backlog=sockets.BACKLOG
        )

    async def close(self, seconds: float) -> None:
        """Stop accepting, wait up to `seconds` for the replies to running requests, and close every connection."""
        self._closing = True
        self._listener.remove()
        if self._server is not None:
            self._server.close()
        idle = [task for task in self._clients if task not in self._busy]
        for task in idle:
            task.cancel()
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=seconds)
        rest = list(self._clients)
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=1.0)

    # --- events ------------------------------------------------------------------------------------------------------

    def push(self, event: wire.AnyEvent) -> None:
        """Send the event to every client. Never blocks: a client that does not read loses the event. Thread-safe."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, and every connection with it
                self._loop.call_soon_threadsafe(self._push, frame(wire.encode(event)))

    def _push(self, data: bytes) -> None:
        for writer in self._clients.values():
            transport = writer.transport
            if not transport.is_closing() and transport.get_write_buffer_size() + len(data) <= MOST_EVENTS:
                writer.write(data)

    # --- one client --------------------------------------------------------------------------------------------------

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if not sockets.may_enter(_socket_of(writer)):
                log.warning("refused a client that is neither root nor in group %s", sockets.GROUP)
                return
            if not self._has_room():
                return
            self._clients[task] = writer
            await self._converse(reader, writer, task)
        except (CodecError, FrameTooLarge, TruncatedFrame) as error:
            log.info("a connection was closed: %s", error)
        except TimeoutError:
            log.warning("a connection was closed: nothing moved for %.0f s", STALLED)
        except OSError as error:
            log.debug("a connection ended: %s", error)
        except asyncio.CancelledError:
            log.debug("a connection was closed: the daemon ends")
        finally:
            self._clients.pop(task, None)
            self._busy.discard(task)
            _hang_up(writer)

    def _has_room(self) -> bool:
        """Whether one more client may connect: the CNI socket needs descriptors of the same limit."""
        full = len(self._clients) >= self._most
        if full and not self._full:
            log.warning("refusing clients: there are %d connections", self._most)
        self._full = full
        return not full

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        framer = Framer()
        pending = 0  # bytes of an incomplete frame
        try:
            while not self._closing:
                data = await asyncio.wait_for(reader.read(CHUNK), STALLED if pending else None)
                if not data:
                    framer.eof()
                    return
                framer.feed(data)
                pending += len(data)
                self._pending += len(data)
                self._busy.add(task)
                while (body := framer.next_frame()) is not None:
                    taken = len(frame(b"")) + len(body)
                    pending -= taken
                    self._pending -= taken
                    if await self._answer(body, writer):
                        self._end()
                        return
                self._busy.discard(task)
                if self._pending > MOST_PENDING:
                    log.warning("a connection was closed: too many bytes of unfinished frames are buffered")
                    return
        finally:
            self._pending -= pending

    async def _answer(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Carry out one frame and write the reply; True if it was a shutdown."""
        loop = asyncio.get_running_loop()
        if len(body) > LARGE:
            asked = await loop.run_in_executor(self._workers, wire.decode_request_frame, body)
        else:
            asked = wire.decode_request_frame(body)
        if asked is None:
            log.info("ignored a frame that is no request")
            return False
        pool = self._quick if isinstance(asked.request, self._quick_requests) else self._workers
        reply = await loop.run_in_executor(pool, self._handler, asked.request)
        writer.write(_encode(asked.id, reply))
        await asyncio.wait_for(writer.drain(), STALLED)
        return isinstance(asked.request, wire.Shutdown)


def _encode(number: int, reply: wire.AnyReply) -> bytes:
    """The reply's frame; a reply that cannot be encoded becomes an error reply, because every request gets a reply."""
    try:
        return frame(wire.encode(wire.ResponseFrame(number, reply)))
    except (CodecError, FrameTooLarge) as error:
        return frame(wire.encode(wire.ResponseFrame(number, wire.Err(f"the answer cannot be sent: {error}"))))


def _socket_of(writer: asyncio.StreamWriter) -> socket.socket:
    # asyncio returns a view of the socket; options can be read through it.
    sock: socket.socket = writer.get_extra_info("socket")
    return sock


def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close; buffered data is still sent, unless the client does not read for `STALLED` seconds."""
    if writer.transport.get_write_buffer_size() > 0:
        asyncio.get_running_loop().call_later(STALLED, writer.transport.abort)
    writer.close()
