"""A scratch machine: network and mount namespaces of its own, in which a daemon can do to the network what it likes.

Contract 9: an empty /run with /run/wireguard in it, lo up, a default route. /sys is mounted anew, for upstream counts a
bridge's members there (5.3/28). Everything ends with the machine: its processes by their ids, its links with the
namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETUP = """
set -e
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/wireguard /run/netns
ip link set lo up
ip link add up0 type veth peer name up1
ip address add 192.0.2.1/24 dev up0
ip link set up0 up
ip link set up1 up
ip route add default via 192.0.2.2
echo ready
exec sleep infinity
"""


class Machine:
    """The namespaces, and what runs in them."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="zlt-"))  # short: socket paths have 107 bytes
        self._processes: list[subprocess.Popen[Any]] = []
        self._namespaces = 0
        self._keeper = subprocess.Popen(
            ["unshare", "-n", "-m", "--propagation", "private", "sh", "-c", SETUP],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        if said != "ready\n":
            said += self._keeper.stdout.read()
            self.close()
            raise RuntimeError(f"cannot make a scratch machine: {said}")

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` on the machine."""
        return ["nsenter", "-t", str(self._keeper.pid), "-n", "-m", "--wd=/", "--", *command]

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end."""
        options = {"timeout": 60, "capture_output": True, "text": True} | options
        done = subprocess.run(self.inside(*command), check=False, **options)
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def start(self, *command: str, log: Path | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[Any]:
        """A process on the machine, ended with it."""
        output = subprocess.DEVNULL if log is None else log.open("ab")
        try:
            process = subprocess.Popen(
                self.inside(*command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
            )
        finally:
            if log is not None:
                output.close()
        self._processes.append(process)
        return process

    def container(self) -> int:
        """A process in a network namespace of its own, such as a ZLayer agent attaches; returns its PID."""
        process = self.start("unshare", "-n", "sleep", "infinity")
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the container's process")
        return process.pid

    def netns(self) -> str:
        """A named namespace without a process, as runtimes make them; returns its path on the machine."""
        self._namespaces += 1
        name = f"zlt-{self._namespaces}"
        self.run("ip", "netns", "add", name)
        return f"/run/netns/{name}"

    def ip(self, *words: str, pid: int = 0, netns: str = "") -> Any:
        """`ip -json` on the machine, or in a container's namespace."""
        command = ["ip", "-json", *words]
        if pid:
            command = ["nsenter", "-t", str(pid), "-n", *command]
        elif netns:
            command = ["nsenter", f"--net={netns}", *command]
        return json.loads(self.run(*command).stdout or "[]")

    def links(self) -> dict[str, dict[str, Any]]:
        """The machine's links by name."""
        return {link["ifname"]: link for link in self.ip("-details", "link")}

    def close(self) -> None:
        """End it all. Safe to repeat."""
        self._end_engines()
        for process in [*reversed(self._processes), self._keeper]:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for path in Path("/proc").glob("[0-9]*"):
            self._end_if_holder(path)
        shutil.rmtree(self.home, ignore_errors=True)

    def _end_engines(self) -> None:
        """WireGuard engines outlive their daemon, as they should; not the machine."""
        try:
            here = Path(f"/proc/{self._keeper.pid}/ns/net").readlink()
        except OSError:
            return
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "ns/net").readlink() == here and (path / "comm").read_text().startswith("wireguard"):
                    os.kill(int(path.name), signal.SIGKILL)
            except OSError:
                continue

    def _end_if_holder(self, path: Path) -> None:
        """A holder that a test left: it says on its command line which network it serves, and ours name the machine."""
        try:
            if self.home.name in (path / "cmdline").read_text() and (path / "exe").readlink().name.startswith("memfd:"):
                os.kill(int(path.name), signal.SIGKILL)
        except (OSError, UnicodeDecodeError):
            pass


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait for `condition`; fails the test if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
