"""What the unit takes away from the daemon, and that the daemon misses none of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.binary.conftest import FROZEN
from tests.systemd.machine import SYSTEMD, UNIT, Machine, cgroups, ping

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not SYSTEMD.exists(), reason="there is no systemd (Debian: systemd)"),
    pytest.mark.skipif(cgroups() is None, reason="no cgroup2 hierarchy is mounted"),
    pytest.mark.skipif(not FROZEN["single"].exists(), reason="run scripts/build"),
    pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="no engine (Debian: wireguard-go)"),
    pytest.mark.skipif(shutil.which("iptables-legacy") is None, reason="no iptables (Debian: iptables)"),
]

EXPOSURE = 40  # tenths of what `systemd-analyze security` says
# capability: its number (capabilities(7)), and what the node cannot do without it
NEEDED = {
    "CAP_NET_ADMIN": (12, "a fence"),
    "CAP_SYS_ADMIN": (21, "add"),
    "CAP_SYS_PTRACE": (19, "attach by PID"),
    "CAP_DAC_OVERRIDE": (1, "another's data directory"),
    "CAP_CHOWN": (0, "the group's socket"),
    "CAP_NET_RAW": (13, "iptables"),
    "CAP_NET_BROADCAST": (11, "notifications of changes in containers"),
    "CAP_NET_BIND_SERVICE": (10, "a port below 1024"),
}
YAML = """
wg_port: 443
peers:
  - public_key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
    endpoint: 192.0.2.1:51420
    allowed_ips: [10.200.7.0/26]
"""


@pytest.fixture
def hard(on: Machine) -> Iterator[Machine]:
    """A node that needs all that can be needed: see `NEEDED`."""
    on.sh("getent group zlayer >/dev/null || echo zlayer:x:4242: >>/etc/group")
    for tool in ("iptables", "ip6tables"):
        for more in ("", "-save", "-restore"):
            on.sh(f"ln -sf /usr/sbin/{tool}-legacy{more} /usr/local/sbin/{tool}{more}")
    on.sh(f"systemctl stop {UNIT}; pkill wireguard-go; iptables -P FORWARD DROP; mkdir -p /etc/zlayer-cni")
    on.sh(f"cat >/etc/zlayer-cni/overlayd.yaml <<'END'\n{YAML}END")
    on.sh("rm -rf /var/lib/zlayer-cni; install -d -m 700 -o 65534 /var/lib/zlayer-cni")
    try:
        yield on
    finally:
        on.run(f"systemctl stop {UNIT}; pkill wireguard-go; iptables -P FORWARD ACCEPT; iptables -F; iptables -X")
        on.run("ip link del zl-zlayer-0-g; rm -r /etc/zlayer-cni; rm /usr/local/sbin/ip*tables*")
        on.run(f"rm -r /run/systemd/system/{UNIT}.service.d; systemctl daemon-reload")


def can(on: Machine) -> set[str]:
    """What the node can do, of `NEEDED`; nothing without a daemon that answers. It is as it was afterwards."""
    if on.run(f"systemctl is-active {UNIT}").returncode or on.run("zlayer-cni status").returncode not in (0, 1):
        return set()
    found: set[str] = set()
    try:
        on.call("ADD", "zlt-cap")
        found.add("add")
        refusals = [line for line in on.log().splitlines() if "announces no changes in containers" in line]
        if not any(f"[{on.main_pid()}]" in line for line in refusals):
            found.add("notifications of changes in containers")
    except AssertionError:
        pass
    if on.status()["fence"]["in_force"]:
        found.add("a fence")
    on.call("DEL", "zlt-cap")
    on.sh("ip netns del zlt-cap")
    on.ask({"op": "setup_service_overlay", "service": "web", "mode": "shared"})
    pid = int(on.sh("unshare -n sleep 60 >/dev/null 2>&1 & echo $!"))
    on.wait(f"test $(readlink /proc/{pid}/ns/net) != $(readlink /proc/1/ns/net)")
    handle = {"platform": "linux_pid", "pid": pid}
    said = on.ask({"op": "attach_container", "handle": handle, "service": "web", "join_global": False})
    if "ip" in str(said):
        found.add("attach by PID")
    on.ask({"op": "detach_container", "handle": handle})
    on.run(f"kill {pid}")
    if on.run("test -s /var/lib/zlayer-cni/identity.json").returncode == 0:
        found.add("another's data directory")
    if on.sh("stat -c %G /var/run/zlayer-overlayd.sock") == "zlayer":
        found.add("the group's socket")
    if "ZLAYER-CNI" in on.sh("iptables-legacy -S FORWARD"):
        found.add("iptables")
    if ":443" in on.sh("ss -lun"):
        found.add("a port below 1024")
    return found


def test_its_exposure(on: Machine) -> None:
    said = on.sh(f"systemd-analyze security --no-pager --threshold={EXPOSURE} {UNIT} | tail -1")
    assert "exposure level" in said
    status = on.sh(f"cat /proc/{on.main_pid()}/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert int(fields["CapEff"], 16) == sum(1 << number for number, _ in NEEDED.values())
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")
    inside = f"nsenter -m -t {on.main_pid()}"
    for path in ("/usr", "/etc", "/root", "/proc/sys/kernel", "/sys/kernel"):
        assert on.run(f"{inside} test -w {path}").returncode == 1, path
    for path in ("/run", "/var/lib", "/tmp", "/proc/sys/net/ipv4/ip_forward"):
        assert on.run(f"{inside} test -w {path}").returncode == 0, path


def test_it_can_do_all_it_must_and_needs_each_capability_for_it(hard: Machine) -> None:
    drop_in = f"/run/systemd/system/{UNIT}.service.d/less.conf"
    hard.sh(f"systemctl restart {UNIT}")
    assert can(hard) == {needs for _, needs in NEEDED.values()}, hard.log()
    assert hard.status()["problems"] == []
    hard.sh(f"mkdir -p $(dirname {drop_in})")
    for capability, (_, needs) in NEEDED.items():
        hard.sh(f"systemctl stop {UNIT}; pkill wireguard-go; iptables -F; iptables -X; ip link del zl-zlayer-0-g || :")
        hard.sh("rm -rf /var/lib/zlayer-cni; install -d -m 700 -o 65534 /var/lib/zlayer-cni; rm -rf /run/zlayer-cni")
        hard.sh(f"printf '[Service]\nCapabilityBoundingSet=~{capability}\n' >{drop_in}; systemctl daemon-reload")
        hard.run(f"systemctl start --no-block {UNIT}")
        restarts = f"systemctl show -p NRestarts --value {UNIT}"
        hard.wait(f"zlayer-cni status >/dev/null; test $? -le 1 || test $({restarts}) -ge 1")
        assert needs not in can(hard), f"the node needs no {capability} to {needs}"


def test_engines_have_what_they_use_and_no_more(hard: Machine) -> None:
    hard.sh(f"systemctl restart {UNIT}")
    engine = hard.sh("pgrep wireguard-go")
    fields = dict(line.split(":", 1) for line in hard.sh(f"cat /proc/{engine}/status").splitlines())
    assert {fields[name].strip() for name in ("CapPrm", "CapEff")} == {f"{1 << 12 | 1 << 10:016x}"}
    assert {fields[name].strip() for name in ("CapInh", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")
    hard.sh(f"systemctl restart {UNIT}")
    assert hard.sh("pgrep wireguard-go") == engine, "the next daemon goes on with it"
    assert hard.status()["problems"] == []


def test_namespaces_that_come_later_are_seen_and_not_kept(on: Machine) -> None:
    """The daemon has a mount namespace of its own: what runtimes mount below /run must reach it, and go again."""
    on.call("ADD", "zlt-late")
    on.sh(f"systemctl restart {UNIT}")
    on.call("ADD", "zlt-later")
    inside = f"nsenter -m -t {on.main_pid()}"
    for name in ("zlt-late", "zlt-later"):
        assert on.sh(f"{inside} stat -f -c %T /run/netns/{name}") == "nsfs"
        on.call("DEL", name)
        on.sh(f"ip netns del {name}")
        assert on.run(f"{inside} test -e /run/netns/{name}").returncode == 1
    assert "nsfs" not in on.sh(f"{inside} cat /proc/self/mounts")


def test_directories_below_what_is_read_only(on: Machine) -> None:
    """`install` opens them to the daemon."""
    on.sh(f"systemctl stop {UNIT}")
    on.sh("/root/zlayer-cni install --data-dir /home/zlt/data --run-dir /usr/local/zlt/run 2>&1")
    try:
        assert on.sh(f"systemctl is-active {UNIT}") == "active"
        assert on.run("test -S /usr/local/zlt/run/cni.sock").returncode == 0
    finally:
        on.sh("/root/zlayer-cni uninstall --purge --data-dir /home/zlt/data --run-dir /usr/local/zlt/run 2>&1")


def test_one_that_outgrows_its_bound_is_started_again(on: Machine) -> None:
    """What MemoryMax does: the kernel ends the daemon, which costs no packet, and systemd starts it again."""
    assert int(on.sh(f"systemctl show -p MemoryMax --value {UNIT}")) <= 1 << 30
    on.call("ADD", "zlt-a")
    address = on.call("ADD", "zlt-b")["ips"][0]["address"].partition("/")[0]
    first = on.main_pid()
    group = Path("/sys/fs/cgroup/memory") / on.directory.name
    if not group.parent.is_dir():
        pytest.skip("the memory controller is not where this test can lay a bound (control groups, version 1)")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(48 << 20))
        (group / "cgroup.procs").write_text(str(on.pid_here(first)))
        grow = (
            "import socket, time; kept = []\n"
            "for n in range(24):\n"
            "    kept.append(socket.socket(socket.AF_UNIX)); kept[-1].connect('/var/run/zlayer-overlayd.sock')\n"
            "    kept[-1].sendall((8 << 20).to_bytes(4, 'little') + bytes((8 << 20) - 1))\n"
        )
        on.sh(f"cat >/run/grow.py <<'END'\n{grow}END")
        ping(
            on,
            "zlt-a",
            address,
            f"python3 /run/grow.py 2>/dev/null; while kill -0 {first} 2>/dev/null; do sleep 0.05; done",
        )
        on.wait(f"test $(systemctl show -p MainPID --value {UNIT}) != 0 && zlayer-cni status")
        assert on.main_pid() != first and on.status()["attachments"] == 2
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()
    finally:
        on.wait(f"! kill -0 {first} 2>/dev/null")
        group.rmdir()
        for name in ("zlt-a", "zlt-b"):
            on.call("DEL", name)
