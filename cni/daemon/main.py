"""`zlayer-cni overlayd`: start the daemon, open its sockets, and close them on a signal.

SIGTERM, SIGINT and, unless it is ignored (nohup), SIGHUP end the process and leave the data path alone: containers stay
connected, and the next daemon adopts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from cni import defaults, last_words, plugin_protocol
from cni.daemon import app, log_lines, precheck
from cni.daemon.parts import node_name
from cni.daemon.run_dir import COMING_BACK, DEPUTY, REPLACED, Occupied, RunDirLock
from cni.daemon.server import raise_limits
from cni.daemon.settings import Settings
from cni.daemon.settings_file import SettingsFile
from cni.errors import CniError, InvalidConfig
from cni.host import process
from cni.printable import one_line

log = logging.getLogger("overlayd")


def main(argv: Sequence[str]) -> int:
    """Run the daemon until a signal or a request ends it. Returns the exit code: 0 ended on request, 1 could not
    start."""
    options = parser().parse_args(argv)
    gc.disable()  # until the daemon serves: a start makes objects, and hardly any garbage
    process.clean_environment([REPLACED])
    process.return_freed_memory()
    raise_limits()
    os.umask(0o077)  # only root reads records, logs and keys; files that others may read set their mode explicitly
    if options.deputy_of and process.has_restarted(options.deputy_of, COMING_BACK):
        return 0
    run_dir = options.run_dir or defaults.RUN_DIR
    try:
        settings_file = _settings_file(options)
        settings = settings_file.read()
        run_dir = settings.run_dir
        log_lines.begin(settings.log_level, run_dir, settings.log_format)
        if options.check or options.take_over:
            precheck.check(settings)  # first: a serving daemon must not be ended for one that cannot start
        if options.check:
            sys.stdout.write("a daemon with these settings can start\n")
        else:
            _serve(settings_file, settings, options.take_over)
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


def _serve(settings_file: SettingsFile, settings: Settings, take_over: bool) -> None:
    if reason := os.environ.pop(REPLACED, ""):
        log.error("this daemon takes the place of one that hung: %s", reason)
    with RunDirLock(Path(settings.run_dir), take_over) as run_dir_lock:
        asyncio.run(_run(settings_file, _with_pool(settings), run_dir_lock))


def _with_pool(settings: Settings) -> Settings:
    """The settings with what the Node of Kubernetes gives. Raises CniError, OSError."""
    config = settings.cluster.kubernetes if settings.cluster is not None else None
    if config is None or not config.pod_cidr:
        return settings
    from cni.daemon.cluster.kubernetes import api_server, pod_cidr

    return pod_cidr.with_pool(settings, node_name(config), api_server.ApiServer(config, lambda *_: None))


def parser() -> argparse.ArgumentParser:
    """The parser of the daemon's command line, without `overlayd`."""
    options = argparse.ArgumentParser(
        prog="zlayer-cni overlayd",
        description="The overlay daemon: addresses, bridges, fence and peers of this node's containers.",
        epilog="SIGTERM ends it and leaves running containers connected; the next daemon takes them over.",
    )
    options.add_argument("--config", metavar="FILE", help="the YAML to read (see conf/overlayd.yaml)")
    options.add_argument("--run-dir", metavar="DIR", help=f"sockets and records ({defaults.RUN_DIR})")
    options.add_argument("--data-dir", metavar="DIR", help=f"identity and settings ({defaults.DATA_DIR})")
    options.add_argument("--socket", metavar="PATH", help="the overlay protocol's socket (by the data directory)")
    options.add_argument("--take-over", action="store_true", help="end the daemon that runs on that run directory")
    options.add_argument("--check", action="store_true", help="check whether a daemon could start with these settings")
    options.add_argument(DEPUTY, type=int, default=0, help=argparse.SUPPRESS)
    return options


def _settings_file(options: argparse.Namespace) -> SettingsFile:
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
    return SettingsFile(str(Path(options.config).absolute()) if options.config else None, options.data_dir, changes)


async def _run(settings_file: SettingsFile, settings: Settings, run_dir_lock: RunDirLock) -> None:
    daemon = app.build(settings_file, settings, run_dir_lock, lambda: _notify("WATCHDOG=1"))
    await asyncio.to_thread(daemon.start)
    loop = asyncio.get_running_loop()
    note = Path(settings.run_dir, plugin_protocol.COMES_BACK)

    def end() -> None:
        if os.getpid() == 1:  # in a container: calls wait for the daemon that takes this one's place
            with contextlib.suppress(OSError):
                note.touch()
        daemon.server.stop.set()

    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    for number in (signal.SIGTERM, signal.SIGINT, *hangup):
        loop.add_signal_handler(number, end)
    await daemon.server.run(functools.partial(_serves, settings.run_dir))
    daemon.stop()


def _serves(run_dir: str) -> None:
    """Called when the sockets are open. What the start has made stays for the daemon's life: no collection walks it
    again while a call waits (20 ms with 1,000 attachments)."""
    gc.freeze()
    gc.enable()
    last_words.clear(run_dir)
    Path(run_dir, plugin_protocol.COMES_BACK).unlink(missing_ok=True)
    _notify("READY=1")


def _notify(message: str) -> None:
    """Send a message to systemd if systemd started the daemon (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
