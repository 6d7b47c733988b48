"""The unit that `install` writes, under a real systemd: what restarts, kills, boots and removal do to containers."""

from __future__ import annotations

import os
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
]


def test_it_is_ready_when_install_returns(on: Machine) -> None:
    assert on.sh(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}").split() == ["active", "enabled"]
    assert on.status()["pid"] == on.main_pid()
    assert on.sh(f"systemd-analyze verify /etc/systemd/system/{UNIT}.service 2>&1 | grep {UNIT} || echo good") == "good"
    before = on.main_pid()
    assert "already" in on.sh("/root/zlayer-cni install 2>&1")
    assert on.main_pid() == before, "nothing was new, and nothing was restarted"


def test_nothing_that_happens_to_it_costs_a_packet(on: Machine) -> None:
    on.call("ADD", "zlt-a")
    address = on.call("ADD", "zlt-b")["ips"][0]["address"].partition("/")[0]
    first = on.main_pid()
    ping(on, "zlt-a", address, f"systemctl restart {UNIT}")
    second = on.main_pid()
    assert second != first and on.status()["attachments"] == 2
    ping(on, "zlt-a", address, f"kill -9 {second}; until zlayer-cni status; do sleep 0.1; done")
    assert on.main_pid() not in (0, second) and on.status()["attachments"] == 2
    ping(on, "zlt-a", address, f"systemctl stop {UNIT}; sleep 1")
    assert on.main_pid() == 0


def test_a_call_has_systemd_start_it(on: Machine) -> None:
    on.sh(f"systemctl stop {UNIT}")
    on.call("ADD", "zlt-c")
    assert on.status()["pid"] == on.main_pid() != 0
    on.call("DEL", "zlt-c")


def test_it_takes_over_from_one_that_a_plugin_started(on: Machine) -> None:
    on.sh(f"systemctl disable --now {UNIT}")
    address = on.call("ADD", "zlt-d")["ips"][0]["gateway"]
    plugins = on.status()["pid"]
    assert on.main_pid() == 0
    ping(on, "zlt-d", address, f"systemctl enable --now {UNIT}")
    assert on.status()["pid"] == on.main_pid() not in (0, plugins)
    assert on.run(f"kill -0 {plugins}").returncode != 0
    on.call("DEL", "zlt-d")


def test_a_reload_tries_the_settings_before_it_replaces_the_daemon(on: Machine) -> None:
    """What could not start ends nothing; what can is in force a second later."""
    address = on.call("ADD", "zlt-r")["ips"][0]["gateway"]
    before = on.main_pid()
    on.sh("mkdir -p /etc/zlayer-cni; echo 'node_id: seven' >/etc/zlayer-cni/overlayd.yaml")
    assert on.run(f"systemctl reload {UNIT}").returncode != 0
    assert on.status()["pid"] == on.main_pid() == before
    on.sh("echo 'cluster_cidr: 10.77.0.0/16' >/etc/zlayer-cni/overlayd.yaml")  # not with a container attached
    assert on.run(f"systemctl reload {UNIT}").returncode != 0
    on.sh("rm -r /etc/zlayer-cni")
    ping(on, "zlt-r", address, f"systemctl reload {UNIT}; sleep 3; until zlayer-cni status; do sleep 0.1; done")
    assert on.main_pid() not in (0, before)
    on.call("DEL", "zlt-r")


def test_systemd_never_gives_up(on: Machine) -> None:
    """Settings that are wrong for a while cost nothing but that while."""
    on.sh("mkdir -p /etc/zlayer-cni; echo 'node_id: seven' >/etc/zlayer-cni/overlayd.yaml")
    assert on.run(f"systemctl restart {UNIT}").returncode != 0
    on.wait(f"test $(systemctl show -p NRestarts --value {UNIT}) -ge 6")
    on.sh("rm -r /etc/zlayer-cni")
    on.wait(f"systemctl is-active {UNIT} && zlayer-cni status")


def test_a_boot(on: Machine) -> None:
    """The run directory and every namespace are gone; the unit is there before anybody asks."""
    on.call("ADD", "zlt-e")
    on.off()
    on.boot()
    on.wait(f"systemctl is-active {UNIT}")
    assert on.status()["pid"] == on.main_pid()
    assert on.status()["attachments"] == 0
    on.call("DEL", "zlt-e")
    on.call("ADD", "zlt-e")
    on.call("DEL", "zlt-e")


def test_uninstall_leaves_nothing(on: Machine) -> None:
    on.call("ADD", "zlt-f")
    on.sh(f"systemctl stop {UNIT}")
    done = on.run("zlayer-cni uninstall")
    assert done.returncode == 1 and "1 containers are attached" in done.stderr, done.stderr
    on.call("DEL", "zlt-f")
    on.sh("zlayer-cni uninstall --purge 2>&1")
    assert on.sh("find /etc /opt /run /usr/local /var/lib -xdev -iname '*zlayer*'") == ""
    assert "zl-" not in on.sh("ip -br link; nft list tables")
    assert on.run("pgrep -f overlayd").returncode != 0
    assert on.run(f"systemctl cat {UNIT}").returncode != 0


def test_the_machines_root_is_not_the_hosts(on: Machine) -> None:
    assert not Path("/etc/zlt").exists(), "what the machine writes stays its own"
