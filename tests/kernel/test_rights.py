"""A daemon in a container that lacks one right: `status` and `doctor` name that one, and nothing is half made.

The container is a PID and a mount namespace with the capabilities and the mounts of the manifest's DaemonSet.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.host import wg_engine

from .toolnode import OUTSIDE4, ROOT, Space, ip, spaces, until, uplink

pytestmark = pytest.mark.long  # the daemon looks at its rights every 10 s
GIVEN = ("net_admin", "net_raw", "sys_admin")
TAKEN = {  # by the problem's words: the shell's line that takes the mount away
    "kernel settings": "mount --bind /proc/sys/net /proc/sys/net && mount -o remount,ro,bind /proc/sys/net",
    "HostToContainer": "mount --make-private /run/netns",
    "/dev/net/tun": "mount -t tmpfs none /dev/net",
}
TUNNEL = "wg_port: 51419\npeers: [{{public_key: {key}, allowed_ips: [10.201.0.0/24], endpoint: '{end}:51419'}}]\n"
KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@dataclass
class Contained:
    """A daemon in a container on a node."""

    dir: Path
    host: Space
    pod: Space
    process: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.dir / "run"

    @property
    def log(self) -> str:
        return (self.dir / "log").read_text()

    def start(self, capabilities: tuple[str, ...] = GIVEN, taken: str = "true", settings: str = "") -> None:
        """Start the daemon with these capabilities; `taken`: a line that is run in its mount namespace before."""
        for name in ("run", "data"):
            (self.dir / name).mkdir(exist_ok=True)
        (self.dir / "overlayd.yaml").write_text(f"cluster_cidr: 10.200.0.0/16\n{settings}")
        bound = ",".join(("-all", *(f"+{name}" for name in capabilities)))
        binds = " && ".join(f"mount --bind {self.dir}/{name} {self.dir}/{name}" for name in ("run", "data"))
        words = f"overlayd --config {self.dir}/overlayd.yaml --run-dir {self.dir}/run --data-dir {self.dir}/data"
        daemon = f"setpriv --bounding-set={bound} {sys.executable} -m cni {words} --socket {self.dir}/agents.sock"
        command = ["nsenter", f"--net={self.host.path}", "unshare", "--mount", "--propagation", "slave", "--pid"]
        command += ["--fork", "--kill-child", "--mount-proc", "sh", "-c", f"{binds} && {taken} && exec {daemon}"]
        with (self.dir / "log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        process = self.process
        assert until(lambda: (self.run_dir / "cni.sock").exists() or process.poll() is not None, 60), self.log

    def tool(self, *words: str) -> Any:
        """The answer of a command, on the node."""
        command = ["nsenter", f"--net={self.host.path}", sys.executable, "-m", "cni", *words, "--json"]
        done = subprocess.run([*command, "--run-dir", str(self.run_dir)], cwd=ROOT, capture_output=True, check=False)
        return json.loads(done.stdout)

    def problems(self, code: str) -> list[str]:
        return [each["text"] for each in self.tool("status")["problem_details"] if each["code"] == code]

    def call(self, verb: str) -> dict[str, Any]:
        """A verb of the runtime for the pod; its result or error."""
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni", "autostart": False}
        conf |= {"runDir": str(self.run_dir), "dataDir": str(self.dir / "data")}
        call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "pod", "CNI_NETNS": self.pod.path, "CNI_IFNAME": "eth0"}
        done = subprocess.run(
            ["nsenter", f"--net={self.host.path}", sys.executable, "-m", "cni"],
            cwd=ROOT,
            env={**os.environ, **call, "CNI_PATH": "/opt/cni/bin"},
            input=json.dumps(conf).encode(),
            capture_output=True,
            check=False,
        )
        return dict(json.loads(done.stdout or b"{}"))

    def close(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def contained(tmp_path: Path) -> Iterator[Contained]:
    with spaces() as make:
        made = Contained(tmp_path, make(), make())
        uplink(made.host, make())
        try:
            yield made
        finally:
            made.close()


def until_named(contained: Contained, code: str) -> list[str]:
    """The problems of the code, when there are some."""
    assert until(lambda: bool(contained.problems(code)), 30), contained.log
    return contained.problems(code)


def looked(contained: Contained) -> None:
    """Wait until the daemon has looked at the node once."""
    time.sleep(1)
    contained.tool("status")


def test_with_every_right_a_pod_is_attached_and_nothing_is_missing(contained: Contained) -> None:
    contained.start()
    assert "ips" in contained.call("ADD")
    looked(contained)
    assert contained.problems("right-missing") == []
    named = [each for each in contained.tool("doctor")["findings"] if each["check"] in ("privileges", "rights")]
    assert {each["level"] for each in named} == {"ok"}


@pytest.mark.parametrize("lacking", GIVEN)
def test_a_capability_that_is_missing_is_named_alone_and_nothing_is_half_made(
    contained: Contained, lacking: str
) -> None:
    before = contained.host.links()
    contained.start(tuple(name for name in GIVEN if name != lacking))
    (text,) = until_named(contained, "right-missing")
    assert f"capability {lacking.upper()}:" in text
    findings = [each for each in contained.tool("doctor")["findings"] if each["level"] == "fail"]
    assert any(text in each["text"] for each in findings)
    if lacking == "net_raw":
        assert "ips" in contained.call("ADD")  # a pod lives without announcements
        return
    assert lacking.upper() in contained.call("ADD")["msg"]
    assert lacking.upper() in contained.call("STATUS")["details"]
    assert contained.host.links() == before
    assert contained.pod.links() == set()
    assert contained.tool("attachments") == []


@pytest.mark.parametrize("word", TAKEN)
def test_a_mount_that_is_missing_is_named_alone(contained: Contained, word: str) -> None:
    settings = TUNNEL.format(key=KEY, end=OUTSIDE4) if word == "/dev/net/tun" else ""
    if settings and (not wg_engine.find() or kernel_has_wireguard(contained.host)):
        pytest.skip("needs a kernel without WireGuard, and wireguard-go")
    contained.start(taken=TAKEN[word], settings=settings)
    (text,) = until_named(contained, "right-missing")
    assert word in text


def kernel_has_wireguard(space: Space) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        ip("-n", space.name, "link", "add", "wg-try", "type", "wireguard")
        ip("-n", space.name, "link", "del", "wg-try")
        return True
    return False


def test_a_daemon_that_cannot_write_its_run_directory_ends_and_names_it(contained: Contained) -> None:
    contained.start(taken=f"mount -o remount,ro,bind {contained.run_dir}")
    process = contained.process
    assert process is not None and until(lambda: process.poll() is not None, 30), contained.log
    assert str(contained.run_dir) in contained.log and "Read-only" in contained.log


def test_a_data_directory_that_cannot_be_written_is_named(contained: Contained) -> None:
    contained.start(taken=f"mount -o remount,ro,bind {contained.dir}/data")
    (text,) = until_named(contained, "right-missing")
    assert f"cannot write {contained.dir}/data" in text


def test_an_engine_that_ends_with_the_daemons_container_is_told(contained: Contained) -> None:
    if not wg_engine.find() or kernel_has_wireguard(contained.host):
        pytest.skip("needs a kernel without WireGuard, and wireguard-go")
    contained.start(settings=TUNNEL.format(key=KEY, end=OUTSIDE4))
    (text,) = until_named(contained, "engine-ends-with-daemon")
    assert "ends with the daemon" in text
    assert contained.problems("right-missing") == []
    assert any(text in each["text"] for each in contained.tool("doctor")["findings"])
