"""A daemon in a namespace `zlt-tool*` with containers of CNI and a host beyond an uplink, and packets that tell whether
they arrived."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cni.cli import ask
from cni.host import netns

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
LAN4, LAN6 = "192.0.2.1", "2001:db8:2::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.9", "2001:db8:2::9"
CLUSTER4, CLUSTER6 = "10.200.0.0/16", "fd00:200::/48"
REFUSED = errno.ECONNREFUSED  # a closed port answered: the packet was there
_numbers = itertools.count()


def ip(*words: str) -> str:
    """Run `ip`; its stdout. Raises CalledProcessError."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=True).stdout


class Space:
    """One named network namespace."""

    def __init__(self) -> None:
        self.name = f"zlt-tool{os.getpid()}-{next(_numbers)}"
        ip("netns", "add", self.name)
        self.path = f"/run/netns/{self.name}"
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.name)

    def ip(self, *lines: str) -> None:
        """`ip` commands inside, one after the other."""
        for line in lines:
            ip("-n", self.name, *line.split())

    def nft(self, text: str) -> str:
        """An nft command inside; its stdout."""
        command = ["nft", text]
        return self.inside(lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def links(self) -> set[str]:
        return {link["ifname"] for link in json.loads(ip("-n", self.name, "-j", "link"))} - {"lo"}

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread in this namespace that dies afterwards."""
        box: list[T] = []

        def body() -> None:
            with netns.entered(self.fd):
                box.append(work())

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        return box[0]


@contextlib.contextmanager
def spaces() -> Iterator[Callable[[], Space]]:
    """Makes namespaces, and removes them."""
    made: list[Space] = []

    def make() -> Space:
        made.append(Space())
        return made[-1]

    try:
        yield make
    finally:
        for space in made:
            space.close()


@dataclass
class Node:
    """A daemon in a namespace of its own, with containers, and a host beyond an uplink."""

    dir: Path
    host: Space
    outside: Space
    boxes: dict[str, Space] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    settings: str = f"cluster_cidr: {CLUSTER4}\ncluster_cidr6: {CLUSTER6}\n"

    @property
    def run_dir(self) -> str:
        return str(self.dir / "run")

    def start(self) -> None:
        """The daemon, as its users start it."""
        settings = self.dir / "overlayd.yaml"
        settings.write_text(self.settings)
        words = ["overlayd", "--config", str(settings), "--run-dir", self.run_dir]
        words += ["--data-dir", str(self.dir / "data"), "--socket", str(self.dir / "agents.sock")]
        with (self.dir / "log").open("wb") as log:
            self.process = self.program(*words, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(ask.NoDaemon):
                self.ask("status")
                return
            assert self.process.poll() is None, (self.dir / "log").read_text()
            assert time.monotonic() < deadline, (self.dir / "log").read_text()
            time.sleep(0.05)

    def program(self, *words: str, env: dict[str, str] | None = None, **how: Any) -> subprocess.Popen[bytes]:
        """The program in the host's namespace."""
        command = ["nsenter", f"--net={self.host.path}", sys.executable, "-m", "cni", *words]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}, **how)

    def tool(self, *words: str) -> tuple[int, str]:
        """A command of the tool: exit code, stdout."""
        with self.program(*words, "--run-dir", self.run_dir, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=120)
        return process.returncode, out.decode()

    def ask(self, question: str, **more: str) -> Any:
        """The daemon's answer, as `--json` has it."""
        return json.loads(ask.request(self.run_dir, question, {name.upper(): value for name, value in more.items()}))

    def why(self, src: str, dst: str, port: str = "") -> Any:
        return self.ask("why", src=src, dst=dst, port=port)

    def add(
        self,
        name: str,
        space: Space,
        service: str,
        network: str | None,
        cni_network: str = "net",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """A container, attached as a runtime does it. `labels`: of `args.cni.labels`."""
        self.boxes[name] = space
        conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": cni_network, "type": "zlayer-cni", "service": service}
        conf |= {"runDir": self.run_dir, "dataDir": str(self.dir / "data"), "autostart": False}
        conf |= {} if network is None else {"isolationNetwork": network}
        conf |= {"args": {"cni": {"labels": [{"key": k, "value": v} for k, v in (labels or {}).items()]}}}
        self.results[name] = json.loads(self._call("ADD", name, space, conf))

    def delete(self, name: str, cni_network: str = "net") -> None:
        """The runtime's DEL."""
        conf = {"cniVersion": "1.0.0", "name": cni_network, "type": "zlayer-cni", "autostart": False}
        conf |= {"runDir": self.run_dir, "dataDir": str(self.dir / "data")}
        self._call("DEL", name, self.boxes[name], conf)

    def _call(self, verb: str, name: str, space: Space, conf: dict[str, Any]) -> bytes:
        call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": name, "CNI_NETNS": space.path, "CNI_IFNAME": "eth0"}
        call |= {"CNI_PATH": "/opt/cni/bin", "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME={name}"}
        with self.program(env=call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(json.dumps(conf).encode(), timeout=60)
        assert process.returncode == 0, out
        return out

    def address(self, name: str, version: int = 4) -> str:
        found = (each["address"].partition("/")[0] for each in self.results[name]["ips"])
        return next(address for address in found if (":" in address) == (version == 6))

    def gateway(self, name: str, version: int = 4) -> str:
        return next(e["gateway"] for e in self.results[name]["ips"] if (":" in e["gateway"]) == (version == 6))

    def drops(self, rule: dict[str, Any]) -> int:
        """How many packets a rule has dropped."""
        listed = self.host.inside(
            lambda: subprocess.check_output(["nft", "-j", "list", "chain", rule["family"], "zlayer_cni", rule["chain"]])
        )
        rules = [item["rule"] for item in json.loads(listed)["nftables"] if "rule" in item]
        (expressions,) = [each["expr"] for each in rules if each["comment"] == rule["name"]]
        return sum(each["counter"]["packets"] for each in expressions if "counter" in each)

    def space_of(self, word: str) -> Space:
        return {"node": self.host, "outside": self.outside}.get(word) or self.boxes[word]

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def uplink(host: Space, outside: Space) -> None:
    ip("-n", host.name, "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
    for space, device, four, six in ((host, "up0", LAN4, LAN6), (outside, "eth0", OUTSIDE4, OUTSIDE6)):
        space.ip("link set lo up", f"link set {device} up", f"addr add {four}/24 dev {device}")
        space.ip(f"addr add {six}/64 dev {device} nodad")
    host.ip(f"route add default via {OUTSIDE4}", f"-6 route add default via {OUTSIDE6}")
    outside.ip(f"route add {CLUSTER4} via {LAN4}", f"-6 route add {CLUSTER6} via {LAN6}")
    for space in (host, outside):
        for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
            space.inside(functools.partial(Path("/proc/sys/net", name).write_text, "0"))


def knock(space: Space, address: str, port: int, kind: int, source: str | None) -> socket.socket:
    """The first packet of a flow, on its way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = space.inside(lambda: socket.socket(family, kind))
    made.setblocking(False)
    with contextlib.suppress(OSError):
        if source:
            made.bind((source, 0))
        made.connect((address, port))
    if kind == socket.SOCK_DGRAM:
        with contextlib.suppress(OSError):
            made.send(b"zlt")
    return made


def reached(sock: socket.socket) -> bool:
    """Whether the closed port, or an open one, at the other end has answered."""
    state = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if state == REFUSED:
        return True
    if sock.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            sock.getpeername()
            return True
    return False


def until(met: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def agrees(node: Node, path: dict[str, Any], src: str, port: int, kind: int) -> str:
    """Empty if the packets do as `path` says, else what they did."""
    outside = OUTSIDE6 if path["family"] == 6 else OUTSIDE4
    address = path["to"]["address"] or outside
    rule = path["rule"]
    before = node.drops(rule) if rule and not path["allowed"] else 0
    with knock(node.space_of(src), address, port, kind, path["from"]["address"]) as sock:
        if path["allowed"]:
            return "" if until(lambda: reached(sock), 15) else "may, and got no answer"
        if rule and not until(lambda: node.drops(rule) > before, 15):
            return f"may not, and {rule} counted nothing"
        return "may not, and was answered" if until(lambda: reached(sock), 0.1 if rule else 0.4) else ""


@contextlib.contextmanager
def running(directory: Path, containers: Mapping[str, tuple[str, str | None]], settings: str = "") -> Iterator[Node]:
    """A node with an uplink, its daemon and these containers: service and isolation network by name. `settings`: YAML
    beside the node's own."""
    with spaces() as make:
        made = Node(directory, make(), make())
        made.settings += settings
        try:
            uplink(made.host, made.outside)
            made.start()
            for name, (service, network) in containers.items():
                made.add(name, make(), service, network)
            yield made
        finally:
            made.close()
