"""The daemon's two doors: opened, opened again where somebody deleted them, and closed.

A socket is found by its path. One whose file is gone, or another's, hears nobody any more: what is connected stays so,
and a new one takes its place, as the run directory's lock and records do (`run_dir.py`, `state/store.py`).
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
SHUTDOWN_GRACE = 10.0  # seconds that running calls get to come to their end at SIGTERM
WATCH = 0.5  # seconds between two looks at our own files
DESCRIPTORS = 65536  # as many as two crowds of idle clients need, many times over


class Server:
    """Everything between the sockets and the service. On the event loop; `answer` is called in threads."""

    def __init__(
        self, context: operations.OperationContext, premises: RunDirLock, store: Store, supervisor: Supervisor
    ) -> None:
        self._desk = context
        self._supervisor = supervisor
        self._loop_worker = context.service.crew.worker("event-loop", None)
        self._service: OverlayService = context.service
        self._premises = premises
        self._store = store
        self._path = premises.run_dir / SOCKET_NAME
        self._workers = ThreadPoolExecutor(WORKERS, "call")
        self._quick = ThreadPoolExecutor(2, "status")
        self._agent_workers = ThreadPoolExecutor(WORKERS, "agent")
        self._agent_quick = ThreadPoolExecutor(2, "ask")
        self._doors: list[tuple[sockets.Listener, cni_socket.CniSocket, asyncio.Task[None]]] = []
        self._agents: list[tuple[sockets.Listener, overlay_socket.OverlaySocket]] = []
        self._ends = ExitWatcher(context.service.crew)
        self._said = ""
        self.stop = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Open the doors, call `ready`, and serve until `stop` is set. Raises OSError where the first cannot be."""
        self._open()
        await self._open_for_agents()
        log.info("zlayer-cni %s serves %s", __version__, self._path)
        ready()
        loop = asyncio.get_running_loop()
        background = [loop.create_task(self._watch()), loop.create_task(self._beat())]
        await self.stop.wait()
        self._loop_worker.retire()
        for task in background:
            task.cancel()
        log.info("ending; running containers stay connected")
        for listener, _, accepting in self._doors:
            accepting.cancel()
            listener.remove()
        finishing = [door.finish(SHUTDOWN_GRACE) for _, door, _ in self._doors]
        await asyncio.gather(*finishing, *(door.close(SHUTDOWN_GRACE) for _, door in self._agents))
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._ends.close()

    # --- the doors ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """The plugins' door. Raises OSError."""
        listener = sockets.listen(str(self._path), 0o600)
        door = cni_socket.CniSocket(listener.sock, self.answer, self._workers, self._quick, self._service.take_back)
        self._doors.append((listener, door, asyncio.get_running_loop().create_task(door.serve())))

    async def _open_for_agents(self) -> None:
        """The door for agents. Where another daemon has its socket that one is left in peace, and `status` says so."""
        path = overlay_socket.socket_of(self._service.settings)
        try:
            listener = sockets.listen(path, overlay_socket.MODE, sockets.GROUP)
        except OSError as error:
            self._tell_closed(f"the overlay door is closed: {path}: {error.strerror}")
            return
        self._tell_closed("")
        door = overlay_socket.OverlaySocket(
            listener,
            lambda request: operations.carry_out(request, self._desk),
            self._agent_workers,
            self._agent_quick,
            quick_requests=operations.QUICK,
            end=self.stop.set,
        )
        await door.open()
        self._agents.append((listener, door))
        log.info("agents are served at %s", path)

    def push(self, event: wire.AnyEvent) -> None:
        """Tell every agent. Never waits; may be called from any thread."""
        for _, door in tuple(self._agents):
            door.push(event)

    def _tell_closed(self, note: str) -> None:
        self._service.board.set("overlay-door-closed", "", note)

    async def _beat(self) -> None:
        """The event loop's heartbeat, and a look at the one who listens to it."""
        while True:
            self._loop_worker.beat(WATCH)
            self._supervisor.check()
            await asyncio.sleep(WATCH)

    # --- our files ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH)
            try:
                await self._look()
                self._said = ""
            except StateUnusable as error:
                log.error("%s: %s", error.msg, error.details)
                self.stop.set()
            except (OSError, CniError) as error:
                if self._said != str(error):
                    log.error("what was taken out of %s cannot be put back: %s", self._premises.run_dir, error)
                self._said = str(error)

    async def _look(self) -> None:
        """Put back what somebody took: the lock first, the doors last. Raises StateUnusable if we may not, OSError."""
        if not self._premises.held():
            log.warning("the run directory %s was taken away: making it ours again", self._premises.run_dir)
            await asyncio.to_thread(self._premises.retake)
            log.warning("the run directory %s is ours again", self._premises.run_dir)
        if not self._store.intact():
            await asyncio.to_thread(self._store.rewrite)
            log.warning("somebody laid hands on the records at %s: they were written anew", self._store.path)
        if not self._doors[-1][0].is_there():
            log.warning("the socket %s is gone: opening another", self._path)
            listener, _, accepting = self._doors[-1]
            self._open()
            accepting.cancel()
            await asyncio.wait([accepting])
            listener.sock.close()
        if not self._agents or not self._agents[-1][0].is_there():
            path = overlay_socket.socket_of(self._service.settings)
            if file_identity(Path(path)) is None:
                await self._open_for_agents()

    # --- one call ----------------------------------------------------------------------------------------------------

    def answer(self, request: cni_socket.CniRequest) -> cni_socket.Reply:
        """Carry out what a plugin, or the operator's tool, asks."""
        if "TOOL" in request.env:
            code, said = tool.answer(request.env, self._service)
            return cni_socket.Reply(code, said)
        tempdir_sweeper.note(request.env.get("UNPACKED", ""))
        stray = elsewhere(request.env, self._service.kernel.own)
        if stray is not None:
            return cni_socket.Reply(1, f"{render_error(stray, version_of(request.stdin))}\n".encode())
        spoken = verbs.serve(request.env, request.stdin, request.netns_fd, self._service, request.wanted)
        if request.env.get("CNI_COMMAND") == "ADD" and spoken.code == 0:
            self._follow(request)
        return cni_socket.Reply(spoken.code, spoken.stdout.encode(), spoken.stderr.encode("utf-8", "replace"))

    def _follow(self, request: cni_socket.CniRequest) -> None:
        """An ADD counts if the process that the runtime started ends well: one that was killed after it had printed
        its result has failed, whatever it printed, and the runtime need not call DEL (CNI 1.1.0, section 2)."""
        pid, _, started = request.env.get("WHOSE", "").partition(":")
        if pid.isdigit() and started.isdigit() and int(started):
            attempt = request.env.get("ATTEMPT", "")
            self._ends.watch(int(pid), int(started), lambda: self._service.take_back(attempt))


def elsewhere(env: Mapping[str, str], own: netns.NetnsId) -> InvalidConfig | None:
    """The refusal (7) of a call whose plugin runs in another network namespace than this daemon: the container would
    hang on the daemon's network, and not on that of its runtime. None for a call from here, from a plugin that could
    not tell, and for DEL, which takes away what is there. Pure."""
    said = env.get("OWN_NETNS", "")
    if said in ("", f"{own.dev}:{own.ino}") or env.get("CNI_COMMAND") == "DEL":
        return None
    return InvalidConfig(
        f"the plugin runs in the network namespace net:[{said.partition(':')[2]}], the overlay daemon in "
        f"net:[{own.ino}] (process {os.getpid()}): a container would be attached to another host's network",
        "run both in one network namespace, or set runDir and dataDir to those of a daemon in the plugin's",
    )


def raise_limits() -> None:
    """As many descriptors as we may have, and more where we may ask for more (setrlimit(2))."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (max(hard, DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError):
            continue
        return
