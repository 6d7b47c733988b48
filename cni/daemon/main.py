"""`zlayer-cni overlayd`: start the daemon, open its doors, and close them when told to.

SIGTERM and SIGINT end the process and leave the data path alone: containers go on, and the next daemon adopts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from cni import __version__, leftovers, verbs
from cni.daemon import backlog, operations
from cni.daemon import settings as settings_module
from cni.daemon.books.identity import Identity
from cni.daemon.books.registry import Registry
from cni.daemon.books.state import State
from cni.daemon.books.store import Store
from cni.daemon.doors import cni_door, overlay_door, sockets, tool
from cni.daemon.fence.barrier import Barrier
from cni.daemon.keeper import Keeper
from cni.daemon.mesh.cluster import Cluster
from cni.daemon.mesh.joined import Joined
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.service import OverlayService
from cni.daemon.settings import Settings
from cni.errors import CniError, StateUnusable
from cni.host import netns, process
from cni.host.kernel import Kernel
from cni.host.tunnels import Tunnels

log = logging.getLogger("overlayd")

WORKERS = 24  # threads for ADD, DEL, CHECK, GC; most of the time they wait for the kernel
DYING = 2.0  # seconds that a killed daemon may take to come out of the kernel
FAREWELL = 10.0  # seconds that running calls get to come to their end at SIGTERM
PRESENCE = "zlayer-cni.overlayd"  # what daemons of ours call themselves in a network namespace
LOCK_NAME, PID_NAME, STORE_NAME = "overlayd.lock", "overlayd.pid", "state.db"


def main(argv: Sequence[str]) -> int:
    """Run the daemon until it is told to end; returns the exit code (0 asked to end, 1 could not start)."""
    options = _options(argv)
    process.give_memory_back()
    os.umask(0o077)  # records, logs and keys are root's alone; what others may see says so itself
    try:
        settings = _settings(options)
        _logging(settings.log_level)
        run_dir = Path(settings.run_dir)
        run_dir.mkdir(0o755, parents=True, exist_ok=True)
        with _only_one(run_dir):
            asyncio.run(_run(settings))
    except CniError as error:
        _say(error.msg, error.details)
        return 1
    except OSError as error:
        _say("cannot start", str(error))
        return 1
    except Exception as error:
        log.exception("the daemon ends for a reason nobody foresaw")
        _say("internal error", f"{type(error).__name__}: {error}")
        return 1
    return 0


def _say(msg: str, details: str) -> None:
    sys.stderr.write(f"overlayd: {msg}{': ' + details if details else ''}\n")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="zlayer-cni overlayd",
        description="The overlay daemon: addresses, bridges, fences and peers of this node's containers.",
        epilog="SIGTERM ends it and leaves running containers connected; the next one takes over.",
    )
    parser.add_argument("--config", metavar="FILE", help="the YAML to read (see conf/overlayd.yaml)")
    parser.add_argument("--run-dir", metavar="DIR", help=f"sockets and records ({settings_module.DEFAULT_RUN_DIR})")
    parser.add_argument("--data-dir", metavar="DIR", help=f"identity and keys ({settings_module.DEFAULT_DATA_DIR})")
    parser.add_argument("--socket", metavar="PATH", help="the overlay protocol's socket (by the data directory)")
    return parser.parse_args(argv)


def _settings(options: argparse.Namespace) -> Settings:
    found = settings_module.find(options.config, options.data_dir)
    changes = {
        key: value
        for key, value in (
            ("run_dir", options.run_dir),
            ("data_dir", options.data_dir),
            ("overlay_socket", options.socket),
        )
        if value is not None
    }
    return msgspec.structs.replace(found, **changes)


def _logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)


@contextlib.contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's lock: two daemons on one set of records would undo each other."""
    lock = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    pid = run_dir / PID_NAME
    try:
        end = time.monotonic() + DYING
        while not _locked(lock):
            if time.monotonic() > end or not process.is_ending(_holder(pid)):
                raise StateUnusable(f"another overlay daemon runs on {run_dir}", f"process {_holder(pid)}")
            time.sleep(0.01)
        pid.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            pid.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(pid: Path) -> int:
    """The process that wrote its number into the file, 0 if nobody did."""
    try:
        return int(pid.read_text())
    except (OSError, ValueError):
        return 0


async def _run(settings: Settings) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    run_dir = Path(settings.run_dir)
    store = Store(run_dir / STORE_NAME)
    kernel = Kernel()
    state = State(store, settings)
    presence = netns.Presence(PRESENCE)
    service = OverlayService(settings, state, kernel, Barrier(state, settings, presence.alone), presence.alone)
    registry, identity = Registry(store), Identity(settings.data_dir)
    tunnels = Tunnels(settings.run_dir, settings.wireguard_engine)
    mesh = Mesh(service, registry, identity, tunnels, Joined(settings.data_dir))
    service.mesh = mesh
    desk = operations.Desk(service, registry, identity, mesh)
    service.farewells += [lambda: operations.tear_down(desk), mesh.tear_down]
    cluster = None
    if settings.cluster is not None:
        cluster = Cluster(service, identity, registry, mesh, settings.cluster.etcd)
        service.services.claims = cluster.claims
        service.farewells.append(cluster.leave)
        mesh.others.append(cluster.problems)
        await asyncio.to_thread(cluster.prepare)

    def drain() -> None:
        backlog.drain(settings.run_dir, state, lambda knock: _handle(knock, service))
        leftovers.sweep()
        operations.sweep(desk)

    keeper = Keeper(service, presence.alone, drain)
    await asyncio.to_thread(service.start)
    await asyncio.to_thread(keeper.adopt)
    await asyncio.to_thread(mesh.start)
    if cluster is not None:
        cluster.start()
    await asyncio.to_thread(drain)
    keeper.start()
    await _serve(settings, service, desk)
    keeper.stop()
    if cluster is not None:
        cluster.stop()
    mesh.stop()
    kernel.close()
    store.close()


async def _serve(settings: Settings, service: OverlayService, desk: operations.Desk) -> None:
    """Open the doors, say so, and wait for the signal that closes them."""
    path = Path(settings.run_dir) / "cni.sock"
    workers = ThreadPoolExecutor(WORKERS, "call")
    quick = ThreadPoolExecutor(2, "status")
    knocker = sockets.listen(str(path), 0o600)
    door = cni_door.CniDoor(knocker.sock, lambda k: _handle(k, service), workers, quick, service.take_back)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agents = await _open_overlay_door(desk, stop.set)
    serving = loop.create_task(door.serve())
    log.info("zlayer-cni %s serves %s", __version__, path)
    _notify("READY=1")
    await stop.wait()
    log.info("ending; running containers stay connected")
    serving.cancel()
    knocker.remove()
    await asyncio.gather(door.finish(FAREWELL), *([agents.close(FAREWELL)] if agents is not None else []))
    workers.shutdown(wait=False, cancel_futures=True)
    quick.shutdown(wait=False, cancel_futures=True)


async def _open_overlay_door(desk: operations.Desk, end: Callable[[], None]) -> overlay_door.OverlayDoor | None:
    """The door for agents. Where another daemon has its socket that one is left in peace, and `status` says so."""
    path = overlay_door.socket_of(desk.service.settings)
    try:
        listener = sockets.listen(path, overlay_door.MODE, sockets.GROUP)
    except OSError as error:
        desk.service.notes.append(f"the overlay door is closed: {path}: {error.strerror}")
        log.warning("no overlay door for agents: %s", error)
        return None
    door = overlay_door.OverlayDoor(
        listener,
        lambda request: operations.carry_out(request, desk),
        ThreadPoolExecutor(WORKERS, "agent"),
        ThreadPoolExecutor(2, "ask"),
        quick_requests=operations.QUICK,
        end=end,
    )
    await door.open()
    log.info("agents are served at %s", path)
    return door


def _handle(knock: cni_door.Knock, service: OverlayService) -> cni_door.Reply:
    if "TOOL" in knock.env:
        code, said = tool.answer(knock.env, service)
        return cni_door.Reply(code, said)
    spoken = verbs.serve(knock.env, knock.stdin, knock.netns_fd, service, knock.wanted)
    return cni_door.Reply(spoken.code, spoken.stdout.encode(), spoken.stderr.encode("utf-8", "replace"))


def _notify(message: str) -> None:
    """Tell systemd, where it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
