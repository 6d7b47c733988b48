"""The overlay door: ZLayer's protocol on a socket, for agents (contract 1).

One answer per request, in order, on each connection; connections are served side by side. A frame that is none closes
its own connection and no other; a failed operation is an `err`, and the connection goes on. Reading and writing happen
on the event loop, work in threads; who sends half a frame, or does not read, costs one waiting task.
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
LARGE = 1 << 16  # bytes of a frame above which it is decoded in a thread: the loop has others to serve
STALLED = 60.0  # seconds without a byte inside a frame, or of an answer nobody reads, after which a client is given up
MOST_PENDING = 1 << 28  # bytes of unfinished frames that all clients together may have lying here
MOST_CLIENTS = 1 << 14  # connections at a time, where that leaves half of our descriptors for everything else
MOST_EVENTS = 1 << 16  # bytes of events that may wait for a client; further ones are dropped

Handler = Callable[[wire.AnyRequest], wire.AnyReply]


def socket_of(settings: Settings) -> str:
    """Where the door is: as the settings say, else by ZLayer's rule for the data directory (contract 1.3), with our own
    default directory standing for ZLayer's."""
    if settings.overlay_socket is not None:
        return settings.overlay_socket
    if settings.data_dir == defaults.DATA_DIR:
        return overlay_sockets.DEFAULT_SOCKET
    return overlay_sockets.socket_path(settings.data_dir, os.geteuid(), os.environ.get("HOME"))


class OverlaySocket:
    """Serves one listening socket. Everything but the handler runs on the event loop it is started on."""

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
        """`quick` carries out `quick_requests`, so that they do not wait behind attaches; `end` is called after a
        shutdown has been answered."""
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
        """Accept from now on."""
        self._loop = asyncio.get_running_loop()
        self._most = min(MOST_CLIENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._server = await asyncio.start_unix_server(
            self._enter, sock=self._listener.sock, limit=CHUNK, backlog=sockets.BACKLOG
        )

    async def close(self, seconds: float) -> None:
        """Let nobody in any more, give running requests `seconds` to be answered, and hang up on everybody."""
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
        """Tell every client. Never waits: who does not read loses it. May be called from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it every client
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
                log.warning("a client that is neither root nor of group %s was turned away", sockets.GROUP)
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
        """Whether one more client may stay: the runtimes' door lives on the same descriptors."""
        full = len(self._clients) >= self._most
        if full and not self._full:
            log.warning("clients are turned away: there are %d connections", self._most)
        self._full = full
        return not full

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        framer = Framer()
        pending = 0  # bytes of a frame that is not whole yet
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
                    log.warning("a connection was closed: too many unfinished frames lie here")
                    return
        finally:
            self._pending -= pending

    async def _answer(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Carry out one frame and write the answer; True if it was a shutdown."""
        loop = asyncio.get_running_loop()
        if len(body) > LARGE:
            asked = await loop.run_in_executor(self._workers, wire.decode_request_frame, body)
        else:
            asked = wire.decode_request_frame(body)
        if asked is None:
            log.info("a client sent a frame that is no request; ignored")
            return False
        pool = self._quick if isinstance(asked.request, self._quick_requests) else self._workers
        reply = await loop.run_in_executor(pool, self._handler, asked.request)
        writer.write(_spell(asked.id, reply))
        await asyncio.wait_for(writer.drain(), STALLED)
        return isinstance(asked.request, wire.Shutdown)


def _spell(number: int, reply: wire.AnyReply) -> bytes:
    """The answer's frame; one that cannot be sent is told as an error, for every request has its answer."""
    try:
        return frame(wire.encode(wire.ResponseFrame(number, reply)))
    except (CodecError, FrameTooLarge) as error:
        return frame(wire.encode(wire.ResponseFrame(number, wire.Err(f"the answer cannot be sent: {error}"))))


def _socket_of(writer: asyncio.StreamWriter) -> socket.socket:
    # asyncio hands out a view of the socket; options can be read through it.
    found: socket.socket = writer.get_extra_info("socket")
    return found


def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close; what has been written still goes out, unless the client does not read."""
    if writer.transport.get_write_buffer_size() > 0:
        asyncio.get_running_loop().call_later(STALLED, writer.transport.abort)
    writer.close()
