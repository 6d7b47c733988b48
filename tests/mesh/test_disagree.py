"""What two nodes of a cluster disagree about is told by both, and heals with its cause."""

from __future__ import annotations

import shutil

import pytest

from .etcds import PROGRAM, Clustered
from .fleet import arrives, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]


def test_another_range_on_one_node(clustered: Clustered) -> None:
    """Also: the slice of the YAML is taken where it is free, and a changed YAML is a problem."""
    one = clustered.member(1, slice_cidr="10.200.77.0/26")
    two = clustered.member(2, cluster_cidr="10.201.0.0/16")
    assert one.tool("status")["node"]["slice_cidr"] == "10.200.77.0/26"
    wait_for(lambda: "10.201.0.0/16" in one.problem("range-differs"), "the first node tells")
    wait_for(lambda: "10.200.0.0/16" in two.problem("range-differs"), "the second node tells")
    two.settings["cluster_cidr"] = "10.200.0.0/16"
    two.write()
    text = wait_for(lambda: two.problem("settings-not-applied"), "the problem of the changed YAML")
    assert text.endswith("restart the daemon to apply: cluster_cidr")
    two.end()
    two.start()
    assert any("cluster_cidr: 10.200.0.0/16, but 10.201.0.0/16, set" in each for each in two.tool("status")["notes"])
    two.end()
    shutil.rmtree(two.directory / "run")  # as after a reboot
    two.start()
    for node in (one, two):
        wait_for(lambda node=node: node.tool("status")["problems"] == [], "all is well")  # type: ignore[misc]
    here, there = one.container(), two.container()
    arrives(here, there)
