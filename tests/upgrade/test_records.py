"""What the present program writes that the older one does not know: records of a device, node documents, the record of
`install`. The older one reads it, works, and gives it back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

from cni.daemon.precheck import STORE_NAME
from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Node, arrives, wait_for
from tests.mesh.narrow import Narrow

NARROW = 1400
SILENT = "198.51.100.99:51420"  # no machine has it


def device_record(node: Node) -> str:
    """What the node has recorded of its device."""
    with contextlib.closing(sqlite3.connect(f"file:{node.directory}/run/{STORE_NAME}?mode=ro", uri=True)) as store:
        return str(store.execute("SELECT * FROM record WHERE kind = 'device'").fetchall())


def codes(node: Node) -> set[str]:
    """The codes of the node's problems."""
    return {problem["code"] for problem in node.tool("status")["problem_details"]}


def test_an_older_daemon_reads_the_records_of_a_newer_one(
    engine: None, clustered: Clustered, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    """A peer with two endpoints of which the first is silent, behind a narrow path: `learned`, `firsts` and `sizes` of
    the device's record, `endpoints` and `ranges` of the documents."""
    one = clustered.member(1, start=False)
    two = clustered.member(2, start=False, advertise=[SILENT, "198.51.100.2:51420"])
    Narrow(two, NARROW, silent=False)
    for node in (one, two):
        node.program = now
        node.start()
    here, there = one.container(), two.container()
    arrives(here, there)
    document = clustered.document(two)
    assert document["endpoints"] == [SILENT, "198.51.100.2:51420"]
    assert document["ranges"] == ["10.200.0.0/16"]
    wait_for(lambda: '"sizes":{"' in device_record(one), "the path's size is recorded", 60)
    written = device_record(one)
    assert '"learned":{"' in written or '"firsts":{"' in written, written
    one.end(signal.SIGKILL)
    one.program = before
    one.start()
    wait_for(lambda: one.status().peer_count == 1, "the peer, with the older program", 60)
    wait_for(lambda: "ranges" not in clustered.document(one), "the older one's document")
    arrives(here, there)  # it calls the first endpoint only, and learns the other one from the peer's next packet
    assert one.tool("status", check=False)["problems"] == []
    one.end(signal.SIGTERM)
    one.program = now
    one.start()
    wait_for(lambda: one.status().peer_count == 1, "the peer, with the present program", 60)
    arrives(here, there)
    wait_for(lambda: clustered.document(one).get("ranges") == ["10.200.0.0/16"], "the present one's document")
    # Its document was unsigned meanwhile, and its identity is one that signs: the other node tells for five minutes.
    assert codes(one) <= {"path-mtu-narrow"}
    assert codes(two) <= {"path-mtu-narrow", "record-not-its-own"}


def test_an_older_install_leaves_what_a_newer_one_remembers(
    tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    root = tmp_path / "root"
    root.mkdir()

    def install(program: tuple[str, ...], *words: str) -> str:
        command = [*program, "install", "--root", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        return done.stderr

    def network() -> str:
        return str(json.loads((root / "etc/cni/net.d/10-zlayer.conflist").read_text())["name"])

    install(now, "--network", "blue")
    remembered = (root / "opt/zlayer-cni/installed.json").read_text()
    assert json.loads(remembered)["network"] == "blue"
    install(before)
    assert (root / "opt/zlayer-cni/installed.json").read_text() == remembered
    assert network() == "blue", "the list stays"
    assert "--network blue" in install(now)
    assert network() == "blue"
