"""A real etcd in a namespace, for as long as a test wants one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cni.daemon import settings as settings_module
from cni.daemon.cluster.etcd_client import EtcdClient

from .fleet import Fleet, Node, inside, run, wait_for

T = TypeVar("T")
PROGRAM = shutil.which("etcd")
ADDRESS = "198.51.100.254"  # of the cluster's etcd, on the underlay
MORE_ADDRESSES = ("198.51.100.253", "198.51.100.252")  # of its other members, where it has three
LEASE, GRACE = 5, 4  # seconds; so that a node's end can be watched


class EtcdServer:
    """One member. `netns`: the name of the namespace it runs in; "" for a private one of its own, on its loopback."""

    def __init__(self, directory: Path, address: str = "127.0.0.1", netns: str = "", *more: str) -> None:
        self.directory = directory
        self.data = Path(tempfile.mkdtemp(prefix="etcd-", dir=directory))
        self.address, self.netns, self.more = address, netns, more
        self.url = f"{'https' if '--cert-file' in more else 'http'}://{address}:2379"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert PROGRAM is not None
        words = ["ip", "netns", "exec", self.netns] if self.netns else []
        words += [PROGRAM, "--name", "zlt", "--data-dir", str(self.data), "--log-level", "error", "--logger", "zap"]
        words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        words += [
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
            "--initial-advertise-peer-urls",
            "http://127.0.0.1:2380",
        ]
        words += ["--initial-cluster", "zlt=http://127.0.0.1:2380", *self.more]
        with (self.directory / "etcd.log").open("ab") as log:
            environment = {**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine, "GOMAXPROCS": "2"}
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        wait_for(self._answers, "etcd", 30)

    def _answers(self) -> bool:
        words = ["ip", "netns", "exec", self.netns] if self.netns else []
        words += ["timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{self.address}/2379"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal; its data stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def forget(self) -> None:
        """Its data is gone, as after a disaster."""
        shutil.rmtree(self.data)


def three_members(directory: Path, netns: str, addresses: tuple[str, ...]) -> list[EtcdServer]:
    """An etcd of three members, each at one of the addresses for clients and at 127.0.0.<n> for the others. Started."""
    peers = [f"http://127.0.0.{n}:2380" for n in range(1, 4)]
    all_of_them = ",".join(f"m{n}={url}" for n, url in enumerate(peers))
    members = []
    for n, (address, url) in enumerate(zip(addresses, peers, strict=True)):
        own = ("--name", f"m{n}", "--listen-peer-urls", url, "--initial-advertise-peer-urls", url)
        members.append(EtcdServer(directory, address, netns, *own, "--initial-cluster", all_of_them))
    with ThreadPoolExecutor() as threads:  # none serves before it has met another one
        list(threads.map(EtcdServer.start, members))
    return members


def certificates(directory: Path, address: str) -> dict[str, str]:
    """A CA, and what it has signed for a server at that address and for a node, by the files' names."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=zlt-ca", "-keyout", "ca.key", "-out", "ca.pem")
    (directory / "ext").write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name in ("server", "node"):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return {name: str(directory / name) for name in ("ca.pem", "server.pem", "server.key", "node.pem", "node.key")}


def ask_for_passwords(client: EtcdClient) -> None:
    """From now on etcd serves only the user root, whose password is `secret`. In etcd's namespace."""
    for path, body in (
        ("user/add", {"name": "root", "password": "secret"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("enable", {}),
    ):
        client._call(f"/v3/auth/{path}", body)


class Clustered(Fleet):
    """A fleet with an etcd on its underlay."""

    def __init__(self, tag: str, *more: str, members: int = 1) -> None:
        """`more`: etcd's own options; `members`: of the etcd, 1 or 3."""
        super().__init__(tag)
        if members == 1:
            self.etcds = [EtcdServer(self.directory, ADDRESS, self.underlay, *more)]
            self.etcds[0].start()
        else:
            for address in MORE_ADDRESSES:
                run("ip", "-n", self.underlay, "address", "add", f"{address}/24", "dev", "under0")
            self.etcds = three_members(self.directory, self.underlay, (ADDRESS, *MORE_ADDRESSES))
        self.etcd = self.etcds[0]

    def member(self, number: int, start: bool = True, **more: object) -> Node:
        """A node that knows where etcd is, and nothing else."""
        etcd = {"endpoints": [etcd.url for etcd in self.etcds], "lease": LEASE, "grace": GRACE}
        free = {"node_id": 0, "slice_cidr": None, "service_cidr": None}
        return self.node(number, start, **{**free, "cluster": {"etcd": etcd}, **more})

    def base(self, node: Node) -> str:
        """Below which the records of a node's deployment stand."""
        return f"/zlayer-cni/{node.settings['deployment']}/"

    def ask(self, work: Callable[[EtcdClient], T], **more: Any) -> T:
        """Do something with the store, as one that has its address and, by `more`, its credentials."""
        client = EtcdClient(settings_module.Etcd(endpoints=(self.etcd.url,), **more))
        return inside(f"/run/netns/{self.underlay}", lambda: work(client))

    def put(self, key: str, value: bytes) -> None:
        """Overwrite a record, without a lease."""
        self.ask(lambda client: client.put(key, value))

    def records(self, node: Node) -> dict[str, bytes]:
        """All that stands below the node's deployment, by what follows the base."""
        base = self.base(node)
        return {item.key.removeprefix(base): item.value for item in self.ask(lambda client: client.read(base))[0]}

    def document(self, node: Node) -> dict[str, Any]:
        """What a node says of itself."""
        found = (json.loads(value) for key, value in self.records(node).items() if key.startswith("node/"))
        key = node.status().public_key
        return next(dict(doc) for doc in found if doc["public_key"] == key)

    def clean(self) -> None:
        super().clean()
        for etcd in self.etcds:
            etcd.end(signal.SIGKILL)
