"""The steps of the containers of Kubernetes' DaemonSets: `install` puts the program and the plugin in place, `engine`
starts userspace engines for the daemon (`cni/host/engine_host.py`), `live` and `ready` are probes, `remove` takes
everything away and then waits.

A daemon in a container has no unit, and writes the network list itself (`network_list` of its settings), so `install`
is for the program and the plugin alone. The directories are the node's, mounted at the same paths.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from cni import __version__, answers, defaults
from cni.cli import ask, files, record, resources, uninstall, upkeep, versions
from cni.cli.install import NAME
from cni.cli.upkeep import CommandFailed, say
from cni.host import engine_host, wg_engine
from cni.host.tunnels import UAPI_DIR
from cni.host.wg_uapi import Uapi


def run(options: argparse.Namespace) -> int:
    """Carry out one step; returns the exit code. Raises NoDaemon, Refused."""
    options.run_dir = options.run_dir or defaults.RUN_DIR  # for a daemon that does not answer, too
    return {"install": _install, "engine": _engine, "live": _live, "ready": _ready, "remove": _remove}[options.step](
        options
    )


def _install(options: argparse.Namespace) -> int:
    source = resources.unpacked_program()
    if source is None:
        say("zlayer-cni: this runs from source")
        return 1
    target, plugin = Path(options.program_dir), Path(options.bin_dir or defaults.BIN_DIR, NAME)
    try:
        with versions.locked(target):
            home = target / f"{__version__}-{versions.digest(source)}"
            versions.extract(source, home, lambda place: upkeep.prove(place / NAME))
            before = {plugin.readlink()} if plugin.is_symlink() else set()
            files.link(plugin, home / NAME)
            gone = versions.sweep(target, home.name, NAME, before)
    except (CommandFailed, versions.Busy, OSError) as error:
        say(f"zlayer-cni: the program is not installed: {error}")
        return 1
    say(f"plugin    {plugin} -> {home / NAME}")
    for path in gone:
        say(f"removed   {path}, an older version")
    return 0


def _engine(options: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    engine_host.serve(options.run_dir, wg_engine.Engines(Uapi(UAPI_DIR), options.run_dir))
    return 0


def _live(options: argparse.Namespace) -> int:
    ask.ask(options.run_dir, "status", answers.Running)
    return 0


def _ready(options: argparse.Namespace) -> int:
    status = ask.ask(options.run_dir, "status", answers.Status)
    if not status.fence.in_force:
        say(f"the fence is not in force: {status.fence.trouble}")
    return 0 if status.fence.in_force else 1


def _remove(options: argparse.Namespace) -> int:
    options.force, options.purge = True, True
    try:
        uninstall.find_daemon(options.run_dir, record.completed(options, record.Record()))
    except CommandFailed as error:  # without a daemon the data path would stay: the container starts again
        say(f"zlayer-cni: {error}")
        return 1
    code = uninstall.run(options)
    if code == 0:
        say("done; delete the objects of the manifest when every node has come so far")
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return code
