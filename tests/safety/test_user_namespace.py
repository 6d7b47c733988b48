"""A node in a user namespace, as in a rootless container, and with a read-only /proc/sys: the kernel refuses what needs
privileges of the machine, or what is a file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = r"""
set -eu
mount -t tmpfs none /run
mkdir -p /run/netns /run/lock
ip link set lo up
ip link add eth0 type veth peer name eth0p
ip address add 198.51.100.1/24 dev eth0
ip link set eth0p up
ip link set eth0 up
ip route add default via 198.51.100.254
%(prepare)s
conf='{"cniVersion":"1.1.0","name":"n","type":"zlayer-cni","runDir":"'$D/run'","dataDir":"'$D/data'"'
export CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
call() { CNI_COMMAND=$1 CNI_CONTAINERID=c$2 CNI_NETNS=/proc/$3/ns/net "$PROGRAM" <<<"$conf,\"service\":\"s$2\"}"; }
unshare -n sleep 60 >/dev/null 2>&1 & first=$!
unshare -n sleep 60 >/dev/null 2>&1 & second=$!
sleep 0.5
set +e
call ADD 1 $first >$D/first
call ADD 2 $second >$D/second
call STATUS 0 $first >$D/status
env -u CNI_IFNAME "$PROGRAM" status --json --run-dir $D/run >$D/problems
ping() { nsenter -t $first -n ping -n -q -c 1 -W 1 $1 >>$D/pings 2>&1 && echo $1 >>$D/answered; }
address=$(nsenter -t $second -n ip -4 -o address show dev eth0 | awk '{ sub("/.*", "", $4); print $4 }')
ping "$address"
ping 198.51.100.1
ip -j link >$D/links
call DEL 1 $first
call DEL 2 $second
kill $(cat $D/run/overlayd.pid) $first $second
"""


class Rootless:
    """The outcome of a run of `SCRIPT`."""

    def __init__(self, directory: Path, program: str, prepare: str = "", settings: str = "") -> None:
        (directory / "data").mkdir()
        (directory / "data" / "overlayd.yaml").write_text(f"deployment: rootless\n{settings}")
        words = ["unshare", "-U", "-r", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "bash", "-c"]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "D": str(directory), "PROGRAM": program}
        self._directory = directory
        self.done = subprocess.run(
            [*words, SCRIPT % {"prepare": prepare}], env=env, capture_output=True, text=True, check=False, timeout=60
        )

    def json(self, name: str) -> dict[str, object]:
        """What a call printed."""
        return dict(json.loads((self._directory / name).read_text() or "{}"))

    @property
    def answered(self) -> list[str]:
        """The addresses that answered the first container."""
        path = self._directory / "answered"
        return path.read_text().split() if path.exists() else []

    @property
    def links(self) -> list[str]:
        """The names of the node's links while both containers were attached."""
        return [str(each["ifname"]) for each in json.loads((self._directory / "links").read_text())]

    @property
    def problems(self) -> list[str]:
        """The node's problems."""
        return list(self.json("problems")["problems"])  # type: ignore[call-overload]


@pytest.fixture
def allowed() -> None:
    done = subprocess.run(["unshare", "-U", "-r", "-n", "-m", "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this machine allows no user namespaces")


def test_everything_works_without_privileges_of_the_machine(
    tmp_path: Path, either_form: tuple[str, ...], allowed: None
) -> None:
    node = Rootless(tmp_path, either_form[0])
    assert "code" not in node.json("first"), (node.json("first"), node.done)
    assert node.json("status") == {}
    assert node.problems == []
    assert len(node.answered) == 2 and "198.51.100.1" in node.answered, node.answered


READ_ONLY = "sysctl -qw net.ipv4.ip_forward=0\nmount --bind /proc/sys /proc/sys\nmount -o remount,bind,ro /proc/sys"


def test_a_read_only_proc_sys_takes_nothing_from_ipv4(tmp_path: Path, program: tuple[str, ...], allowed: None) -> None:
    """The settings of links are set by netlink: two bridges, between which the node forwards."""
    node = Rootless(tmp_path, program[0], READ_ONLY)
    assert "code" not in node.json("first"), (node.json("first"), node.done)
    assert node.json("status") == {}
    assert node.problems == []
    assert len(node.answered) == 2, node.answered


def test_what_cannot_be_written_is_named_before_anything_is_made(
    tmp_path: Path, program: tuple[str, ...], allowed: None
) -> None:
    node = Rootless(tmp_path, program[0], READ_ONLY, "cluster_cidr6: fd00:200::/48\n")
    wanted = "net.ipv6.conf.all.forwarding is 0, must be 1, and cannot be written"
    assert wanted in str(node.json("first")["msg"]), node.json("first")
    assert node.json("status")["code"] == 51
    assert any(wanted in text for text in node.problems), node.problems
    assert not [name for name in node.links if name.startswith("zl-")]
