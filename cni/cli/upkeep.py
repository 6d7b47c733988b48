"""The daemon during an installation: writes its systemd unit, and restarts or starts the daemon."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cni import answers, last_words
from cni.cli import ask, files, resources
from cni.host import process, program, systemd
from cni.plugin import autostart

UNIT = "zlayer-overlayd.service"
UNIT_DIR = "/etc/systemd/system"
WANTED = f"{UNIT_DIR}/multi-user.target.wants"
SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
# The directories that ProtectSystem=full and ProtectHome= make read-only (systemd.exec(5)).
PROTECTED = ("/usr/", "/boot/", "/efi/", "/etc/", "/home/", "/root/", "/run/user/")
READY_WITHIN = 30.0  # seconds until a daemon that was started must answer
GONE_WITHIN = 20.0  # seconds until one that is asked to end is killed


class CommandFailed(Exception):
    """install, uninstall, start or restart cannot continue; the text names the reason and the remedy."""


class Daemon(NamedTuple):
    """A daemon that answers: its PID and its version."""

    pid: int
    version: str


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(f"{text}\n")


def under(root: str, path: str) -> Path:
    """`path` below the prefix `root`."""
    return Path(root) / path.lstrip("/")


def running(run_dir: str) -> Daemon | None:
    """The daemon that answers on the run directory; None if none does."""
    try:
        status = ask.ask(run_dir, "status", answers.Running)
    except (ask.NoDaemon, ask.Refused):
        return None
    return Daemon(status.pid, status.version)


def holder(run_dir: str) -> int | None:
    """The PID of the daemon that holds the run directory, whether it answers or not; None if there is none."""
    try:
        pid = int(Path(run_dir, "overlayd.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if process.is_daemon(pid) else None


def await_daemon(run_dir: str, where: str) -> Daemon:
    """Wait until the daemon answers. Raises CommandFailed, which names `where` to look, after READY_WITHIN seconds."""
    end = time.monotonic() + READY_WITHIN
    while True:
        try:
            ask.ask(run_dir, "status", answers.Running)
        except ask.NoDaemon as error:
            if time.monotonic() > end:
                raise CommandFailed(f"{error}; see {where}") from error
            time.sleep(0.1)
        else:
            if daemon := running(run_dir):
                return daemon


def renew(options: argparse.Namespace, binary: Path, seen: Path) -> None:
    """Make `binary` the daemon of this machine: by a systemd unit, else by replacing a running one. `seen`: its path
    inside `--root`. Raises CommandFailed."""
    if options.root != "/":
        _in_image(options, seen)
    elif not options.service or not systemd.is_running():
        _without_systemd(options, binary)
    else:
        _with_systemd(options, binary)


def _in_image(options: argparse.Namespace, seen: Path) -> None:
    """The unit in an image that has systemd, enabled as systemctl does it. The image's next boot starts the daemon."""
    has_systemd = any(under(options.root, program).exists() for program in SYSTEMD)
    if not options.service or not has_systemd:
        why = "--no-service" if not options.service else "the image has no systemd"
        say(f"service   none ({why}): the plugin starts the daemon when it is first needed")
        return
    for directory in protected(options.run_dir, options.data_dir):
        under(options.root, directory).mkdir(parents=True, exist_ok=True)
    unit = under(options.root, UNIT_DIR) / UNIT
    files.write(unit, unit_text(seen, options.run_dir, options.data_dir))
    files.link(under(options.root, WANTED) / UNIT, Path(UNIT_DIR, UNIT))
    say(f"service   {unit} is enabled: the image's next boot starts the daemon")


def _with_systemd(options: argparse.Namespace, binary: Path) -> None:
    unit, text = Path(UNIT_DIR) / UNIT, unit_text(binary, options.run_dir, options.data_dir)
    before = running(options.run_dir)
    for directory in protected(options.run_dir, options.data_dir):
        Path(directory).mkdir(parents=True, exist_ok=True)  # systemd makes only existing directories writable
    unchanged = unit.exists() and unit.read_text() == text
    files.write(unit, text)
    _control("daemon-reload")
    _control("enable", UNIT)
    if unchanged and before and runs(before.pid, binary) and not systemd.control("is-active", UNIT):
        say(f"service   {UNIT} is enabled, and runs version {before.version} already")
        return
    check(options, [str(binary)])
    now = restart_unit(options.run_dir)
    if not runs(now.pid, binary):
        raise CommandFailed(
            f"process {now.pid}, not {UNIT}, is the daemon on {options.run_dir}: end it and install again"
        )
    say(f"service   {UNIT} is enabled and running{_instead_of(before, now)}")


def prove(binary: Path) -> None:
    """Check that the program runs in its directory: it must answer VERSION to a call like a runtime's. Raises
    CommandFailed, OSError."""
    code, out, err = program.run_once([str(binary)], {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}')
    if code != 0 or b"supportedVersions" not in out:
        raise CommandFailed(f"{binary} does not run here: exit code {code}: {err.decode(errors='replace').strip()}")


def has_unit(run_dir: str) -> bool:
    """Whether there is a unit file for the run directory."""
    try:
        return f"--run-dir {run_dir} " in Path(UNIT_DIR, UNIT).read_text()
    except OSError:
        return False


def start_unit(run_dir: str) -> Daemon:
    """Start the unit; its daemon. Raises CommandFailed."""
    _control("start", UNIT, run_dir=run_dir)
    return await_daemon(run_dir, f"`journalctl -u {UNIT}`")


def restart_unit(run_dir: str) -> Daemon:
    """Restart the unit; the new daemon. Raises CommandFailed."""
    _control("restart", UNIT, run_dir=run_dir)
    return await_daemon(run_dir, f"`journalctl -u {UNIT}`")


def unit_text(binary: Path, run_dir: str, data_dir: str) -> str:
    """The text of the unit file for a program and its directories."""
    text = resources.conf(UNIT).replace("@PROGRAM@", str(binary))
    text = text.replace("@RUN_DIR@", run_dir).replace("@DATA_DIR@", data_dir)
    opened = "".join(f"ReadWritePaths={directory}\n" for directory in protected(run_dir, data_dir))
    return text.replace("ProtectHome=read-only\n", f"ProtectHome=read-only\n{opened}")


def protected(*directories: str) -> list[str]:
    """Those of the directories that the unit would make read-only."""
    return [directory for directory in directories if directory.startswith(PROTECTED)]


def check(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Check that `command overlayd` can start with the present YAML and records, before the running daemon is ended.
    Raises CommandFailed."""
    words = [*command, "overlayd", "--check", "--run-dir", options.run_dir, "--data-dir", options.data_dir]
    try:
        code, _, output = program.run_once(words, autostart.environment(), b"")
    except OSError as error:
        raise CommandFailed(f"the new daemon cannot be tried, the running one is left alone: {error}") from error
    if code == 1:
        why = output.decode(errors="replace").strip().removeprefix("overlayd: ")
        raise CommandFailed(f"the new daemon could not start, the running one is left alone: {why}")


def _control(*words: str, run_dir: str = "") -> None:
    """Run systemctl. `run_dir`: the directory in which a daemon that fails to start writes the reason."""
    error = systemd.control(*words)
    if error:
        last = last_words.read(run_dir) if run_dir else ""
        why = f"; its last words: {last}" if last else ""
        raise CommandFailed(f"systemctl {' '.join(words)}: {error.splitlines()[0]}{why}")


def _without_systemd(options: argparse.Namespace, binary: Path) -> None:
    """A daemon started by a plugin is replaced; a daemon started by an administrator is left running and reported."""
    before = running(options.run_dir)
    if before is None:
        say("service   none: the plugin starts the daemon when it is first needed, or `zlayer-cni start` does now")
    elif runs(before.pid, binary):
        say(f"daemon    version {before.version} runs already (process {before.pid})")
    elif not is_plugins(before.pid, options.run_dir):
        say(f"note      the daemon (process {before.pid}) is version {before.version} until you restart it")
    else:
        now = replace_daemon(options, [str(binary)], before)
        say(f"daemon    running{_instead_of(before, now)}")


def replace_daemon(options: argparse.Namespace, command: Sequence[str], before: Daemon) -> Daemon:
    """End a daemon that a plugin or `zlayer-cni start` started, and start `command overlayd`; the new daemon. Raises
    CommandFailed."""
    check(options, command)
    if not process.end_daemon(before.pid, GONE_WITHIN):
        raise CommandFailed(f"the daemon of version {before.version} (process {before.pid}) does not end")
    words = ["overlayd", "--run-dir", options.run_dir, "--data-dir", options.data_dir]
    autostart.spawn([*command, *words], options.run_dir)
    return await_daemon(options.run_dir, f"{options.run_dir}/{autostart.LOG_NAME}")


def _instead_of(before: Daemon | None, now: Daemon) -> str:
    if before is None:
        return f", version {now.version}"
    return f", version {now.version}, in place of {before.version}; containers stayed connected"


def runs(pid: int, binary: Path) -> bool:
    """Whether the process runs that program file."""
    try:
        return any(Path(f"/proc/{pid}/exe").samefile(file) for file in resources.executables(binary) if file.exists())
    except OSError:
        return False


def is_plugins(pid: int, run_dir: str) -> bool:
    """Whether the daemon was started by a plugin, in our network namespace: only such a daemon has its log there."""
    try:
        log = Path(f"/proc/{pid}/fd/2").samefile(Path(run_dir, autostart.LOG_NAME))
        return log and Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net")
    except OSError:
        return False
