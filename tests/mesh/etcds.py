"""A real etcd in a namespace, for as long as a test wants one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from .fleet import Fleet, Node, wait_for

PROGRAM = shutil.which("etcd")
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


class Clustered(Fleet):
    """A fleet with an etcd on its underlay."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.etcd = EtcdServer(self.directory, "198.51.100.254", self.underlay)
        self.etcd.start()

    def member(self, number: int, start: bool = True, **more: object) -> Node:
        """A node that knows where etcd is, and nothing else."""
        etcd = {"endpoints": [self.etcd.url], "lease": LEASE, "grace": GRACE}
        free = {"node_id": 0, "slice_cidr": None, "service_cidr": None}
        return self.node(number, start, **{**free, "cluster": {"etcd": etcd}, **more})

    def clean(self) -> None:
        super().clean()
        self.etcd.end(signal.SIGKILL)
