"""Programs of the host resolve the overlay's names by systemd-resolved, under real systemd programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.binary.conftest import FROZEN
from tests.systemd.machine import SYSTEMD, UNIT, Machine, cgroups, directory

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not SYSTEMD.exists(), reason="there is no systemd (Debian: systemd)"),
    pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="there is no dbus-daemon (Debian: dbus)"),
    pytest.mark.skipif(cgroups() is None, reason="no cgroup2 hierarchy is mounted"),
    pytest.mark.skipif(not FROZEN["single"].exists(), reason="run scripts/build"),
]
LINK = "zl-zlayer-0-r"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's package of systemd-resolved, which is installed on the scratch machine alone."""
    where = tmp_path_factory.mktemp("deb")
    where.chmod(0o777)
    done = subprocess.run(
        ["apt-get", "download", "-q", "systemd-resolved"],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = list(where.glob("*.deb"))
    if not found:
        pytest.skip(f"systemd-resolved cannot be downloaded: {done.stderr.strip()[-200:]}")
    return found[0]


@pytest.fixture(scope="module")
def on(package: Path) -> Iterator[Machine]:
    found = cgroups()
    assert found is not None
    machine = Machine(directory(), found)
    try:
        machine.boot()
        machine.bring(FROZEN["single"], "/root/zlayer-cni")
        machine.bring(package, "/root/resolved.deb")
        machine.sh("systemctl unmask dbus.socket dbus; systemctl start dbus.socket; busctl status >/dev/null")
        machine.sh("mkdir -p /etc/zlayer-cni; echo 'dns: {host: true}' >/etc/zlayer-cni/overlayd.yaml")
        machine.sh("systemctl stop containerd 2>/dev/null; /root/zlayer-cni install 2>&1")
        yield machine
    finally:
        machine.remove()


def problems(on: Machine) -> list[str]:
    return [text for text in on.status()["problems"] if "programs of the host cannot resolve" in text]


def test_without_systemd_resolved_it_is_a_problem(on: Machine) -> None:
    on.wait("zlayer-cni status | grep -q 'systemd-resolved does not run'")
    assert len(problems(on)) == 1
    assert on.run(f"ip link show {LINK}").returncode != 0


def test_the_host_resolves_containers_and_nothing_else_changes(on: Machine) -> None:
    on.sh("DEBIAN_FRONTEND=noninteractive dpkg -i /root/resolved.deb; systemctl start systemd-resolved")
    on.sh("rm -f /etc/resolv.conf; echo 'nameserver 192.0.2.1' >/etc/resolv.conf")
    address = on.call("ADD", "zlt-web")["ips"][0]["address"].partition("/")[0]
    on.sh("sed -i 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf")
    on.wait(f"ip link show {LINK}")
    on.wait("zlayer-cni status | grep -q 'names other servers than systemd-resolved'")

    on.sh("echo 'nameserver 127.0.0.53' >/etc/resolv.conf; md5sum /etc/resolv.conf >/root/before")
    on.wait("! zlayer-cni status | grep -q 'programs of the host'")
    assert on.sh("getent ahostsv4 zlt-web.zlayer.zlayer.zlayer.local").split()[0] == address
    assert on.sh(f"getent hosts {address}").split()[1].startswith("zlt-web.zlayer.")
    shown = on.sh(f"resolvectl status {LINK}")
    assert "-DefaultRoute" in shown and "~zlayer.zlayer.local" in shown and "~200.10.in-addr.arpa" in shown
    on.sh("md5sum -c /root/before")
    assert on.run("timeout 8 getent hosts www.example.org").returncode != 0  # there is no server for other names
    assert on.status()["dns"]["counts"].get("forwarded", 0) == 0, "systemd-resolved asks the node for the zone alone"


def test_it_is_set_again_after_a_restart_of_either(on: Machine) -> None:
    lookup = "getent ahostsv4 zlt-web.zlayer.zlayer.zlayer.local"
    on.sh("systemctl restart systemd-resolved")
    on.wait(lookup)
    on.sh(f"systemctl restart {UNIT}")
    on.wait(lookup)
    on.sh(f"ip link del {LINK}; systemctl restart {UNIT}")
    on.wait(lookup)


def test_turning_it_off_removes_the_link(on: Machine) -> None:
    on.sh(f"echo 'dns: {{host: false}}' >/etc/zlayer-cni/overlayd.yaml; systemctl restart {UNIT}")
    on.wait(f"! ip link show {LINK}")
    assert problems(on) == []
