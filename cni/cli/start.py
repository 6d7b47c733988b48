"""`zlayer-cni start` and `restart`: the daemon, by systemd if there is a unit for the run directory, else as the plugin
starts it. Running containers stay connected. Exit code 0 if the daemon runs afterwards, else 1."""

from __future__ import annotations

import argparse
import errno
import os
from itertools import pairwise
from pathlib import Path

from cni import proc
from cni.cli import ask, conflist, record, upkeep
from cni.cli.upkeep import CommandFailed, Daemon, say
from cni.host import systemd
from cni.plugin import autostart, client


def run(options: argparse.Namespace) -> int:
    """Start or restart the daemon."""
    given = record.given(options)
    options = record.completed(options, record.load(Path(options.program_dir)) or conflist.earlier(options))
    before, holder = upkeep.running(options.run_dir), upkeep.holder(options.run_dir)
    if before is None and holder is not None:
        before = Daemon(holder, "that does not answer")
    try:
        if before is None:
            now = _start(options)
            say(f"daemon    version {now.version} runs (process {now.pid})")
        elif options.command == "start":
            say(f"daemon    version {before.version} runs already (process {before.pid})")
        else:
            now = _restart(options if "data_dir" in given else _as_it_runs(options, before), before)
            say(f"daemon    version {now.version} runs (process {now.pid}), in place of process {before.pid}")
    except (CommandFailed, ask.NoDaemon, ask.Refused, OSError) as error:
        say(f"zlayer-cni: {options.command} failed: {error}")
        return 1
    return 0


def _start(options: argparse.Namespace) -> Daemon:
    """Start the daemon; raises CommandFailed if it does not answer in time."""
    if _has_unit(options):
        return upkeep.start_unit(options.run_dir)
    waiter = client.Waiter(upkeep.READY_WITHIN)
    try:
        autostart.connect_or_start(_place(options), waiter).close()
    except client.Closed as error:
        raise CommandFailed(str(error)) from error
    except client.OutOfTime as error:
        raise CommandFailed(f"the daemon does not listen on {options.run_dir} after {waiter.seconds:g} s") from error
    return upkeep.await_daemon(options.run_dir, _log(options))


def _restart(options: argparse.Namespace, before: Daemon) -> Daemon:
    if _has_unit(options) and not systemd.control("is-active", upkeep.UNIT):
        upkeep.check(options, _command(options))
        return upkeep.restart_unit(options.run_dir)
    if upkeep.is_plugins(before.pid, options.run_dir):
        return upkeep.replace_daemon(options, _command(options), before)
    raise CommandFailed(
        f"the daemon (process {before.pid}) was started neither by the plugin nor by systemd: restart it where it runs"
    )


def _as_it_runs(options: argparse.Namespace, before: Daemon) -> argparse.Namespace:
    """The options with the data directory of the running daemon, by its command line: another one would be another
    node."""
    words = [os.fsdecode(word) for word in proc.command(before.pid)]
    data_dir = dict(pairwise(words)).get("--data-dir", options.data_dir)
    return argparse.Namespace(**{**vars(options), "data_dir": data_dir})


def _command(options: argparse.Namespace) -> list[str]:
    """The command line of this program without its words. Raises CommandFailed if it cannot be unpacked."""
    try:
        words = autostart.program(_place(options), client.Waiter(upkeep.READY_WITHIN))
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "")
        raise CommandFailed(f"the program cannot be unpacked: {error.filename}: {reason}") from error
    return words[: words.index("overlayd")]


def _place(options: argparse.Namespace) -> client.Location:
    place = client.Location()
    place.run_dir, place.data_dir = options.run_dir, options.data_dir
    return place


def _has_unit(options: argparse.Namespace) -> bool:
    return systemd.is_running() and upkeep.has_unit(options.run_dir)


def _log(options: argparse.Namespace) -> str:
    return f"{options.run_dir}/{autostart.LOG_NAME}"
