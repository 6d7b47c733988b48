"""Versions and clocks that differ: of the tool, the daemon, other nodes and the store."""

from __future__ import annotations

from email.utils import formatdate

import msgspec
import pytest

from cni import answers
from cni.cli import status
from cni.daemon.cluster.store_clock import StoreClock
from cni.daemon.cluster.versions import ROLLING, Versions
from cni.daemon.model.cluster_records import NodeDocument

NOW = 1700000000.0
STATUS = answers.Status(
    version="1.0",
    pid=7,
    uptime_seconds=1.0,
    run_dir="/r",
    data_dir="/d",
    node=answers.NodeSummary(deployment="d", instance_id="i", node_id=1, cluster_cidrs=[], slice_cidr=None),
    mtu=1420,
    wireguard=answers.WireGuard(),
    fence=answers.Fence(in_force=True, trouble=""),
    services=[],
    attachments=0,
    unfinished=0,
    problems=[],
    problem_details=[],
)


def test_a_daemon_of_another_version_is_a_problem_of_status() -> None:
    found = status.with_versions(STATUS, "1.1")
    assert found.problem_details is not None
    (detail,) = found.problem_details
    assert (detail.code, detail.text) == ("version-differs", "the daemon is version 1.0, this program is 1.1")
    assert found.problems == [detail.text]
    assert status.with_versions(STATUS, "1.0") is STATUS


def test_a_daemon_from_before_the_codes_is_one_too() -> None:
    earlier = msgspec.structs.replace(STATUS, problem_details=None)
    found = status.with_versions(earlier, "1.1")
    assert (found.problem_details, len(found.problems)) == (None, 1)


def document(version: str, identity: str = "b") -> NodeDocument:
    return NodeDocument(
        identity=identity, name="two", place="p", node_id=2, public_key="k", port=1, hosts=(), version=version
    )


def test_a_node_may_differ_for_as_long_as_an_upgrade_takes() -> None:
    versions = Versions("1.1")
    assert versions.differing([document("1.0")], 0.0) == {}
    assert versions.differing([document("1.0")], ROLLING - 1) == {}
    text = versions.differing([document("1.0")], ROLLING)["b"]
    assert text == "two (node 2) runs version 1.0, this node 1.1, for more than 60 minutes"
    assert versions.differing([document("1.1")], ROLLING + 1) == {}
    assert versions.differing([document("1.0")], ROLLING + 2) == {}, "it begins anew"
    assert versions.differing([document("", "old")], 9 * ROLLING) == {}, "a version that publishes none"


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (0.0, None),
        (29.0, None),
        (-29.0, None),
        (45.0, "this node's clock is 45 s ahead of that of etcd"),
        (-7200.0, "this node's clock is 7200 s behind that of etcd"),
    ],
)
def test_the_clock_is_compared_with_the_stores(ahead: float, text: str | None) -> None:
    told: list[tuple[str, str]] = []
    clock = StoreClock(lambda code, words: told.append((code, words)))
    clock.heard(formatdate(NOW, usegmt=True), NOW + ahead)
    assert told == ([] if text is None else [("clock-differs", text)])


def test_a_difference_is_told_once_and_ends() -> None:
    told: list[str] = []
    clock = StoreClock(lambda _, words: told.append(words))
    for seconds in range(60):
        clock.heard(formatdate(NOW + seconds, usegmt=True), NOW + seconds + 100 + seconds % 2)
    assert len(told) == 1
    clock.heard(formatdate(NOW, usegmt=True), NOW)
    assert told[1:] == [""]
    for header in (None, "", "yesterday"):
        clock.heard(header, NOW)
    assert len(told) == 2
