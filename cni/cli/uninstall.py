"""Removes what `install` installed, in the opposite order: network list, data path, daemon, program.

Refuses while containers are attached, because they would lose their network; `--force` detaches them first. If no
daemon runs, one is started: only a daemon can list the attachments, and remove bridges and tables.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from cni import answers
from cni.cli import ask, conflist, record, upkeep
from cni.cli.install import BIN_DIRS, NAME, TOOL_DIR
from cni.cli.upkeep import GONE_WITHIN, UNIT, UNIT_DIR, WANTED, Daemon, say, under
from cni.daemon import settings_reader
from cni.host import locks, process, systemd
from cni.plugin import autostart, client

RECORDS = "state.db"


def run(options: argparse.Namespace) -> int:
    """Uninstall; returns the exit code. Safe to repeat."""
    programs = under(options.root, options.program_dir)
    before = record.load(programs) or conflist.earlier(options)
    options = record.completed(options, before)
    run_dir = str(under(options.root, options.run_dir))
    try:
        daemon = find_daemon(run_dir, options)
        attached = len(ask.ask(run_dir, "attachments", list[answers.Attachment])) if daemon else 0
    except (upkeep.CommandFailed, ask.NoDaemon) as error:
        if not options.force:
            say(f"zlayer-cni: {error}; the attachments are unknown. --force continues anyway")
            return 1
        say(f"note      {error}: nothing of its data path is taken down")
        daemon, attached = None, 0
    if attached and not options.force:
        say(f"zlayer-cni: {attached} containers are attached; stop them first, or use --force")
        return 1
    for path in dict.fromkeys((str(Path(options.conf_dir, conflist.FILE)), *before.lists)):
        _remove(under(options.root, path))
    if daemon:
        ask.ask(run_dir, "teardown", answers.Done)
        say("removed   bridges, interfaces and tables")
    _remove_unit(options.root)
    if daemon:
        ended = process.end_daemon(daemon.pid, GONE_WITHIN)
        for path in dict.fromkeys((str(Path(options.conf_dir, conflist.FILE)), *before.lists)):
            _remove(under(options.root, path))  # a daemon with `network_list` may have written it again
        say("ended     the overlay daemon" if ended else f"warning   process {daemon.pid} does not end")
    _remove_programs(options, programs, before.links)
    _tell_what_stays(options)
    return 0


def _remove_programs(options: argparse.Namespace, programs: Path, links: tuple[str, ...]) -> None:
    """The links, the versions of the program, and the daemon's directories."""
    _remove(under(options.root, options.bin_dir) / NAME)
    for place in (*links, *BIN_DIRS, TOOL_DIR):
        link = under(options.root, place) / NAME
        if link.is_symlink() and Path(options.root, str(link.readlink()).lstrip("/")).is_relative_to(programs):
            _remove(link)
    directories = [programs, under(options.root, options.run_dir)]
    data = under(options.root, options.data_dir)
    for directory in [*directories, data] if options.purge else [*directories, data / "program"]:
        if directory.exists():
            say(f"{'removed ' if _remove_tree(directory) else 'emptied '}  {directory}")
    if options.root == "/" and locks.sweep():
        say(f"removed   {locks.default_directory()}")


def _tell_what_stays(options: argparse.Namespace) -> None:
    data, system_file = under(options.root, options.data_dir), under(options.root, settings_reader.SYSTEM_FILE)
    if data.exists() and any(data.iterdir()):
        say(f"kept      {data}: the node's identity (--purge removes it)")
    if system_file.exists():
        say(f"kept      {system_file}: the daemon's settings, which `install` did not write")
    if options.root == "/":
        say("kept      net.ipv4.ip_forward and other settings of the kernel, as they are")


def _remove_unit(root: str) -> None:
    unit = under(root, UNIT_DIR) / UNIT
    running = root == "/" and systemd.is_running()
    if running and unit.exists():
        systemd.control("disable", "--now", UNIT)
    _remove(under(root, WANTED) / UNIT)
    _remove(unit)
    if running:
        systemd.control("daemon-reload")


def find_daemon(run_dir: str, options: argparse.Namespace) -> Daemon | None:
    """The daemon, which is started if only its records exist; None without records. Raises CommandFailed, NoDaemon."""
    try:
        status = ask.ask(run_dir, "status", answers.Running)
        return Daemon(status.pid, status.version)
    except ask.NoDaemon:
        if options.root != "/" or not Path(run_dir, RECORDS).exists():
            return None
        if upkeep.holder(run_dir) is not None:
            raise  # the daemon runs, and does not answer
    if os.geteuid():
        raise upkeep.CommandFailed("no daemon runs, and only root can start one")
    say("note      no daemon runs: one is started, which knows what is attached")
    place = client.Location()
    place.run_dir, place.data_dir = run_dir, options.data_dir
    if systemd.is_running() and Path(UNIT_DIR, UNIT).exists() and not systemd.control("start", UNIT):
        return upkeep.await_daemon(run_dir, f"`journalctl -u {UNIT}`")
    autostart.spawn(autostart.program(place, client.Waiter(upkeep.READY_WITHIN)), run_dir)
    return upkeep.await_daemon(run_dir, f"{run_dir}/{autostart.LOG_NAME}")


def _remove_tree(directory: Path) -> bool:
    """Remove a directory; False for a mount point, which stays, empty: in a container the directory is the node's.
    Raises OSError."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if directory.is_mount():
        return False
    directory.rmdir()
    return True


def _remove(path: Path) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()
        say(f"removed   {path}")
