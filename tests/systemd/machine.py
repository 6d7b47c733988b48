"""A scratch machine whose init is a real systemd, in namespaces and a control group of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEMD = Path("/lib/systemd/systemd")
PATIENCE = 120.0  # seconds until what must come has come, on a busy machine
ENV = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
UNIT = "zlayer-overlayd"
_AGENT = """
import socket, struct, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect("/var/run/zlayer-overlayd.sock")
body = sys.stdin.buffer.read().strip()
sock.sendall(struct.pack("<I", len(body)) + body)
stream = sock.makefile("rb")
print(stream.read(struct.unpack("<I", stream.read(4))[0]).decode())
"""


def cgroups() -> Path | None:
    """Where the unified hierarchy of control groups is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None


class Machine:
    """One machine, which can be booted again. Everything of it is below `directory`, which must be on a tmpfs."""

    def __init__(self, directory: Path, hierarchy: Path) -> None:
        self.directory = directory
        self.group = hierarchy / directory.name
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it, and wait until systemd has nothing more to do."""
        self.group.mkdir(exist_ok=True)
        self.directory.mkdir(exist_ok=True)
        namespaces = ["--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup", "--kill-child"]
        script = 'echo $$ >"$1/cgroup.procs"; shift; exec setpriv --pdeathsig KILL "$@"'
        argv = ["unshare", *namespaces, "bash", str(HERE / "boot.sh"), str(self.directory)]
        with (self.directory / "console").open("ab") as console:
            self._process = subprocess.Popen(
                ["bash", "-c", script, "bash", str(self.group), *argv],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait("systemctl is-system-running | grep -qE 'running|degraded'")

    def off(self) -> None:
        """Pull the plug. Safe to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        end = time.monotonic() + PATIENCE
        while self.group.exists():
            for path in sorted(self.group.rglob("*"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                self.group.rmdir()
            assert time.monotonic() < end, f"processes stay in {self.group}"

    def remove(self) -> None:
        """Take everything of it away."""
        self.off()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _init(self) -> str:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return children[0] if children else "0"

    def bring(self, file: Path, path: str) -> None:
        """Copy a file to the machine."""
        shutil.copy(file, f"/proc/{self._init()}/root{path}")

    def run(self, line: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """One line of shell on the machine."""
        enter = ["nsenter", "-t", self._init(), "-m", "-p", "-n", "-u", "-i", "-C", "-r", "-w", *ENV]
        return subprocess.run(
            [*enter, "bash", "-c", line], input=given, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def sh(self, line: str) -> str:
        """The output of a line that must succeed."""
        done = self.run(line)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout.strip()

    def wait(self, line: str) -> None:
        """Until a line succeeds."""
        end = time.monotonic() + PATIENCE
        while self.run(line).returncode:
            assert time.monotonic() < end, f"{line}\n{self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """What was said last, by the machine and by the daemon."""
        said = self.run(f"systemctl status --no-pager -n 30 {UNIT}; cat /run/zlayer-cni/overlayd.log").stdout
        return (self.directory / "console").read_text(errors="replace")[-2000:] + said

    def call(self, command: str, container: str) -> Any:
        """One call of the installed plugin for a container; its network namespace is made by ADD. ADD's result."""
        if command == "ADD":
            self.sh(f"ip netns list | grep -qw {container} || ip netns add {container}")
        variables = (
            f"CNI_COMMAND={command} CNI_CONTAINERID={container} CNI_NETNS=/run/netns/{container} CNI_IFNAME=eth0"
        )
        given = '{"cniVersion":"1.0.0","name":"zlayer","type":"zlayer-cni"}'
        done = self.run(f"{variables} CNI_PATH=/opt/cni/bin /opt/cni/bin/zlayer-cni", given)
        assert done.returncode == 0, f"{command} {container}: {done.stdout}{done.stderr}\n{self.log()}"
        return json.loads(done.stdout) if done.stdout else None

    def ask(self, request: dict[str, Any]) -> Any:
        """One request of an agent, in the protocol of the overlay door; its answer."""
        body = json.dumps({"frame": "request", "id": 1, "request": request})
        done = self.sh(f"python3 -c '{_AGENT}' <<'END'\n{body}\nEND")
        return json.loads(done)["response"]

    def pid_here(self, pid: int) -> int:
        """What a process of the machine is called outside of it."""
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError, StopIteration):
                numbers = next(line for line in path.read_text().splitlines() if line.startswith("NSpid:")).split()[1:]
                if numbers[1:] == [str(pid)] and os.readlink(path.parent / "ns/pid") == self._pids():
                    return int(numbers[0])
        raise AssertionError(f"there is no process {pid}")

    def _pids(self) -> str:
        return os.readlink(f"/proc/{self._init()}/ns/pid")

    def status(self) -> Any:
        """`zlayer-cni status --json`."""
        return json.loads(self.run("zlayer-cni status --json").stdout)

    def main_pid(self) -> int:
        """The unit's process; 0 if it runs not."""
        return int(self.sh(f"systemctl show -p MainPID --value {UNIT}"))


def directory() -> Path:
    """A place for a machine: what an overlay can write to."""
    return Path(f"/dev/shm/zlt-systemd-{os.getpid()}")


def ping(on: Machine, container: str, address: str, line: str) -> None:
    """`line` costs a container's stream of packets not one of them."""
    on.sh(f"ip netns exec {container} ping -n -q -i 0.01 {address} >/run/ping 2>&1 & echo $! >/run/ping.pid; sleep 0.3")
    try:
        on.sh(line)
    finally:
        on.sh("kill -INT $(cat /run/ping.pid); while kill -0 $(cat /run/ping.pid) 2>/dev/null; do sleep 0.05; done")
    said = on.sh("cat /run/ping")
    assert " 0% packet loss" in said, said
