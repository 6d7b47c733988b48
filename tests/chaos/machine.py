"""A machine for the storm: a network namespace and a mount namespace of its own, which can be rebooted.

In its mount namespace /tmp and /run/netns are its own, and /proc/sys/kernel/random/boot_id says what the test wants:
so the program needs no hook for a reboot, and what it leaves in the temporary directory is seen. Everything ends with
the last process and descriptor in it; nothing of it is visible from outside but its directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cni import plugin_protocol
from cni.plugin import client
from tests import covered
from tests.blackbox import snapshot
from tests.blackbox.harness import netns
from tests.blackbox.harness.calls import BARE_ENV, Answer, call

from .program import Program

T = TypeVar("T")
Json = dict[str, Any]

KIND = os.environ.get("ZLAYER_TEST_ATTACH", "")
"""How containers are attached where a configuration does not say it; empty for the default."""
RAISED = "Kernel.raise_routed after" if KIND == "routed" else "Kernel.raise_port after"
"""The point at which a container's packets begin to flow."""
CLONE_NEWNS, CLONE_FS = 0x20000, 0x200
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
PREFIX = "zlt-chaos-"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
RUN_NETNS = netns.RUN_NETNS
PATIENCE = 60.0  # seconds until a daemon is up, or has ended; a loaded machine takes its time

_libc = ctypes.CDLL(None, use_errno=True)


def busy(seconds: float) -> float:
    """What so many seconds are on a machine that has more to do than it has processors: more of them."""
    return seconds * max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    _must(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mount {target}")


class Machine:
    """One node. Calls of the plugin, its daemon, its containers' namespaces; a reboot when asked for."""

    def __init__(self, form: str, settings: str = "", *, plain: bool = False) -> None:
        """`settings` are lines for the daemon's YAML; `plain` leaves the program as it was built."""
        self.dir = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
        self.run_dir, self.data_dir = self.dir / "run", self.dir / "data"
        for each in (self.run_dir, self.data_dir, self.dir / "program"):
            each.mkdir()
        attach = f"attach: {KIND}\n" if KIND else ""
        (self.data_dir / "overlayd.yaml").write_text(f"cluster_cidr: 10.200.0.0/16\n{attach}{settings}\n")
        self.program = Program(form, self.dir / "program", self.data_dir, plain=plain)
        self.boot_id = ""
        self._net = self._mnt = -1
        netns.in_thread(self._found)
        self.boot()

    # --- namespaces ------------------------------------------------------------------------------------------------

    def _found(self) -> None:
        """The mount namespace. In a thread that ends: the descriptor keeps it."""
        _must(_libc.unshare(CLONE_NEWNS), "unshare")
        _mount("none", "/", "none", MS_REC | MS_PRIVATE)
        clone = os.open(covered.ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777")
        if covered.is_covered("/tmp"):
            covered.ROOT.mkdir(parents=True)
            _mount(f"/proc/self/fd/{clone}", str(covered.ROOT), "none", MS_BIND)
        os.close(clone)
        RUN_NETNS.mkdir(parents=True, exist_ok=True)
        _mount("tmpfs", str(RUN_NETNS), "tmpfs")
        self._mnt = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def boot(self) -> None:
        """A fresh network namespace, and another boot id. What ran before must have been ended."""
        self.boot_id = str(uuid.uuid4())
        (self.dir / "boot_id").write_text(f"{self.boot_id}\n")
        if self._net >= 0:
            os.close(self._net)
        netns.in_thread(self._start)
        self.sh(
            "ip link set lo up",
            "ip link add eth0 address 02:00:00:00:00:01 type veth peer name up0 address 02:00:00:00:00:02",
            "ip link set eth0 addrgenmode none up; ip link set up0 addrgenmode none up",
            "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1",
        )

    def _start(self) -> None:
        self._enter_mounts()
        _libc.umount2(BOOT_ID.encode(), MNT_DETACH)
        _mount(str(self.dir / "boot_id"), BOOT_ID, "none", MS_BIND)
        _must(_libc.unshare(netns.CLONE_NEWNET), "unshare")
        self._net = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _enter_mounts(self) -> None:
        _must(_libc.unshare(CLONE_FS), "unshare")
        _must(_libc.setns(self._mnt, CLONE_NEWNS), "setns")

    def enter(self) -> None:
        """Move the calling thread onto this machine. Only for threads that end soon, or stay here."""
        self._enter_mounts()
        _must(_libc.setns(self._net, netns.CLONE_NEWNET), "setns")

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` on the machine; children that it starts live there too."""

        def body() -> T:
            self.enter()
            return work()

        return netns.in_thread(body)

    @property
    def path(self) -> str:
        """The path of the network namespace, valid in this process."""
        return f"/proc/{os.getpid()}/fd/{self._net}"

    # --- asking ----------------------------------------------------------------------------------------------------

    def sh(self, *lines: str, check: bool = True) -> str:
        """Shell lines on the machine; their output."""
        script = "\n".join(lines)

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False, timeout=60)

        done = self.inside(run)
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ip(self, *words: str) -> Any:
        """`ip -d -j words`, parsed; [] where there is no such thing."""
        out = self.sh(f"ip -d -j {' '.join(words)} 2>/dev/null || true")
        return [item for item in json.loads(out or "[]") if item]

    def environment(self, verb: str, **variables: str) -> dict[str, str]:
        """What a runtime gives to the plugin."""
        return {**BARE_ENV, **self.program.env, "CNI_COMMAND": verb, "CNI_PATH": "/opt/cni/bin", **variables}

    def conf(self, **keys: Any) -> Json:
        """A network's configuration."""
        places = {"runDir": str(self.run_dir), "dataDir": str(self.data_dir)}
        return {"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni", "service": "web", **places, **keys}

    def call(self, verb: str, conf: Json, cid: str = "", path: str = "", ifname: str = "eth0",
             patience: float = 60.0) -> Answer:  # fmt: skip
        """One call of the plugin, from whatever thread."""
        env = self.environment(verb, CNI_CONTAINERID=cid, CNI_NETNS=path, CNI_IFNAME=ifname if cid else "")
        stdin = json.dumps(conf).encode()
        return self.inside(lambda: call(self.program.command, env, stdin, patience=patience))

    def start_daemon(self) -> int:
        """Have the plugin start the daemon; its process id."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self.call("STATUS", self.conf())
            if answer.rc == 0:
                return self.daemon()
            assert time.monotonic() < deadline, f"the daemon does not come up\n{answer}\n{self.log_tail()}"
            time.sleep(0.1)

    def daemon(self) -> int:
        """The daemon's process id, 0 if it runs not."""
        try:
            pid = int((self.run_dir / "overlayd.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if str(self.run_dir).encode() in words and not _is_dead(pid) else 0

    def signal_daemon(self, number: int, wait: bool = True) -> bool:
        """Send the daemon a signal; with `wait` for one that ends it, until it has ended. After SIGSTOP none of its
        threads runs: the kernel stops the others only when one of them has taken the signal."""
        pid = self.daemon()
        if not pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE
        while number == signal.SIGSTOP and self.daemon() == pid and set(_states(pid)) - {"T"}:
            assert time.monotonic() < deadline, "the daemon does not stop"
            time.sleep(0.001)
        while wait and self.daemon() == pid:
            assert time.monotonic() < deadline, f"the daemon does not end on signal {number}"
            time.sleep(0.01)
        return True

    def ask(self, question: str) -> Any:
        """The tool's question, put to the daemon directly."""
        body = client.request({}, {plugin_protocol.TOOL: question.encode()}, b"")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.run_dir / "cni.sock"))
            sock.sendall(len(body).to_bytes(4, "big") + body)
            data = b""
            while part := sock.recv(1 << 18):
                data += part
        head, _, rest = data[4:].partition(b"\n")
        code, length = head.split()
        assert code == b"0", rest
        return json.loads(rest[: int(length)])

    def log_tail(self, size: int = 3000) -> str:
        try:
            return (self.run_dir / "overlayd.log").read_text(errors="replace")[-size:]
        except OSError:
            return "(no log)"

    def stored(self, kind: str) -> dict[str, bytes]:
        """The records of a kind on disk, read by SQLite itself."""
        with contextlib.closing(sqlite3.connect(f"file:{self.run_dir}/state.db?mode=ro", uri=True)) as db:
            return dict(db.execute("SELECT key, body FROM record WHERE kind = ?", (kind,)))

    def snapshot(self) -> snapshot.Snapshot:
        """Everything to be seen of the machine, without the numbers that differ from boot to boot."""

        def look() -> snapshot.Snapshot:
            view = snapshot._inside_view()
            roots = [self.run_dir, self.data_dir, Path("/tmp")]
            view["files"] = {key: value for root in roots for key, value in snapshot._tree(root, False)}
            return view

        return _without_numbers(self.inside(look))

    # --- the end ---------------------------------------------------------------------------------------------------

    def power_cut(self, wiped: bool) -> None:
        """Everything that runs ends at once, every namespace goes; `wiped` takes the run directory's content along."""
        self.end_processes(signal.SIGKILL)
        self.inside(_forget_namespaces)
        if wiped:
            shutil.rmtree(self.run_dir)
            self.run_dir.mkdir()
        self.boot()

    def end_processes(self, number: int) -> None:
        """End whatever runs in this machine's network namespace."""
        deadline = time.monotonic() + 15
        while running := netns.processes_in(self.path):
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, number)
            if time.monotonic() > deadline:
                number = signal.SIGKILL
            time.sleep(0.02)

    def close(self) -> None:
        self.end_processes(signal.SIGTERM)
        self.inside(_forget_namespaces)
        os.close(self._net)
        os.close(self._mnt)
        shutil.rmtree(self.dir, ignore_errors=True)


def _forget_namespaces() -> None:
    for path in RUN_NETNS.iterdir():
        netns.delete(path)


def _states(pid: int) -> Iterator[str]:
    """The state of each thread of a process."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            yield path.read_text().rpartition(")")[2].split()[0]


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _without_numbers(view: snapshot.Snapshot) -> snapshot.Snapshot:
    """Without interface indexes and PID files, which differ after a restart."""
    numbers = ("ifindex", "link_index", "designated_bridge", "bridge_id", "root_id")
    for section in ("links", "addresses"):
        for key, text in view[section].items():
            entry = json.loads(text)
            for name in numbers:
                entry.pop(name, None)
            view[section][key] = json.dumps(entry, sort_keys=True)
    return view


@contextlib.contextmanager
def machine(form: str, settings: str = "", *, plain: bool = False) -> Iterator[Machine]:
    """A machine for a `with`."""
    made = Machine(form, settings, plain=plain)
    try:
        yield made
    finally:
        made.close()


class Space:
    """A container's network namespace on a machine."""

    _lock = threading.Lock()
    _count = 0

    def __init__(self, on: Machine) -> None:
        with Space._lock:
            Space._count += 1
            self.name = f"zlt-c{Space._count}"
        self.machine = on
        self.path = str(RUN_NETNS / self.name)
        on.inside(lambda: netns.make(self.name))

    def sh(self, line: str, check: bool = True) -> str:
        """A line of shell inside; its output."""
        return self.machine.sh(f"nsenter --net={self.path} sh -ec '{line}'", check=check)

    def delete(self) -> None:
        """The namespace goes, as a runtime takes it away."""
        self.machine.inside(lambda: netns.delete(Path(self.path)))
