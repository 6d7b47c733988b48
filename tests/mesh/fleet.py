"""Nodes of a mesh on one machine: each a network namespace with its own daemon, run and data directory, engine and
containers, joined by an underlay that is a namespace with a bridge in it.

Everything is named zlt-m<pid>-<tag>; `clean` takes it away, whatever happened, with the processes inside. WireGuard
engines have their sockets below /var/run/wireguard, which all namespaces share: so each node has a deployment of its
own name, and those of a run that died are swept when the next begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cni import naming
from cni.host import netns as host_netns
from cni.host import wg_engine
from cni.overlay import wire
from cni.overlay.framing import Framer, frame

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PREFIX = "zlt-m"
UAPI = Path("/var/run/wireguard")
PORT = 51420
SLOW = float(os.environ.get("ZLAYER_TEST_SLOW", "1"))  # how much slower than usual: an emulated machine is 20 times


def run(*words: str, check: bool = True, timeout: float = 30 * SLOW) -> str:
    """A command's stdout. Raises RuntimeError with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout


def wait_for(what: Callable[[], T], name: str, seconds: float = 20.0, step: float = 0.02) -> T:
    """The first true value of `what`; how long it took is `waited`. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s for {name}"
        time.sleep(step)


def seconds_until(what: Callable[[], object], name: str, seconds: float = 30.0) -> float:
    """How long it took until `what` was true."""
    began = time.monotonic()
    wait_for(what, name, seconds)
    return time.monotonic() - began


def inside(path: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread that enters the network namespace at `path`: a socket opened there stays there."""
    box: list[Any] = []

    def body() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with host_netns.entered(fd):
                box.extend((True, work()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            box.extend((False, error))
        finally:
            os.close(fd)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    good, value = box
    if not good:
        raise value
    return value


class Agent:
    """One connection to a node's overlay door."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(path)
        self._framer = Framer()
        self._id = 0
        self.events: list[wire.AnyEvent] = []  # those met while waiting for answers

    def ask(self, request: wire.AnyRequest) -> Any:
        self._id += 1
        self.sock.sendall(frame(wire.encode(wire.RequestFrame(self._id, request))))
        while isinstance(heard := self._hear(), wire.AnyEvent):
            self.events.append(heard)  # whenever the daemon has something to tell
        assert isinstance(heard, wire.ResponseFrame)
        return heard.response

    def _hear(self) -> wire.Frame:
        while (body := self._framer.next_frame()) is None:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._framer.feed(data)
        return wire.decode_frame(body)

    def ok(self, request: wire.AnyRequest) -> None:
        said = self.ask(request)
        assert said == wire.Ok(), said

    def close(self) -> None:
        self.sock.close()


@dataclass
class Container:
    """A process in a network namespace of its own, attached to a node by the plugin."""

    node: Node
    name: str
    process: subprocess.Popen[bytes]
    service: str
    address: str = ""
    address6: str = ""
    mtu: int = 0
    conf: dict[str, Any] = field(default_factory=dict)
    path: str = ""  # of its namespace, where that has a name
    result: dict[str, Any] = field(default_factory=dict)  # of ADD
    arguments: str = ""  # CNI_ARGS

    @property
    def network(self) -> str | None:
        """The isolation network it asked for."""
        found = self.conf.get("isolationNetwork")
        return None if found is None else str(found)

    @property
    def netns(self) -> str:
        return self.path or f"/proc/{self.process.pid}/ns/net"

    def give_name(self) -> None:
        """Its namespace has a name, as most runtimes give it one."""
        path = self.node.directory / f"ns-{self.name}"
        path.touch()
        run("mount", "--bind", self.netns, str(path))
        self.path = str(path)

    def take_name(self) -> None:
        """The name is gone, the namespace is not. Idempotent."""
        if self.path:
            run("umount", self.path, check=False)

    def run(self, *words: str, check: bool = True) -> str:
        return run("nsenter", "-t", str(self.process.pid), "-n", *words, check=check)

    def pings(self, address: str, size: int = 56, wait: float = 4.0) -> bool:
        """Whether one unfragmented echo of so many bytes is answered within `wait` seconds: where it must be, many."""
        words = ["nsenter", "-t", str(self.process.pid), "-n", "ping", "-n", "-q", "-c", "1", "-W", f"{wait:g}"]
        words += ["-M", "do", "-s", str(size), address]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def socket(self, kind: int, family: int = socket.AF_INET) -> socket.socket:
        made = inside(self.netns, lambda: socket.socket(family, kind))
        made.settimeout(5 * SLOW)
        return made

    def kill(self) -> None:
        self.take_name()
        self.process.kill()
        self.process.wait()


def arrives(one: Container, two: Container) -> None:
    """The way is there, now or soon: a first handshake takes a moment."""
    wait_for(lambda: one.pings(two.address), f"{one.name} -> {two.name}")


def echoes(
    client: Container, server: Container, kind: int, size: int, six: bool = False, patience: float = 5.0
) -> bool:
    """Whether `size` bytes go from one to the other and come back, whole, with no silence longer than `patience`.

    A datagram may be lost on a machine that has much to do, and is sent up to three times.
    """
    tries = 3 if kind == socket.SOCK_DGRAM else 1
    return any(_echoes(client, server, kind, size, six, patience) for _ in range(tries))


def _echoes(client: Container, server: Container, kind: int, size: int, six: bool, patience: float) -> bool:
    family = socket.AF_INET6 if six else socket.AF_INET
    address = server.address6 if six else server.address
    data = os.urandom(size)
    with server.socket(kind, family) as ear, client.socket(kind, family) as mouth:
        ear.settimeout(patience * SLOW + 1)
        mouth.settimeout(patience * SLOW)
        ear.bind((address, 0))
        port = ear.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            ear.listen()
        thread = threading.Thread(target=_answer, args=(ear, kind, size), daemon=True)
        thread.start()
        try:
            mouth.connect((address, port))
            threading.Thread(target=_send, args=(mouth, data), daemon=True).start()
            heard = b""
            while len(heard) < size:
                part = mouth.recv(1 << 16)
                if not part:
                    break
                heard += part
            return heard == data
        except OSError:
            return False
        finally:
            thread.join(6)


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def _answer(ear: socket.socket, kind: int, size: int) -> None:
    with contextlib.suppress(OSError):
        if kind == socket.SOCK_DGRAM:
            data, sender = ear.recvfrom(1 << 16)
            ear.sendto(data, sender)
            return
        speaker, _ = ear.accept()
        with speaker:
            speaker.settimeout(5)
            left = size
            while left:
                data = speaker.recv(1 << 16)
                if not data:
                    return
                speaker.sendall(data)
                left -= len(data)


class Node:
    """One node."""

    def __init__(self, fleet: Fleet, number: int, **settings: Any) -> None:
        self.fleet = fleet
        self.number = number
        self.name = f"{fleet.prefix}{number}"
        self.directory = fleet.directory / f"node{number}"
        self.directory.mkdir(mode=0o755)
        self.underlay = f"198.51.100.{number}"
        self.settings: dict[str, Any] = {
            "deployment": f"m{os.getpid() % 100000}{fleet.tag}",
            "instance_id": str(number),
            "node_id": number,
            "slice_cidr": f"10.200.{number}.0/26",
            "service_cidr": f"10.200.{number * 32}.0/19",
            "wg_port": PORT,
            **settings,
        }
        self.device = naming.global_device(self.settings["deployment"], self.settings["instance_id"])
        self.socket = str(self.directory / "overlayd.sock")
        self.log = self.directory / "log"
        self.program: tuple[str, ...] = (sys.executable, "-m", "cni")
        self.daemon: subprocess.Popen[bytes] | None = None
        self.containers: list[Container] = []
        self._count = 0

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def start(self, without: str = "") -> float:
        """Start the daemon, wait until it serves; seconds it took. `without`: a file that is not there for it."""
        config = self.write()
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.name, *(hidden(without) if without else ())),
                    *(*self.program, "overlayd"),
                    *("--config", str(config), "--run-dir", str(self.directory / "run")),
                    *("--data-dir", str(self.directory / "data"), "--socket", self.socket),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        daemon = self.daemon
        wait_for(lambda: self.serves() or daemon.poll() is not None, "the daemon", 40)
        assert daemon.poll() is None, self.log.read_text()
        return time.monotonic() - began

    def write(self) -> Path:
        """Write the YAML; returns its path."""
        config = self.directory / "overlayd.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        return config

    def serves(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            return sock.connect_ex(self.socket) == 0

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the daemon by a signal."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        self.daemon.wait(20)

    def agent(self) -> Agent:
        return Agent(self.socket)

    def ask(self, request: wire.AnyRequest) -> Any:
        with contextlib.closing(self.agent()) as agent:
            return agent.ask(request)

    def status(self) -> wire.Status:
        found = self.ask(wire.StatusRequest())
        assert isinstance(found, wire.Status), found
        return found

    def tool(self, *words: str, check: bool = True) -> Any:
        """`zlayer-cni WORDS --json`, decoded."""
        done = self.cli(*words, "--json", "--run-dir", str(self.directory / "run"))
        if check and done.returncode > 1:
            raise RuntimeError(done.stderr + done.stdout)
        return json.loads(done.stdout)

    def problem(self, code: str) -> str:
        """The texts of the node's problems of that code; empty if there is none."""
        details = self.tool("status")["problem_details"]
        return "; ".join(detail["text"] for detail in details if detail["code"] == code)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *self.program, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60 * SLOW,
            check=False,
        )

    def wg(self, *words: str) -> str:
        return run("ip", "netns", "exec", self.name, "wg", *words)

    def engine(self) -> int:
        """The pid of the engine of the global device; 0 for the kernel's."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if Path(words[0].decode()).name in wg_engine.PROGRAMS and self.device.encode() in words:
                    return pid
        return 0

    def pids(self) -> list[int]:
        return [int(pid) for pid in run("ip", "netns", "pids", self.name, check=False).split()]

    def ip(self, *words: str) -> Any:
        return json.loads(run("ip", "-j", "-n", self.name, *words) or "[]")

    def unattached(self, service: str = "web", **conf: Any) -> Container:
        """A process in a network namespace of its own, not yet attached."""
        self._count += 1
        name = f"n{self.number}-{service}-{self._count}"
        before = Path("/proc/self/ns/net").stat().st_ino
        process = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
        made = Container(self, name, process, service, conf=conf)
        self.containers.append(made)
        wait_for(lambda: Path(made.netns).stat().st_ino != before, "a namespace")
        return made

    def container(self, service: str = "web", named: bool = False, **conf: Any) -> Container:
        """A container, attached by the plugin. `named`: by a path that is not its process's."""
        made = self.unattached(service, **conf)
        if named:
            made.give_name()
        result = made.result = json.loads(self.plugin("ADD", made))
        for each in result["ips"]:
            address = each["address"].partition("/")[0]
            if ":" in address:
                made.address6 = address
            else:
                made.address = address
        made.mtu = json.loads(made.run("ip", "-j", "link", "show", "eth0"))[0]["mtu"]
        return made

    def plugin(self, verb: str, container: Container) -> str:
        """A verb of CNI's; what it prints."""
        return self.call(verb, container).stdout

    def call(self, verb: str, container: Container, check: bool = True) -> subprocess.CompletedProcess[str]:
        conf = {
            "cniVersion": "1.1.0",
            "name": "zlt-mesh",
            "type": "zlayer-cni",
            "runDir": str(self.directory / "run"),
            "dataDir": str(self.directory / "data"),
            "autostart": False,
            "service": container.service,
            **container.conf,
        }
        env = {
            **os.environ,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": container.arguments,
        }
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *self.program],
            input=json.dumps(conf),
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60 * SLOW,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{verb}: {done.stdout} {done.stderr}\n{self.log.read_text()[-3000:]}")
        return done

    def remove(self, container: Container) -> None:
        self.plugin("DEL", container)
        container.kill()
        self.containers.remove(container)

    def why(self, src: str, dst: str) -> bool:
        """What `zlayer-cni why` says here, of one address to another."""
        return bool(self.tool("why", src, dst)["allowed"])

    def cut(self, healed: bool = False) -> None:
        """Take the node's cable out, or put it in again."""
        run("ip", "-n", self.fleet.underlay, "link", "set", f"n{self.number}", "up" if healed else "down")

    def clean(self) -> None:
        for container in self.containers:
            container.kill()
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
        # An engine that is asked takes its socket with it.
        for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 0.0)):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not self.pids(), "their end", seconds / SLOW)
        if self.daemon is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(10)
        run("ip", "netns", "delete", self.name, check=False)


class Fleet:
    """The underlay, the nodes on it, and an etcd where one is wanted."""

    def __init__(self, tag: str) -> None:
        sweep()
        self.tag = tag
        self.prefix = f"{PREFIX}{os.getpid()}-{tag}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.underlay = f"{self.prefix}u"
        self.nodes: dict[int, Node] = {}
        self.outside: list[Node] = []  # machines that are none of the fleet's, on its underlay
        self.namespaces: list[str] = []  # further ones, such as routers
        run("ip", "netns", "add", self.underlay)
        for words in (
            "link set lo up",
            # Its MAC is set: a node that comes later might change it, and the others' neighbour entries be wrong.
            "link add under0 address 02:00:c6:33:64:fe type bridge",
            "address add 198.51.100.254/24 dev under0",
            "link set under0 up",
        ):
            run("ip", "-n", self.underlay, *words.split())

    def node(self, number: int, start: bool = True, **settings: Any) -> Node:
        node = Node(self, number, **settings)
        self.wire(node)
        if start:
            node.start()
        return node

    def wire(self, node: Node) -> None:
        """The node's namespace, with a cable to the underlay."""
        number = node.number
        self.nodes[number] = node
        run("ip", "netns", "add", node.name)
        port = f"n{number}"
        run("ip", "-n", node.name, "link", "set", "lo", "up")
        made = ("link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.underlay)
        run("ip", "-n", node.name, *made)
        for words in (f"address add {node.underlay}/24 dev eth0", "link set eth0 up"):
            run("ip", "-n", node.name, *words.split())
        for words in (f"link set {port} master under0", f"link set {port} up"):
            run("ip", "-n", self.underlay, *words.split())
        run("ip", "-n", node.name, "route", "add", "default", "via", "198.51.100.254")

    def part(self, one: Node, two: Node) -> None:
        """Nothing passes between these two any more."""
        chain = "type filter hook forward priority 0; policy accept;"
        between = f"{{ {one.underlay}, {two.underlay} }}"
        text = f"table bridge zlt_part {{ chain forward {{ {chain} ip saddr {between} ip daddr {between} drop; }}; }}"
        run("ip", "netns", "exec", self.underlay, "nft", text)

    def heal(self) -> None:
        """Everything passes again."""
        run("ip", "netns", "exec", self.underlay, "nft", "delete table bridge zlt_part")

    def clean(self) -> None:
        for node in (*self.nodes.values(), *self.outside):
            node.clean()
        for pid in run("ip", "netns", "pids", self.underlay, check=False).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for name in (*self.namespaces, self.underlay):
            run("ip", "netns", "delete", name, check=False)
        for node in (*self.nodes.values(), *self.outside):
            for path in UAPI.glob(f"{node.device}.sock"):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def link(one: Node, *others: Node) -> None:
    """Each a static peer of every other, as two people with two files would write it. Before they are started."""
    nodes = (one, *others)
    for node in nodes:
        node.settings["peers"] = [
            {
                "public_key": node_key(other),
                "endpoint": f"{other.underlay}:{other.settings['wg_port']}",
                "allowed_ips": [other.settings["slice_cidr"], other.settings["service_cidr"]],
                "keepalive": 5,
            }
            for other in nodes
            if other is not node
        ]


def kernel_has_wireguard() -> bool:
    """Whether a link of that kind can be made: the daemon's own probe, by another program."""
    words = ["unshare", "-n", "ip", "link", "add", f"zltp{os.getpid()}", "type", "wireguard"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def hidden(path: str) -> tuple[str, ...]:
    """The beginning of a command line: what follows runs in a mount namespace in which that file cannot be executed."""
    return ("unshare", "-m", "sh", "-c", f'mount --bind /dev/null {path} && exec "$@"', "sh")


def node_key(node: Node) -> str:
    """The node's public key, made beforehand as its first start would."""
    from cni.daemon.state.identity import Identity

    return Identity(str(node.directory / "data")).public_key()


def sweep() -> None:
    """Remove the namespaces of runs that are no more, and end what still lives inside."""
    for path in Path("/run/netns").glob(f"{PREFIX}*") if Path("/run/netns").is_dir() else ():
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            for inner in run("ip", "netns", "pids", path.name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(inner), signal.SIGKILL)
            run("ip", "netns", "delete", path.name, check=False)


@contextlib.contextmanager
def fleet(tag: str) -> Iterator[Fleet]:
    """A fleet that is taken away in the end."""
    made = Fleet(tag)
    try:
        yield made
    finally:
        made.clean()
