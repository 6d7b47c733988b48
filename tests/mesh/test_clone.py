"""A virtual machine that is cloned with its memory: one of the two goes on, the other leaves the mesh, and both tell.

What is emulated: a clone has the same identity files, and its daemon has the same memory, of which these parts decide:
the boot, the namespace and the run directory (together the `place`), and the sequence numbers of this process. Two
daemons on one kernel cannot have the same namespace and started at different times, so a program of a few lines sets
`place` and the start of the sequence to the same value in both; everything else is the daemon as it is. The second
daemon finds the first one's lease by the place, as a clone has it in memory. A machine that is only stopped and goes on
(SIGSTOP) is no clone: no record is written meanwhile that it does not know.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable

import pytest

from cni.daemon.state.identity import Identity

from .etcds import LEASE, PROGRAM, Clustered
from .fleet import Node, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
CODE = "identity-cloned"
ONE_MEMORY = """
import runpy, sys, types
from cni.daemon.cluster.node_document import NodeDocumentBuilder
from cni.daemon.state import identity
NodeDocumentBuilder.place = lambda self: "one-machine"
identity.time = types.SimpleNamespace(time=lambda: 1e9)
runpy.run_module("cni", run_name="__main__", alter_sys=True)
"""


def endpoint(node: Node) -> str:
    """Where the node calls its only peer."""
    return node.wg("show", node.device, "endpoints").split("\t")[1].strip()


def test_a_machine_cloned_with_its_memory(clustered: Clustered, measured: Callable[[str], None]) -> None:
    observer = clustered.member(3)
    first, second = clustered.member(1, start=False), clustered.member(2, start=False)
    identity = Identity(str(first.directory / "data"))
    identity.public_key()
    identity.signer()
    shutil.copytree(first.directory / "data", second.directory / "data")
    for node in (first, second):
        node.program = (sys.executable, "-c", ONE_MEMORY)
    first.start()
    for node in (first, observer):
        wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
    began = time.monotonic()
    second.start()
    for node in (first, second):
        wait_for(lambda node=node: node.problem(CODE), "both tell")  # type: ignore[misc]
    wait_for(lambda: {first.status().peer_count, second.status().peer_count} == {0, 1}, "one gives up its peers")
    took = time.monotonic() - began
    winner, loser = (first, second) if first.status().peer_count else (second, first)
    assert "this one goes on" in winner.problem(CODE)
    assert "this one has no peers" in loser.problem(CODE)
    assert loser.problem("identity-in-use") == ""
    wait_for(lambda: endpoint(observer) == f"{winner.underlay}:51420", "the tunnel leads to the one that goes on")
    before = clustered.document(observer), [v for k, v in clustered.records(observer).items() if k.startswith("node/")]
    time.sleep(3)
    after = clustered.document(observer), [v for k, v in clustered.records(observer).items() if k.startswith("node/")]
    assert before == after, "no record is written in turns"
    assert endpoint(observer) == f"{winner.underlay}:51420"
    assert observer.tool("status")["problems"] == []
    measured(f"a node cloned with its memory: one of the two has left the mesh {took:.1f} s after the clone's start")

    # The one that went on is gone: the other takes its place.
    winner.end(signal.SIGKILL)
    wait_for(lambda: loser.status().peer_count == 1, "the other one is the node", 4 * LEASE)
    wait_for(lambda: endpoint(observer) == f"{loser.underlay}:51420", "the tunnel leads to it")
    wait_for(lambda: loser.tool("status")["problems"] == [], "all is well")

    # It comes back with an identity of its own.
    for path in (winner.directory / "data", winner.directory / "run"):
        shutil.rmtree(path)
    winner.start()
    for node in (winner, loser, observer):
        wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
        wait_for(lambda node=node: node.tool("status")["problems"] == [], "all is well")  # type: ignore[misc]
