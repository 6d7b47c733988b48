"""`zlayer-cni overlayd`: start the daemon, open its sockets, and close them on a signal.

SIGTERM, SIGINT and, unless it is ignored (nohup), SIGHUP end the process and leave the data path alone: containers stay
connected, and the next daemon adopts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cni import defaults, last_words, log_files, tempdir_sweeper
from cni.daemon import log_lines, operations, precheck
from cni.daemon import settings as settings_module
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.sync import ClusterSync
from cni.daemon.fence.controller import FenceController
from cni.daemon.fence.watch import Watch
from cni.daemon.lifecycle import Lifecycle
from cni.daemon.mesh.joined_peers import JoinedPeers
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.precheck import STORE_NAME
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile import delete_queue
from cni.daemon.reconcile.mac import MacWatcher
from cni.daemon.reconcile.node import Reconciler
from cni.daemon.reconcile.node_addresses import OwnAddresses
from cni.daemon.reconcile.range_watch import RangeWatch
from cni.daemon.reconcile.ranges import Ranges
from cni.daemon.run_dir import COMING_BACK, DEPUTY, REPLACED, Occupied, RunDirLock
from cni.daemon.server import Server, raise_limits
from cni.daemon.settings import Settings
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Tables
from cni.daemon.supervisor import Supervisor
from cni.errors import CniError, InvalidConfig
from cni.host import netns, process
from cni.host.kernel import Kernel
from cni.host.tunnels import Tunnels
from cni.host.worker import Crew
from cni.printable import one_line

log = logging.getLogger("overlayd")


def main(argv: Sequence[str]) -> int:
    """Run the daemon until a signal or a request ends it. Returns the exit code: 0 ended on request, 1 could not
    start."""
    options = _options(argv)
    process.clean_environment([REPLACED])
    process.return_freed_memory()
    os.umask(0o077)  # only root reads records, logs and keys; files that others may read set their mode explicitly
    if options.deputy_of and process.has_restarted(options.deputy_of, COMING_BACK):
        return 0
    run_dir = options.run_dir or defaults.RUN_DIR
    try:
        settings = _settings(options)
        run_dir = settings.run_dir
        log_lines.begin(settings.log_level, run_dir)
        if options.check or options.take_over:
            precheck.check(settings)  # first: a serving daemon must not be ended for one that cannot start
        if options.check:
            sys.stdout.write("a daemon with these settings can start\n")
        else:
            _serve(settings, options.take_over)
    except CniError as error:
        run_dir = "" if isinstance(error, Occupied) else run_dir  # leave another daemon's run directory alone
        message = f"{error.msg}{': ' + error.details if error.details else ''}"
    except OSError as error:
        message = f"cannot start: {error}"
    except Exception as error:
        log.exception("unexpected error: the daemon ends")
        message = f"unexpected error: {type(error).__name__}, see the log"
    else:
        return 0
    message = one_line(message)
    sys.stderr.write(f"overlayd: {message}\n")
    if run_dir and not options.check:
        last_words.write(run_dir, message)
    return 1


def _serve(settings: Settings, take_over: bool) -> None:
    if reason := os.environ.pop(REPLACED, ""):
        log.error("this daemon takes the place of one that hung: %s", reason)
    with RunDirLock(Path(settings.run_dir), take_over) as run_dir_lock:
        asyncio.run(_run(settings, run_dir_lock))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="zlayer-cni overlayd",
        description="The overlay daemon: addresses, bridges, fences and peers of this node's containers.",
        epilog="SIGTERM ends it and leaves running containers connected; the next one takes over.",
    )
    parser.add_argument("--config", metavar="FILE", help="the YAML to read (see conf/overlayd.yaml)")
    parser.add_argument("--run-dir", metavar="DIR", help=f"sockets and records ({defaults.RUN_DIR})")
    parser.add_argument("--data-dir", metavar="DIR", help=f"identity and keys ({defaults.DATA_DIR})")
    parser.add_argument("--socket", metavar="PATH", help="the overlay protocol's socket (by the data directory)")
    parser.add_argument("--take-over", action="store_true", help="end the daemon that runs on that run directory")
    parser.add_argument("--check", action="store_true", help="check whether a daemon could start with these settings")
    parser.add_argument(DEPUTY, type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _settings(options: argparse.Namespace) -> Settings:
    settings = settings_module.find(options.config, options.data_dir)
    changes = {
        key: value
        for key, value in (
            ("run_dir", options.run_dir),
            ("data_dir", options.data_dir),
            ("overlay_socket", options.socket),
        )
        if value is not None
    }
    for key, value in changes.items():
        if not value.startswith("/"):
            raise InvalidConfig(f"{key}: {value!r} is not an absolute path")
    return msgspec.structs.replace(settings, **changes)


async def _run(settings: Settings, run_dir_lock: RunDirLock) -> None:
    raise_limits()
    store, board, crew = Store(run_dir_lock.run_dir / STORE_NAME), ProblemBoard(), Crew()
    kernel = Kernel(crew)
    state = State(store, settings)
    presence = netns.Presence()
    own = OwnAddresses(state, kernel, presence.alone)
    ranges = Ranges(state, kernel, own, board)
    barrier = FenceController(state, settings, presence.alone, ranges.networks)
    service = OverlayService(
        settings, state, kernel, barrier, alone=presence.alone, board=board, own=own, ranges=ranges, crew=crew
    )
    registry, identity = Tables(store), Identity(settings.data_dir)
    tunnels = Tunnels(settings.run_dir, settings.wireguard_engine)
    mesh = Mesh(service, registry, identity, tunnels, JoinedPeers(settings.data_dir))
    service.mesh = mesh
    context = operations.OperationContext(service, registry, identity, mesh)
    service.teardown_hooks += [lambda: operations.tear_down(context), mesh.tear_down]
    cluster = None
    if settings.cluster is not None:
        accept = settings.cluster.unsigned_nodes == "accept"
        cluster = ClusterSync(service, identity, registry, mesh, settings.cluster.etcd, accept_unsigned=accept)
        service.services.claims = cluster.claims
        service.teardown_hooks.append(cluster.leave)

    supervisor = Supervisor(crew, board, run_dir_lock.replace_daemon, lambda: _notify("WATCHDOG=1"))
    server = Server(context, run_dir_lock, store, supervisor)
    mesh.tell = server.push

    inherited = process.children()

    def drain() -> None:
        process.reap(inherited)
        delete_queue.drain(settings.run_dir, state, server.answer)
        tempdir_sweeper.sweep()
        log_files.bound_all(settings.run_dir)
        operations.sweep(context)
        process.trim_memory()

    reconciler, mac_watcher = Reconciler(service, presence.alone, drain), MacWatcher(service)
    service.followers.append(mac_watcher.watch)

    fence_watch = Watch(
        barrier, service.look_for_obstacles, service.node.repair_forwarding, service.note_repairs, crew=crew
    )
    lifecycle = Lifecycle(
        service, mesh, cluster, reconciler=reconciler, mac_watcher=mac_watcher, fence_watch=fence_watch, drain=drain
    )
    watch = RangeWatch(
        ranges, lifecycle.begin, lifecycle.remove_data_path, lifecycle.apply_ranges, board=board, crew=crew
    )
    await asyncio.to_thread(watch.start)
    supervisor.start()
    loop = asyncio.get_running_loop()
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    for number in (signal.SIGTERM, signal.SIGINT, *hangup):
        loop.add_signal_handler(number, server.stop.set)
    await server.run(functools.partial(_serves, settings.run_dir))
    supervisor.stop()
    watch.stop()
    lifecycle.stop()
    presence.close()
    kernel.close()
    store.close()


def _serves(run_dir: str) -> None:
    """Called when the sockets are open."""
    last_words.clear(run_dir)
    _notify("READY=1")


def _notify(message: str) -> None:
    """Send a message to systemd if systemd started the daemon (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
