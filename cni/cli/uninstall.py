"""Takes away what install put there, in the opposite order: network list, data path, daemon, program.

Refuses while containers are attached, because they would lose their network; `--force` detaches them first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import time
from pathlib import Path

from cni.cli import ask
from cni.cli.install import CONFLIST, NAME, TOOL_DIR, UNIT, UNIT_DIR, say, under
from cni.host import systemd

GONE_WITHIN = 20.0  # seconds the daemon gets to end


def run(options: argparse.Namespace) -> int:
    """Uninstall; returns the exit code. Safe to repeat."""
    attached = _attached(options.run_dir)
    if attached and not options.force:
        say(f"zlayer-cni: {attached} containers are attached; stop them first, or use --force")
        return 1
    _remove(under(options.root, options.conf_dir) / CONFLIST)
    pid = _tear_down(options.run_dir)
    if options.root == "/" and systemd.is_running() and (Path(UNIT_DIR) / UNIT).exists():
        systemd.control("disable", "--now", UNIT)
        _remove(Path(UNIT_DIR) / UNIT)
        systemd.control("daemon-reload")
    _end(pid)
    _remove(under(options.root, options.bin_dir) / NAME)
    _remove(under(options.root, TOOL_DIR) / NAME)
    directories = [under(options.root, options.program_dir), under(options.root, options.run_dir)]
    data = under(options.root, options.data_dir)
    for directory in [*directories, data] if options.purge else [*directories, data / "program"]:
        if directory.exists():
            shutil.rmtree(directory)
            say(f"removed   {directory}")
    return 0


def _attached(run_dir: str) -> int:
    try:
        return len(ask.ask(run_dir, "attachments"))
    except ask.NoDaemon:
        return 0


def _tear_down(run_dir: str) -> int:
    """Bridges, links and tables go; returns the daemon's pid, 0 without one."""
    try:
        pid = int(ask.ask(run_dir, "status")["pid"])
        ask.ask(run_dir, "teardown")
    except ask.NoDaemon as error:
        say(f"note      {error}: nothing of its data path was taken down")
        return 0
    say("removed   bridges, interfaces and tables")
    return pid


def _end(pid: int) -> None:
    """End the daemon, and wait until it has gone."""
    if not pid:
        return
    end = time.monotonic() + GONE_WITHIN
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < end and not _is_zombie(pid):
            os.kill(pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        pass
    say("ended     the overlay daemon")


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended, and only its parent has not asked for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _remove(path: Path) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()
        say(f"removed   {path}")
