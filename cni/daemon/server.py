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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cni import __version__, tempdir_sweeper, verbs
from cni.daemon import operations
from cni.daemon.api import cni_socket, overlay_socket, sockets, tool
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.run_dir import SOCKET_NAME, RunDirLock, file_identity
from cni.daemon.state.store import Store
from cni.daemon.supervisor import Supervisor
from cni.errors import CniError, InvalidConfig, StateUnusable
from cni.host import netns
from cni.host.process_exit import ExitWatcher
from cni.netconf.request import version_of
from cni.netconf.result import render_error
from cni.overlay import wire

log = logging.getLogger(__name__)

WORKERS = 24  # threads for ADD, DEL, CHECK, GC; most of the time they wait for the kernel
SHUTDOWN_GRACE = 10.0  # seconds that running calls have to finish after SIGTERM
WATCH = 0.5  # seconds between two checks of the daemon's own files
DESCRIPTORS = 65536  # many times the connection limits of both sockets together


class Server:
    """Connects the sockets to the service. Runs on the event loop; `answer` is called in threads."""

    def __init__(
        self, context: operations.OperationContext, lock: RunDirLock, store: Store, supervisor: Supervisor
    ) -> None:
        self._context = context
        self._supervisor = supervisor
        self._loop_worker = context.service.crew.worker("event-loop", None)
        self._service: OverlayService = context.service
        self._lock = lock
        self._store = store
        self._path = lock.run_dir / SOCKET_NAME
        self._workers = ThreadPoolExecutor(WORKERS, "call")
        self._quick = ThreadPoolExecutor(2, "status")
        self._agent_workers = ThreadPoolExecutor(WORKERS, "agent")
        self._agent_quick = ThreadPoolExecutor(2, "ask")
        self._cni_sockets: list[tuple[sockets.Listener, cni_socket.CniSocket, asyncio.Task[None]]] = []
        self._overlay_sockets: list[tuple[sockets.Listener, overlay_socket.OverlaySocket]] = []
        self._exit_watcher = ExitWatcher(context.service.crew)
        self._last_error = ""
        self.stop = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Open the sockets, call `ready`, and serve until `stop` is set.

        Raises OSError if the CNI socket cannot be opened.
        """
        self._open_cni_socket()
        await self._open_overlay_socket()
        log.info("zlayer-cni %s serves %s", __version__, self._path)
        ready()
        loop = asyncio.get_running_loop()
        background = [loop.create_task(self._watch()), loop.create_task(self._beat())]
        await self.stop.wait()
        self._loop_worker.retire()
        for task in background:
            task.cancel()
        log.info("ending; running containers stay connected")
        for listener, _, accepting in self._cni_sockets:
            accepting.cancel()
            listener.remove()
        finishing = [cni.finish(SHUTDOWN_GRACE) for _, cni, _ in self._cni_sockets]
        await asyncio.gather(*finishing, *(overlay.close(SHUTDOWN_GRACE) for _, overlay in self._overlay_sockets))
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._exit_watcher.close()

    # --- sockets -----------------------------------------------------------------------------------------------------

    def _open_cni_socket(self) -> None:
        """Open the socket that plugins and the operator's tool connect to. Raises OSError."""
        listener = sockets.listen(str(self._path), 0o600)
        cni = cni_socket.CniSocket(listener.sock, self.answer, self._workers, self._quick, self._service.undo_attempt)
        self._cni_sockets.append((listener, cni, asyncio.get_running_loop().create_task(cni.serve())))

    async def _open_overlay_socket(self) -> None:
        """Open the overlay socket for agents. If another daemon has a socket at that path, that socket stays, and
        `status` reports the problem."""
        path = overlay_socket.socket_of(self._service.settings)
        try:
            listener = sockets.listen(path, overlay_socket.MODE, sockets.GROUP)
        except OSError as error:
            self._set_closed_problem(f"the overlay door is closed: {path}: {error.strerror}")
            return
        self._set_closed_problem("")
        overlay = overlay_socket.OverlaySocket(
            listener,
            lambda request: operations.carry_out(request, self._context),
            self._agent_workers,
            self._agent_quick,
            quick_requests=operations.QUICK,
            end=self.stop.set,
        )
        await overlay.open()
        self._overlay_sockets.append((listener, overlay))
        log.info("agents are served at %s", path)

    def push(self, event: wire.AnyEvent) -> None:
        """Send the event to every connected agent. Never blocks; may be called from any thread."""
        for _, overlay in tuple(self._overlay_sockets):
            overlay.push(event)

    def _set_closed_problem(self, note: str) -> None:
        self._service.board.set("overlay-door-closed", "", note)

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
            listener, _, accepting = self._cni_sockets[-1]
            self._open_cni_socket()
            accepting.cancel()
            await asyncio.wait([accepting])
            listener.sock.close()
        if not self._overlay_sockets or not self._overlay_sockets[-1][0].is_there():
            path = overlay_socket.socket_of(self._service.settings)
            if file_identity(Path(path)) is None:
                await self._open_overlay_socket()

    # --- one call ----------------------------------------------------------------------------------------------------

    def answer(self, request: cni_socket.CniRequest) -> cni_socket.Reply:
        """Carry out one request of a plugin or of the operator's tool."""
        if "TOOL" in request.env:
            code, output = tool.answer(request.env, self._service)
            return cni_socket.Reply(code, output)
        tempdir_sweeper.note(request.env.get("UNPACKED", ""))
        refusal = netns_mismatch(request.env, self._service.kernel.own)
        if refusal is not None:
            return cni_socket.Reply(1, f"{render_error(refusal, version_of(request.stdin))}\n".encode())
        result = verbs.serve(request.env, request.stdin, request.netns_fd, self._service, request.wanted)
        if request.env.get("CNI_COMMAND") == "ADD" and result.code == 0:
            self._watch_plugin_exit(request)
        return cni_socket.Reply(result.code, result.stdout.encode(), result.stderr.encode("utf-8", "replace"))

    def _watch_plugin_exit(self, request: cni_socket.CniRequest) -> None:
        """Undo the ADD if its plugin process exits with an error.

        An ADD succeeds only if the process that the runtime started exits with 0. A plugin that was killed after it
        printed its result has failed, and the runtime need not call DEL (CNI 1.1.0, section 2).
        """
        pid, _, started = request.env.get("WHOSE", "").partition(":")
        if pid.isdigit() and started.isdigit() and int(started):
            attempt = request.env.get("ATTEMPT", "")
            self._exit_watcher.watch(int(pid), int(started), lambda: self._service.undo_attempt(attempt))


def netns_mismatch(env: Mapping[str, str], own: netns.NetnsId) -> InvalidConfig | None:
    """The error (7) for a call whose plugin runs in another network namespace than this daemon: the container would be
    attached to the daemon's network, not to its runtime's. None for a call from the daemon's own namespace, from a
    plugin that could not determine its namespace, and for DEL, which only removes. Pure."""
    plugin_netns = env.get("OWN_NETNS", "")
    if plugin_netns in ("", f"{own.dev}:{own.ino}") or env.get("CNI_COMMAND") == "DEL":
        return None
    return InvalidConfig(
        f"the plugin runs in the network namespace net:[{plugin_netns.partition(':')[2]}], the overlay daemon in "
        f"net:[{own.ino}] (process {os.getpid()}): a container would be attached to another host's network",
        "run both in one network namespace, or set runDir and dataDir to those of a daemon in the plugin's",
    )


def raise_limits() -> None:
    """Raise the soft limit of file descriptors to the hard limit, and the hard limit to `DESCRIPTORS` where the
    process has the privilege (setrlimit(2))."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (max(hard, DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError):
            continue
        return
