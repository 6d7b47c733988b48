"""A real daemon in a namespace of its own, real processes for containers, and an agent's end of the overlay door."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cni.overlay import wire
from cni.overlay.framing import Framer, frame

ROOT = Path(__file__).resolve().parents[2]
KIND = os.environ.get("ZLAYER_TEST_ATTACH", "bridge")
"""How containers are attached, for the tests that run with both kinds."""
PREFIX = 26 if KIND == "bridge" else 32  # of a container's IPv4 address
A_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
B_KEY = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="


class Agent:
    """One connection to the overlay door."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(path)
        self._framer = Framer()
        self._id = 0
        self.events: list[wire.AnyEvent] = []  # those met while waiting for answers

    def ask(self, request: wire.AnyRequest) -> wire.AnyReply:
        self._id += 1
        self.sock.sendall(frame(wire.encode(wire.RequestFrame(self._id, request))))
        while isinstance(heard := self._hear(), wire.AnyEvent):
            self.events.append(heard)  # whenever the daemon has something to tell
        assert isinstance(heard, wire.ResponseFrame)
        assert heard.id == self._id
        return heard.response

    def _hear(self) -> wire.Frame:
        while (body := self._framer.next_frame()) is None:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._framer.feed(data)
        return wire.decode_frame(body)

    def ok(self, request: wire.AnyRequest) -> None:
        assert self.ask(request) == wire.Ok()

    def error(self, request: wire.AnyRequest) -> str:
        heard = self.ask(request)
        assert isinstance(heard, wire.Err), heard
        return heard.message

    def attach(self, pid: int, service: str = "web", **more: Any) -> str:
        heard = self.ask(wire.AttachContainer(wire.LinuxPid(pid), service, False, **more))
        assert isinstance(heard, wire.Attached), heard
        return heard.ip

    def detach(self, pid: int) -> None:
        self.ok(wire.DetachContainer(wire.LinuxPid(pid)))

    def setup(self, service: str = "web", mode: wire.Mode = "auto") -> str:
        heard = self.ask(wire.SetupServiceOverlay(service, mode))
        assert isinstance(heard, wire.ServiceOverlay), heard
        return heard.name

    def setup_global(self, **changes: Any) -> wire.AnyReply:
        values: dict[str, Any] = {
            "deployment": "prod",
            "instance_id": "42",
            "cluster_cidr": "10.200.0.0/16",
            "slice_cidr": "10.200.0.16/28",
            "wg_port": 51420,
        }
        return self.ask(wire.SetupGlobalOverlay(**{**values, **changes}))

    def status(self) -> wire.Status:
        heard = self.ask(wire.StatusRequest())
        assert isinstance(heard, wire.Status), heard
        return heard

    def close(self) -> None:
        self.sock.close()


class Node:
    """A network namespace with a daemon in it. `clean` takes everything away, whatever happened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.socket = str(self.directory / "data/run/zlayer-overlayd.sock")
        self.log = self.directory / "log"
        self.daemon: subprocess.Popen[bytes] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        _run("ip", "netns", "add", name)

    def start(self, *more: str, run: str = "run") -> subprocess.Popen[bytes]:
        """Start the daemon and wait until it has opened its doors."""
        said = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            daemon = self._popen(
                [
                    *("ip", "netns", "exec", self.name, sys.executable, "-m", "cni", "overlayd"),
                    *("--run-dir", str(self.directory / run), "--data-dir", str(self.directory / "data"), *more),
                ],
                stdout=log,
                stderr=log,
            )
        ready = f"serves {self.directory / run / 'cni.sock'}"
        wait_for(lambda: ready in self.log.read_text()[said:] or daemon.poll() is not None, "the daemon")
        assert daemon.poll() is None, self.log.read_text()
        if self.daemon is None or self.daemon.poll() is not None:
            self.daemon = daemon
        return daemon

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the daemon by a signal; its exit code."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        return self.daemon.wait(60)

    def agent(self) -> Agent:
        return Agent(self.socket)

    def process(self) -> int:
        """A process in a network namespace of its own: a container, as far as the daemon can tell."""
        before = Path("/proc/self/ns/net").stat().st_ino
        made = self._popen(["unshare", "-n", "sleep", "3600"])
        wait_for(lambda: _netns(made.pid) not in (0, before), "a namespace")
        return made.pid

    def plugin(self, verb: str, service: str, pid: int = 0) -> Any:
        """What the plugin prints on the node, as a runtime would call it for the container of `pid`; {} for nothing."""
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni", "service": service, "autostart": False}
        conf |= {"runDir": str(self.directory / "run"), "dataDir": str(self.directory / "data")}
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": f"c{pid}", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", "cni"],
            input=json.dumps(conf),
            env={**os.environ, **env, **({"CNI_NETNS": f"/proc/{pid}/ns/net"} if pid else {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout or "{}")

    def kill(self, pid: int) -> None:
        """End a process of ours, and wait until the kernel has taken its namespace down."""
        made = next(each for each in self._processes if each.pid == pid)
        made.kill()
        made.wait(10)

    def ip(self, *words: str) -> Any:
        """`ip -j` on the node."""
        return json.loads(_run("ip", "-j", "-n", self.name, *words) or "[]")

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link")}

    def segments(self) -> set[str]:
        """The names of the bridges that services have, and of other links; without bridges, of the services whose
        subnets are set up."""
        if KIND == "bridge":
            return self.links()
        closed = {route["dst"] for route in self.ip("route") if route.get("type") == "unreachable"}
        with contextlib.closing(sqlite3.connect(self.directory / "run/state.db")) as records:
            bodies = [json.loads(body) for (body,) in records.execute("SELECT body FROM record WHERE kind = 'service'")]
        return self.links() | {each["bridge"] for each in bodies if each["subnets"] and closed >= set(each["subnets"])}

    def held(self) -> set[str]:
        """The addresses that are leased in the daemon's records."""
        with contextlib.closing(sqlite3.connect(self.directory / "run/state.db")) as records:
            rows = records.execute(
                "SELECT kind, key, body FROM record WHERE kind IN ('lease', 'attachment')"
            ).fetchall()
        held = {key for kind, key, _ in rows if kind == "lease"}
        for kind, _, body in rows:
            if kind == "attachment":
                held |= {each["address"].partition("/")[0] for each in json.loads(body)["addresses"]}
        return held

    def note(self, words: str) -> bool:
        return words in self.log.read_text()

    def _popen(self, words: list[str], **more: Any) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(words, cwd=ROOT, **more)
        self._processes.append(made)
        return made

    def clean(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        # WireGuard engines outlive their daemon, as they should; not their namespace.
        for pid in subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def inside(pid: int, *words: str) -> Any:
    """`ip -j` inside a process's namespace."""
    return json.loads(_run("nsenter", "-t", str(pid), "-n", "ip", "-j", *words) or "[]")


def address_inside(pid: int, ifname: str = "eth0") -> list[str]:
    """The IPv4 addresses of an interface there, with prefix."""
    return [
        f"{each['local']}/{each['prefixlen']}"
        for link in inside(pid, "-4", "address", "show", "dev", ifname)
        for each in link["addr_info"]
    ]


def reaches(pid: int, address: str) -> bool:
    """Whether a process's namespace can ping an address: one of three packets comes back within two seconds."""
    words = ["nsenter", "-t", str(pid), "-n", "ping", "-c", "3", "-i", "0.2", "-w", "2", "-q", address]
    return subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == 0


def wait_for(what: Any, name: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s for {name}"
        time.sleep(0.01)


@contextlib.contextmanager
def node(tag: str) -> Iterator[Node]:
    made = Node(f"zlt-door-{os.getpid()}-{tag}")
    try:
        yield made
    finally:
        made.clean()


def _netns(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
