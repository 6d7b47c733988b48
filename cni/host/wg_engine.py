"""Userspace WireGuard: finds the program, starts it so that it outlives the daemon, and identifies its process."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from cni import log_files
from cni.host import engine_host, netns, privileges, wg_tuning
from cni.host.wg_uapi import ELSEWHERE, Uapi, remove_socket

PROGRAMS = {"wireguard-go": ["-f"], "boringtun-cli": ["-f", "--disable-drop-privileges"]}
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 20.0  # seconds in which an engine must answer, or end
CAPABILITIES = (privileges.NET_ADMIN, privileges.NET_BIND_SERVICE)  # the device; a port below 1024
STEP = 0.003  # seconds between two checks; an engine answers after 5 to 9 ms


def find(program: str = "") -> str:
    """The path of the engine `program`, or of the first installed one of PROGRAMS; empty if there is none."""
    path = f"{os.environ.get('PATH', '')}:{PLACES}"
    for name in [program] if program else PROGRAMS:
        path_found = shutil.which(name, path=path)
        if path_found:
            return path_found
    return ""


class Engines:
    """The engines that this daemon started, or that an earlier one left running."""

    def __init__(self, uapi: Uapi, log_dir: str, hosted: bool = False) -> None:
        """`hosted`: engines are started by the engine host whose socket is in `log_dir` (`engine_host.py`)."""
        self._uapi, self._hosted = uapi, hosted
        self._log_dir = log_dir
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, program: str, name: str) -> None:
        """Start an engine for the device `name`, and wait until it answers. Raises OSError with the engine's last
        output if it does not."""
        if self._hosted:
            engine_host.ask(self._log_dir, "start", program, name)
            return
        directory = Path(self._uapi.directory)
        directory.mkdir(0o755, parents=True, exist_ok=True)
        log_path = Path(self._log_dir, f"{name}.log")
        with contextlib.suppress(FileNotFoundError):
            log_path.replace(f"{log_path}{log_files.EARLIER}")
        with log_path.open("ab") as log:  # appending, so that the file can be emptied under the engine
            child = privileges.lowered(
                CAPABILITIES,
                lambda: subprocess.Popen(
                    [program, *PROGRAMS[Path(program).name], name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,  # the engine outlives the daemon (docs/mesh.md)
                ),
            )
        self._children[name] = child
        end = time.monotonic() + PATIENCE
        while self._uapi.owner(name) != child.pid:
            if child.poll() is not None or time.monotonic() > end:
                self._give_up(name, child)
                output = log_path.read_text(errors="replace").strip().splitlines()
                raise OSError(f"{program} does not start: {output[-1] if output else f'exit code {child.returncode}'}")
            time.sleep(STEP)

    def _give_up(self, name: str, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait(PATIENCE)
        del self._children[name]

    def owner(self, name: str) -> int:
        """The PID of the engine that serves the device in this network namespace; 0 if there is none.

        Raises OSError if an engine in another namespace uses the name: all namespaces share the directory of sockets.
        """
        self.reap()
        pid = self._uapi.owner(name)
        if pid and netns_of(pid) not in (None, netns.own()):
            raise OSError(f"the name {name} is taken: process {pid} serves it in another network namespace")
        return pid

    def tune(self, name: str, index: int, port: int, fragments: bool) -> None:
        """Tune the engine of the device (`wg_tuning.py`). Never raises OSError."""
        pid = self._uapi.owner(name)
        if pid == ELSEWHERE and self._hosted:
            with contextlib.suppress(OSError):
                engine_host.ask(self._log_dir, "tune", name, index, port, fragments)
        elif pid > 0:
            wg_tuning.tune(pid, name, index, port, fragments)

    def program(self, pid: int) -> str:
        """The name of the engine's program."""
        try:
            return Path(os.readlink(f"/proc/{pid}/exe")).name.removesuffix(" (deleted)")  # noqa: PTH115
        except OSError:
            return "userspace"

    def end(self, name: str) -> None:
        """End the engine of the device, and so the device. Idempotent. Raises OSError if the engine does not end."""
        pid = self.owner(name)
        if pid in (0, ELSEWHERE):
            remove_socket(self._uapi.path(name))  # an engine elsewhere ends by this too
            return
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                remove_socket(self._uapi.path(name))  # the engine ends when its socket is removed
                _await_end(handle, pid, name)
            finally:
                os.close(handle)
        self.reap()

    def kill(self, name: str) -> None:
        """Kill the engine of the device, also one that hangs, and so end the device. Idempotent. Raises OSError."""
        pid = self.owner(name)
        if pid == ELSEWHERE:
            engine_host.ask(self._log_dir, "kill", name)
            return
        remove_socket(self._uapi.path(name))
        if pid:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    _await_end(handle, pid, name)
                finally:
                    os.close(handle)
        self.reap()

    def reap(self) -> None:
        """Reap engines that have ended, so that they do not stay as zombies."""
        for name, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[name]


def _await_end(handle: int, pid: int, name: str) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    if not poll.poll(PATIENCE * 1000):
        raise OSError(f"process {pid}, the engine of {name}, does not end")


def netns_of(pid: int) -> netns.NetnsId | None:
    """The network namespace of a process; None if it cannot be read."""
    try:
        status = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:
        return None
    return netns.NetnsId(status.st_dev, status.st_ino)


def _environment() -> dict[str, str]:
    """An engine's environment: nothing of the daemon's, which may come from a runtime."""
    return {"PATH": PLACES, "LANG": "C.UTF-8", "LOG_LEVEL": "error", "WG_LOG_LEVEL": "error"}
