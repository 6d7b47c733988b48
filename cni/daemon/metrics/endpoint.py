"""Serves the metrics by HTTP: at a Unix socket in the run directory always, at an address if the YAML names one.

The event loop reads the request and writes the answer; one thread reads the node, so that scrapes that come together
wait for one another and not for an attach. prometheus-client is imported by the first scrape.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cni import defaults
from cni.daemon.api import overlay_socket, sockets
from cni.daemon.metrics.reading import Reader
from cni.daemon.problem_board import ProblemBoard

log = logging.getLogger(__name__)

LONGEST = 8192  # bytes of a request
PATIENCE = 10.0  # seconds that a client may take to send its request, and to read the answer
MOST = 16  # connections at a time; further ones are closed
PROBLEM = "metrics-closed"


@dataclass(frozen=True, slots=True)
class Request:
    """The first line of an HTTP request, and its header Accept."""

    method: str
    path: str
    accept: str = ""


def parse(raw: bytes) -> Request | None:
    """The request in `raw`, up to the empty line; None if it is not one of HTTP. Pure."""
    first, *headers = raw.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    fields = (line.partition(":") for line in headers)
    accept = next((value.strip() for name, _, value in fields if name.lower() == "accept"), "")
    return Request(words[0], words[1].partition("?")[0], accept)


def answer(status: str, content_type: str, body: bytes, with_body: bool = True) -> bytes:
    """An HTTP answer after which the connection ends. Pure."""
    headers = (f"Content-Type: {content_type}", f"Content-Length: {len(body)}", "Connection: close")
    head = "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode()
    return head + (body if with_body else b"")


def refusal(request: Request | None) -> tuple[str, bytes] | None:
    """Status and text for a request that is not for the metrics; None if it is. Pure."""
    if request is None:
        return "400 Bad Request", b"this is no HTTP request\n"
    if request.path != "/metrics":
        return "404 Not Found", b"the metrics are at /metrics\n"
    if request.method not in ("GET", "HEAD"):
        return "405 Method Not Allowed", b"GET or HEAD\n"
    return None


class MetricsEndpoint:
    """The sockets at which metrics are served. All methods run on the event loop."""

    def __init__(self, reader: Reader, board: ProblemBoard, run_dir: str, listen: str | None) -> None:
        """`listen`: `host:port`, a host of IPv6 in brackets; None for the Unix socket alone."""
        self._reader, self._board, self._listen = reader, board, listen
        self._path = str(Path(run_dir) / defaults.METRICS_SOCKET)
        self._thread = ThreadPoolExecutor(1, "scrape")
        self._listener: sockets.Listener | None = None
        self._servers: list[asyncio.Server] = []
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open both sockets. What cannot be opened is a problem, and the daemon runs without it."""
        await self._open("the metrics socket", self._path, self._open_unix)
        if self._listen is not None:
            await self._open("metrics.listen", self._listen, self._open_tcp)

    async def restore(self) -> None:
        """Open the Unix socket again if its file is gone."""
        if self._listener is not None and not self._listener.is_there():
            await self._open("the metrics socket", self._path, self._open_unix)

    async def close(self) -> None:
        """Close the sockets and every connection."""
        if self._listener is not None:
            self._listener.remove()
        for server in self._servers:
            server.close()
        for task in list(self._clients):
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _open(self, what: str, where: str, work: Callable[[], object]) -> None:
        text = ""
        try:
            await work()  # type: ignore[misc]
        except (OSError, ValueError) as error:
            text = f"{what} is closed: {where}: {getattr(error, 'strerror', None) or error}"
        self._board.set(PROBLEM, what, text)

    async def _open_unix(self) -> None:
        self._listener = sockets.listen(self._path, overlay_socket.MODE, sockets.GROUP)
        self._servers.append(await asyncio.start_unix_server(self._enter, sock=self._listener.sock, limit=LONGEST))

    async def _open_tcp(self) -> None:
        host, _, port = (self._listen or "").rpartition(":")
        self._servers.append(await asyncio.start_server(self._enter, host.strip("[]"), int(port), limit=LONGEST))
        log.info("metrics are served at http://%s/metrics", self._listen)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._clients) < MOST:
                self._clients.add(task)
                async with asyncio.timeout(PATIENCE):
                    await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            log.debug("a client of the metrics was not served: %r", error)
        finally:
            self._clients.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = parse((await reader.readuntil(b"\r\n\r\n"))[:-4])
        refused = refusal(request)
        if refused is not None or request is None:
            status, text = refused or ("400 Bad Request", b"")
            writer.write(answer(status, "text/plain; charset=utf-8", text))
        else:
            loop = asyncio.get_running_loop()
            scraped = await loop.run_in_executor(self._thread, self._scrape, request.accept)
            writer.write(answer(*scraped, with_body=request.method == "GET"))
        await writer.drain()

    def _scrape(self, accept: str) -> tuple[str, str, bytes]:
        """Status, content type and body. Never raises."""
        try:
            from cni.daemon.metrics import families

            return "200 OK", *families.render(self._reader.read(), accept)
        except Exception as error:
            log.exception("unexpected error in a scrape of the metrics")
            text = f"internal error: {type(error).__name__}; the daemon's log has the rest\n"
            return "500 Internal Server Error", "text/plain; charset=utf-8", text.encode()
