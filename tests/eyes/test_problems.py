"""The problems of the node's own condition, each made to happen on a real daemon, and ended again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.cli.connectivity import accept
from cni.plugin import delete_queue
from tests.eyes.calls import call, scrape
from tests.kernel import toolnode
from tests.kernel.toolnode import Node, until

LATE = 35.0  # seconds: the node is looked at every 10 s
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


@contextlib.contextmanager
def started(directory: Path, settings: str = "") -> Iterator[Node]:
    with toolnode.spaces() as make:
        made = Node(directory, make(), make())
        made.settings += settings
        try:
            toolnode.uplink(made.host, made.outside)
            yield made
        finally:
            made.close()


def texts(node: Node, code: str) -> list[str]:
    return [each["text"] for each in node.ask("status")["problem_details"] if each["code"] == code]


def begins(node: Node, code: str, seconds: float = LATE) -> str:
    """The text of the problem, once it exists; the log and the metrics have it too."""
    assert until(lambda: bool(texts(node, code)), seconds), node.ask("status")["problems"]
    (text,) = texts(node, code)
    assert f"problem={code} {text}" in (node.dir / "log").read_text()
    assert any(f'code="{code}"' in series for series in scrape(node))
    return text


def ends(node: Node, code: str) -> None:
    assert until(lambda: not texts(node, code), LATE)
    assert f"resolved={code} " in (node.dir / "log").read_text()


def test_addresses_run_out(tmp_path: Path) -> None:
    """Of two /26 the node's own address has one, so the service can have 61 addresses."""
    with started(tmp_path) as node, toolnode.spaces() as make:
        node.settings = "cluster_cidr: 10.200.0.0/25\naddress_cooldown: 0\n"
        node.start()
        space = make()
        for n in range(48):
            assert call(node, "ADD", f"c{n}/eth{n}", space)[0] == 0
        time.sleep(11)
        assert texts(node, "addresses-low") == []
        assert call(node, "ADD", "c48/eth48", space)[0] == 0
        assert begins(node, "addresses-low") == (
            "service web has taken 49 of 61 IPv4 addresses (80%), and this node can get no further subnets"
        )
        with pytest.raises(ValueError, match="scarce"):
            accept.check_room(node.run_dir)  # no test of another node takes addresses
        assert call(node, "DEL", "c48/eth48", space)[0] == 0
        ends(node, "addresses-low")
        accept.check_room(node.run_dir)


def test_the_queue_of_deletions_does_not_empty(tmp_path: Path) -> None:
    """Another process holds its lock, as one that hangs would."""
    with started(tmp_path) as node:
        node.start()
        name = delete_queue.add(node.run_dir, ("net", "c1", "eth0"), b"x")
        with delete_queue.Lock(node.run_dir, whole=True, patience=5) as lock:
            assert lock.held
            path = Path(delete_queue.directory(node.run_dir), name)
            if not path.exists():
                path.write_bytes(b"x")
            os.utime(path, (time.time() - 300, time.time() - 300))
            assert begins(node, "delete-queue-stuck", 60).startswith("1 queued deletions wait for 3")
        ends(node, "delete-queue-stuck")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, with another one for the data directory."""
    path = tmp_path / "disk"
    for directory in (path, path / "data"):
        directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "zlt-eyes", str(directory)], check=True)
    try:
        yield path
    finally:
        for directory in (path / "data", path):
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk(disk: Path) -> None:
    with started(disk) as node:
        node.start()
        ballast = disk / "ballast"
        free = os.statvfs(disk)
        ballast.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - (300 << 10)))
        assert "/run has 0 MiB free of 64" in begins(node, "disk-full")
        ballast.unlink()
        ends(node, "disk-full")


def test_a_disk_that_is_read_only(disk: Path) -> None:
    with started(disk) as node:
        node.start()
        subprocess.run(["mount", "-o", "remount,ro", str(disk / "data")], check=True)
        assert str(disk / "data") in begins(node, "disk-read-only")
        subprocess.run(["mount", "-o", "remount,rw", str(disk / "data")], check=True)
        ends(node, "disk-read-only")


def test_a_clock_that_is_behind(tmp_path: Path) -> None:
    """A file of the identity was written two hours from now: the clock has been set back since."""
    with started(tmp_path) as node:
        node.start()
        path = next((tmp_path / "data").glob("*.json"), None)
        if path is None:
            path = tmp_path / "data" / "identity.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}")
        later = time.time() + 7200
        os.utime(path, (later, later))
        text = begins(node, "clock-behind")
        assert str(path) in text
        assert 7100 < float(text.split()[3]) <= 7200
        os.utime(path)
        ends(node, "clock-behind")


def test_settings_that_are_newer_than_the_daemon(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        node.start()
        path = tmp_path / "overlayd.yaml"
        path.write_text(node.settings + "mtu: 1400\n")
        assert begins(node, "settings-not-applied").endswith("restart the daemon to apply: mtu")
        path.write_text("mtu: many\n")
        assert until(lambda: "cannot be started again" in texts(node, "settings-not-applied")[0], LATE)
        assert "mtu" in texts(node, "settings-not-applied")[0]
        path.write_text(node.settings)
        ends(node, "settings-not-applied")


def test_a_firewall_that_closes_wireguards_port(tmp_path: Path) -> None:
    peers = f"peers: [{{public_key: {KEY}, allowed_ips: [10.200.3.0/24], name: b}}]\n"
    with started(tmp_path, peers) as node:
        node.host.nft("add table inet foreign")
        node.host.nft("add chain inet foreign input { type filter hook input priority 0; policy drop; }")
        node.start()
        assert until(lambda: node.ask("status")["wireguard"]["interface"] is not None, 30)
        text = begins(node, "wireguard-port-closed", 90)
        assert "inet foreign input" in text
        assert "udp dport 51420 accept" in text, "the remedy"
        node.host.nft("add rule inet foreign input udp dport 51420 accept")
        assert until(lambda: not texts(node, "wireguard-port-closed"), 75), "it is looked at once a minute"


def test_a_firewall_that_closes_dns_to_containers(tmp_path: Path) -> None:
    with started(tmp_path, "") as node:
        node.host.nft("add table inet foreign")
        node.host.nft("add chain inet foreign input { type filter hook input priority 0; policy drop; }")
        node.start()
        text = begins(node, "dns-port-closed", 90)
        assert 'nft insert rule inet foreign input iifname "zl-*" udp dport 53 accept' in text, "the remedy"
        node.host.nft('insert rule inet foreign input iifname "zl-*" udp dport 53 accept')
        assert until(lambda: not texts(node, "dns-port-closed"), 75), "it is looked at once a minute"
