"""The doctor's look at the daemon: its answer, its sockets, its process."""

from __future__ import annotations

import argparse
from pathlib import Path

from cni import __version__, answers, last_words, proc
from cni.cli import absent, ask, upkeep
from cni.cli import checks_install as installed
from cni.cli.checks_machine import Finding
from cni.host import probe


def status(run_dir: str) -> tuple[answers.Status | None, Exception | None]:
    """The daemon's status, or the reason why there is none."""
    try:
        return ask.ask(run_dir, "status", answers.Status), None
    except (ask.NoDaemon, ask.Refused) as error:
        return None, error


def sockets(path: str, run_dir: str, daemon: int | None) -> list[Finding]:
    """Other daemons, and the agents' socket at `path`. `daemon`: the PID of the daemon that answers."""
    seen = [installed.Daemon(pid, " ".join(words)[:120]) for pid, words in probe.commands() if is_daemon(words)]
    silent = upkeep.holder(run_dir) if daemon is None else None
    return [installed.daemons(seen), *installed.overlay_socket(path, probe.listener(path), daemon, silent)]


def is_daemon(words: list[str]) -> bool:
    """Whether a command line belongs to an overlay daemon, ours or ZLayer's."""
    if not words:
        return False
    name = words[0].rpartition("/")[2]
    ours = name == "zlayer-cni" and words[1:2] == ["overlayd"]
    return name == "zlayer-overlayd" or ours or words[1:4] == ["-m", "cni", "overlayd"]


def told(options: argparse.Namespace, status: answers.Status | None, error: Exception | None) -> list[Finding]:
    """What the daemon says of itself; else why it does not answer."""
    if status is not None:
        failed = last_words.read(options.run_dir)
        findings = installed.daemon_status(status.problems, status.version, __version__, status.notes, failed=failed)
        return findings + installed.cgroup(status.pid, Path(f"/proc/{status.pid}/cgroup").read_text().splitlines())
    if isinstance(error, ask.NeedsRoot):
        return [Finding("daemon", "fail", f"the daemon cannot be asked: {error}", "run it as root")]
    if (pid := upkeep.holder(options.run_dir)) is not None:
        return [installed.silent_daemon(pid, proc.is_stopped(pid))]
    absence = absent.explain(absent.look(options.run_dir, options.conf_dir))
    return [installed.absent_daemon(absence.state, absence.text, absence.fix, str(error))]
