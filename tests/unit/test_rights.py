"""What a daemon's container lacks, and what ends with it: from values."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from cni.host import container, process
from cni.host.rights import CAPABILITIES, Mount, Rights, missing, mount_of, parse_mounts

RUN, DATA = "/run/zlayer-cni", "/var/lib/zlayer-cni"
MOUNTS = (Mount("/", False, "overlay"), Mount("/run/netns", True), Mount(RUN, False), Mount(DATA, False))
ALL = Rights(sum(1 << number for _, number, _ in CAPABILITIES), MOUNTS, "", "", {RUN: "", DATA: ""})


def test_the_manifests_container_lacks_nothing() -> None:
    assert missing(ALL) == {}


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, number, _ in CAPABILITIES])
def test_a_capability_that_is_missing_is_named_alone(name: str, number: int) -> None:
    lacking = missing(replace(ALL, capabilities=ALL.capabilities & ~(1 << number)))
    assert list(lacking) == [name] and name in lacking[name]


@pytest.mark.parametrize(
    ("rights", "right", "word"),
    [
        (replace(ALL, sysctl="/proc/sys/net/ipv4/ip_forward: Read-only file system"), "sysctl", "/proc/sys/net"),
        (replace(ALL, tun="No such file or directory"), "tun", "/dev/net/tun"),
        (replace(ALL, mounts=(*MOUNTS[:1], *MOUNTS[2:])), "netns", "not mounted"),
        (replace(ALL, mounts=(*MOUNTS, Mount("/run/netns", False))), "netns", "HostToContainer"),
        (replace(ALL, directories={RUN: "Read-only file system", DATA: ""}), RUN, "cannot write"),
        (replace(ALL, mounts=MOUNTS[:-1]), DATA, "not mounted"),
    ],
)
def test_a_mount_or_device_that_is_missing_is_named_alone(rights: Rights, right: str, word: str) -> None:
    lacking = missing(rights)
    assert list(lacking) == [right] and word in lacking[right]


def test_a_pid_namespace_on_the_hosts_root_needs_no_mounts() -> None:
    assert missing(replace(ALL, mounts=(Mount("/", False, "ext4"),))) == {}
    assert list(missing(replace(ALL, mounts=(Mount("/", True, "ext4"), Mount("/run/netns", False))))) == ["netns"]


def test_no_device_is_needed_where_no_engine_is_started() -> None:
    assert missing(replace(ALL, tun=None)) == {}


def test_mounts_are_read() -> None:
    lines = [
        "25 1 0:23 / / rw,relatime - overlay overlay rw",
        "30 25 0:25 / /run/netns rw,nosuid master:7 propagate_from:2 - tmpfs tmpfs rw",
        r"31 25 0:26 / /a\040b rw - tmpfs tmpfs rw",
    ]
    mounts = parse_mounts(lines)
    assert mounts == (
        Mount("/", False, "overlay"),
        Mount("/run/netns", True, "tmpfs"),
        Mount("/a b", False, "tmpfs"),
    )
    assert mount_of("/run/netns/x", mounts).receives
    assert mount_of("/run/netns2", mounts).point == "/"


@pytest.mark.parametrize(
    ("pid", "groups", "in_pod", "contained"),
    [
        (1, ["0::/"], False, True),
        (7, ["0::/"], True, True),  # a PID namespace that the containers of a Pod share
        (7, ["0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-0a.scope"], False, True),
        (7, ["4:memory:/kubepods/burstable/pod1/" + "0a" * 32], False, True),
        (7, ["0::/system.slice/zlayer-overlayd.service"], False, False),
        (7, ["0::/docker/" + "0a" * 32 + "/system.slice/zlayer-overlayd.service"], False, False),  # a node in one
        (7, [], False, False),
    ],
)
def test_a_container_is_recognised(pid: int, groups: list[str], in_pod: bool, contained: bool) -> None:
    assert bool(container.container_of(pid, groups, in_pod)) == contained


def test_the_daemon_keeps_what_the_kubelet_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "ZLAYER_NODE_NAME": "worker-3"}
    environment = {**kept, "HTTP_PROXY": "http://192.0.2.1"}
    monkeypatch.setattr(os, "environ", environment)
    process.clean_environment(())
    assert kept.items() <= environment.items() and "HTTP_PROXY" not in environment
