"""How many new services there may be, and which empty ones give their subnets back."""

from pathlib import Path

import pytest

from cni.daemon.attachments.service_limits import MOST_ASKERS, Idle, Rate
from cni.daemon.model.records import Service
from tests.fakes.node import Node


def test_a_minutes_worth_then_one_after_the_other() -> None:
    rate = Rate(6)
    assert [rate.take("a", 0.0) for _ in range(6)] == [0.0] * 6
    assert rate.take("a", 0.0) == pytest.approx(10.0)
    assert rate.take("a", 9.9) > 0
    assert rate.take("a", 10.1) == 0.0
    assert rate.take("a", 10.1) > 0
    assert [rate.take("a", 1000.0) for _ in range(6)] == [0.0] * 6
    assert rate.take("a", 1000.0) > 0


def test_one_asker_takes_nothing_from_another_and_all_have_a_bound() -> None:
    rate = Rate(1)
    assert rate.take("a", 0.0) == 0.0
    assert rate.take("a", 0.0) > 0
    assert rate.take("b", 0.0) == 0.0
    for n in range(2 * MOST_ASKERS):
        rate.take(str(n), 0.0)
    assert rate.take("fresh", 0.0) == 0.0


def service(name: str) -> Service:
    return Service(name=name, mode="auto", bridge=f"zl-{name}-b", subnets=("10.0.0.0/26",), passing=True)


def test_the_longest_empty_go_first() -> None:
    idle = Idle()
    for name, at in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        idle.note(name, used=False, now=at)
    every = [service(name) for name in ("a", "b", "c", "unknown")]
    assert [each.name for each in idle.over(every, 1)] == ["unknown", "b", "c"]
    assert idle.over(every, 4) == []


def test_an_attach_to_a_used_up_range_takes_the_subnets_of_empty_services(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.db", cluster_cidr="10.9.0.0/24")  # four subnets, one of them the node's
    node.segments.ensure("agents", "auto", keep=True)
    for n in range(8):
        made = node.parts.admission.attach(node.request(f"c{n}", 11 + n, service=f"s{n}"))
        assert made.state == "live"
        node.delete(f"c{n}")
    assert "agents" in node.state.services
    node.close()


def test_no_more_empty_services_than_may_be_keep_their_subnets(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.db", idle_services=2)
    for n in range(5):
        node.parts.admission.attach(node.request(f"c{n}", 11 + n, service=f"s{n}"))
        node.delete(f"c{n}")
    assert sorted(node.state.services) == ["s2", "s3", "s4"]
    node.restart()
    assert {each.name for each in node.state.idle_services()} == {"s2", "s3", "s4"}
    node.close()
