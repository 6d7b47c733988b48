"""The daemon's two sockets: the server opens them, opens them again when their files are deleted, and closes them.

Clients find a socket by its path. A socket whose file was deleted or replaced gets no new connections: existing
connections stay open, and the server opens a new socket. The run directory's lock and the records are restored in the
same way (`run_dir.py`, `state/store.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cni import __version__, plugin_protocol
from cni.daemon import operations
from cni.daemon.api import cni_socket, overlay_socket, sockets, tool
from cni.daemon.api.event_stream import EventStream
from cni.daemon.api.plugin_calls import PluginCalls
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.events import PeerChanged
from cni.daemon.metrics.endpoint import MetricsEndpoint
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.run_dir import RunDirLock, file_identity
from cni.daemon.settings import Settings
from cni.daemon.state.store import Store
from cni.daemon.supervisor import Supervisor
from cni.errors import CniError, StateUnusable
from cni.host.worker import Crew

log = logging.getLogger(__name__)

WORKERS = 24  # threads for the requests of agents; most of the time they wait for the kernel
SHUTDOWN_GRACE = 10.0  # seconds that running calls have to finish after SIGTERM
WATCH = 0.5  # seconds between two checks of the daemon's own files
DESCRIPTORS = 65536  # many times the connection limits of both sockets together


class Server:
    """Connects the sockets to what answers their requests. Runs on the event loop; requests are answered in threads."""

    def __init__(
        self,
        *,
        settings: Settings,
        metrics: MetricsEndpoint,
        plugin_calls: PluginCalls,
        tool_context: ToolContext,
        event_stream: EventStream,
        operation_context: operations.OperationContext,
        lock: RunDirLock,
        store: Store,
        supervisor: Supervisor,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        self._settings, self._board = settings, board
        self._plugin_calls, self._tool_context, self._operation_context = plugin_calls, tool_context, operation_context
        self._supervisor, self._metrics, self._event_stream = supervisor, metrics, event_stream
        self._loop_worker = crew.worker("event-loop", None)
        self._lock = lock
        self._store = store
        self._path = lock.run_dir / plugin_protocol.SOCKET_NAME
        self._workers = ThreadPoolExecutor(WORKERS, "call")
        self._quick = ThreadPoolExecutor(2, "status")
        self._agent_workers = ThreadPoolExecutor(WORKERS, "agent")
        self._agent_quick = ThreadPoolExecutor(2, "ask")
        self._cni_sockets: list[tuple[sockets.Listener, cni_socket.CniSocket]] = []
        self._overlay_sockets: list[tuple[sockets.Listener, overlay_socket.OverlaySocket]] = []
        self._last_error = ""
        self.stop = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Open the sockets, call `ready`, and serve until `stop` is set.

        Raises OSError if the CNI socket cannot be opened.
        """
        self._open_cni_socket()
        await self._open_overlay_socket()
        await self._metrics.open()
        log.info("zlayer-cni %s serves %s", __version__, self._path)
        ready()
        loop = asyncio.get_running_loop()
        background = [loop.create_task(self._watch()), loop.create_task(self._beat())]
        await self.stop.wait()
        self._loop_worker.retire()
        for task in background:
            task.cancel()
        await self._metrics.close()
        self._event_stream.close()
        log.info("ending; running containers stay connected")
        for listener, cni in self._cni_sockets:
            cni.close()
            listener.remove()
        finishing = [asyncio.to_thread(cni.finish, SHUTDOWN_GRACE) for _, cni in self._cni_sockets]
        await asyncio.gather(*finishing, *(overlay.close(SHUTDOWN_GRACE) for _, overlay in self._overlay_sockets))

    # --- sockets -----------------------------------------------------------------------------------------------------

    def _open_cni_socket(self) -> None:
        """Open the socket that plugins and the operator's tool connect to. Raises OSError."""
        listener = sockets.listen(str(self._path), 0o600)
        cni = cni_socket.CniSocket(listener.sock, self._answer, self._plugin_calls.undo)
        cni.start()
        self._cni_sockets.append((listener, cni))

    async def _open_overlay_socket(self) -> None:
        """Open the overlay socket for agents. If another daemon has a socket at that path, that socket stays, and
        `status` reports the problem."""
        path = overlay_socket.socket_of(self._settings)
        try:
            listener = sockets.listen(path, overlay_socket.MODE, sockets.GROUP)
        except OSError as error:
            self._set_closed_problem(f"the overlay socket is closed: {path}: {error.strerror}")
            return
        self._set_closed_problem("")
        overlay = overlay_socket.OverlaySocket(
            listener,
            lambda request: operations.carry_out(request, self._operation_context),
            self._agent_workers,
            self._agent_quick,
            quick_requests=operations.QUICK,
            end=self.stop.set,
        )
        await overlay.open()
        self._overlay_sockets.append((listener, overlay))
        log.info("agents are served at %s", path)

    def on_peer_changed(self, event: PeerChanged) -> None:
        """Tell every connected agent. Never blocks; may be called from any thread."""
        for _, overlay in tuple(self._overlay_sockets):
            overlay.push(event.message)

    def _answer(self, request: cni_socket.CniRequest) -> cni_socket.Reply:
        """Carry out one request of a plugin or of the operator's tool."""
        if request.env.get(plugin_protocol.TOOL) == "events":
            return self._event_stream.reply()
        if plugin_protocol.TOOL in request.env:
            return cni_socket.Reply(*tool.answer(request.env, self._tool_context))
        return self._plugin_calls.answer(request)

    def _set_closed_problem(self, note: str) -> None:
        self._board.set("overlay-socket-closed", "", note)

    async def _beat(self) -> None:
        """Send the event loop's heartbeat to the supervisor, and restart the supervisor's thread if it ended."""
        while True:
            self._loop_worker.beat(WATCH)
            self._supervisor.check()
            await asyncio.sleep(WATCH)

    # --- files of the run directory ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH)
            try:
                await self._restore_files()
                self._last_error = ""
            except StateUnusable as error:
                log.error("%s: %s", error.msg, error.details)
                self.stop.set()
            except (OSError, CniError) as error:
                if self._last_error != str(error):
                    log.error("deleted files of %s cannot be restored: %s", self._lock.run_dir, error)
                self._last_error = str(error)

    async def _restore_files(self) -> None:
        """Restore deleted files of the run directory: the lock first, the sockets last.

        Raises StateUnusable if another daemon has the run directory now, OSError.
        """
        if not self._lock.held():
            log.warning(
                "the run directory %s was deleted or replaced: taking it again",
                self._lock.run_dir,
            )
            await asyncio.to_thread(self._lock.retake)
            log.warning("the lock of the run directory %s is taken again", self._lock.run_dir)
        if not self._store.intact():
            await asyncio.to_thread(self._store.rewrite)
            log.warning("the records at %s were changed from outside: they were written anew", self._store.path)
        if not self._cni_sockets[-1][0].is_there():
            log.warning("the socket %s is gone: opening another", self._path)
            listener, cni = self._cni_sockets[-1]
            self._open_cni_socket()
            cni.close()
            listener.sock.close()
        await self._metrics.restore()
        if not self._overlay_sockets or not self._overlay_sockets[-1][0].is_there():
            path = overlay_socket.socket_of(self._settings)
            if file_identity(Path(path)) is None:
                await self._open_overlay_socket()


def raise_limits() -> None:
    """Raise the limit of file descriptors to `DESCRIPTORS`; and those of processor time, file size and memory, which a
    runtime may have for itself, unless a service manager has set them for the daemon (setrlimit(2))."""
    _raise(resource.RLIMIT_NOFILE, DESCRIPTORS)
    if not os.environ.get("NOTIFY_SOCKET"):
        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_DATA):
            _raise(kind, resource.RLIM_INFINITY)


def _raise(kind: int, value: int) -> None:
    """Raise a soft limit to the hard limit, and the hard limit to `value` where the process has the privilege."""
    hard = resource.getrlimit(kind)[1]
    for limit in (value if value == resource.RLIM_INFINITY else max(hard, value), hard):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):
            continue
        return
