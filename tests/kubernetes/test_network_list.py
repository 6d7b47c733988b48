"""The network list that a daemon writes when it can serve: on a node whose cluster's store is the API server."""

from __future__ import annotations

import signal

from tests.mesh.fleet import wait_for

from .control_plane import ControlPlane


def test_the_list_comes_when_the_node_has_joined_and_its_directory_is_there(plane: ControlPlane):
    source, target = plane.directory / "source.conflist", plane.directory / "net.d/10-zlayer.conflist"
    source.write_text("{}\n")
    target.parent.mkdir()
    node = plane.member(1, start=False, network_list={"source": str(source), "target": str(target)})
    plane.stop("kube-apiserver", signal.SIGKILL)
    node.start()
    assert not target.exists()  # the node has no subnet, and knows no Namespace
    target.parent.rmdir()
    plane.serve()
    wait_for(lambda: node.problem("network-list-not-written"), "the problem", 60, 0.5)
    target.parent.mkdir()
    wait_for(target.exists, "the list", 20)
    wait_for(lambda: not node.problem("network-list-not-written"), "no problem any more", 20, 0.5)
    node.end()
    assert target.read_text() == "{}\n"
