"""An etcd that is restored from an older backup: the nodes notice, put their records back, and no traffic is cut."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable

import pytest

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.settings import Etcd

from .etcds import PROGRAM, Clustered, EtcdServer
from .fleet import Node, arrives, inside, seconds_until, wait_for
from .test_faults import UNDISTURBED, Stream

pytestmark = [
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
CODE = "store-went-back"


def peers(nodes: list[Node], count: int) -> None:
    for node in nodes:
        wait_for(lambda node=node: node.status().peer_count == count, "the peers")  # type: ignore[misc]


def all_is_well(nodes: list[Node]) -> bool:
    return all(not node.tool("status")["problems"] for node in nodes)


def claims(store: Clustered, node: Node) -> dict[str, str]:
    """The holder of every id and slot."""
    records = store.records(node)
    return {key: value.decode()[-200:] for key, value in records.items() if key.startswith(("id/", "key/"))} | {
        key: "" for key in records if key.startswith("slot/")
    }


@pytest.mark.parametrize("further", [False, True], ids=["behind", "as-far-as-before"])
def test_an_older_backup(clustered: Clustered, measured: Callable[[str], None], further: bool) -> None:
    """After the backup a node joins, a service comes, and a key changes. `further`: another program writes to the
    restored store before the nodes reach it, so that its revision is not lower than the one they saw."""
    etcd = clustered.etcd
    one, two = clustered.member(1), clustered.member(2)
    peers([one, two], 1)
    here, there = one.container(), two.container()
    arrives(here, there)
    etcd.end()
    backup = etcd.data.with_name("backup")
    shutil.copytree(etcd.data, backup)
    etcd.start()
    three = clustered.member(3)
    nodes = [one, two, three]
    peers(nodes, 2)
    late, red = one.container("late"), three.container("db", isolationNetwork="red")
    other = three.container("late")
    assert one.cli("peer", "rotate", "--run-dir", str(one.directory / "run")).returncode == 0
    twin = two.container("db", isolationNetwork="red")
    for pair in ((here, there), (late, other), (red, twin)):
        arrives(*pair)
    wait_for(lambda: all_is_well(nodes), "all is well")
    before, status = claims(clustered, one), [node.status() for node in nodes]
    streams = [Stream(here, there), Stream(other, late)]
    for stream in streams:
        wait_for(lambda stream=stream: stream.heard > 3, "traffic")  # type: ignore[misc]
        stream.gap = 0.0
    etcd.end(signal.SIGKILL)
    etcd.forget()
    shutil.copytree(backup, etcd.data)
    if further:
        hidden = EtcdServer(clustered.directory, "127.0.0.1", clustered.underlay)
        hidden.forget()
        hidden.data = etcd.data
        hidden.start()
        client = EtcdClient(Etcd(endpoints=(hidden.url,)))
        for n in range(200):
            inside(f"/run/netns/{clustered.underlay}", lambda n=n: client.put("/other-program/key", b"%d" % n))  # type: ignore[misc]
        hidden.end()
    etcd.start()
    logs = [node.log for node in nodes]
    wait_for(lambda: all(f"problem={CODE}" in log.read_text() for log in logs), "every node tells")
    took = seconds_until(lambda: all_is_well(nodes), "all is well", 40)
    for node in nodes:
        assert "problem=record-not-its-own" not in node.log.read_text(), "what is old is not forged"
        assert "problem=claims-lost" not in node.log.read_text()
        assert f"resolved={CODE}" in node.log.read_text()
    after = claims(clustered, one)
    assert before.items() <= after.items(), "every claim is there again"
    assert [(s.node_ip, s.peer_count) for s in (node.status() for node in nodes)] == [
        (s.node_ip, s.peer_count) for s in status
    ]
    four = clustered.member(4)
    wait_for(lambda: four.status().peer_count == 3, "the peers of the new node")
    assert "slot/" + clustered.document(four)["slices"][0].replace("/", "_") not in before
    arrives(four.container(), other)
    gaps = [stream.silence() for stream in streams]
    for stream in streams:
        stream.close()
    assert max(gaps) < UNDISTURBED, gaps
    measured(f"etcd restored from an older backup: put back after {took:.1f} s, gap {max(gaps) * 1000:.0f} ms")
