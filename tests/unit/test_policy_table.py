"""Which addresses a selector in use selects while pods and namespaces come and go."""

import pytest

from cni.daemon.policy.model import (
    NAMESPACE_LABEL,
    NamedPort,
    Pod,
    PodPeer,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
)
from cni.daemon.policy.table import PolicyTable


def table_with(peer: PodPeer, *ports: PortMatch) -> PolicyTable:
    policy = Policy("n", "p", Selector(), ingress=(Rule((peer,), ports or None),))
    table = PolicyTable()
    table.set_policies([policy])
    table.keep([policy])
    return table


def selected(table: PolicyTable) -> set[str]:
    (kept,) = table.kept_peers()
    return set(kept.members)


OF_A = PodPeer(Selector((Requirement("app", "In", ("a",)),)), namespace="n")


def pod(name: str, *addresses: str, namespace: str = "n", **labels: str) -> Pod:
    return Pod(namespace, name, labels, addresses, (NamedPort("http", "TCP", 80),))


def test_an_address_that_two_pods_have_stays_until_the_last_is_gone() -> None:
    table = table_with(OF_A, PortMatch("TCP", name="http"))
    (ports,) = table.kept_names()
    table.set_pod("n/old", pod("old", "10.0.0.5", app="a"))
    table.set_pod("n/new", pod("new", "10.0.0.5", app="a"))
    table.remove_pod("n/old")
    assert (selected(table), set(ports.members)) == ({"10.0.0.5"}, {("10.0.0.5", 80)})
    table.remove_pod("n/new")
    assert (selected(table), set(ports.members)) == (set(), set())


def test_an_address_of_a_pod_that_changes_stays_selected_for_the_other() -> None:
    table = table_with(OF_A)
    table.set_pod("n/old", pod("old", "10.0.0.5", app="a"))
    table.set_pod("n/new", pod("new", "10.0.0.5", app="a"))
    table.set_pod("n/old", pod("old", "10.0.0.5", app="b"))
    assert selected(table) == {"10.0.0.5"}
    table.set_pod("n/new", pod("new", "10.0.0.6", app="a"))
    assert selected(table) == {"10.0.0.6"}


@pytest.mark.parametrize("denied", [Requirement("tenant", "DoesNotExist"), Requirement("tenant", "NotIn", ("x",))])
def test_a_namespace_that_the_cluster_has_not_told_may_have_the_denied_label(denied: Requirement) -> None:
    table = table_with(PodPeer(Selector(), namespaces=Selector((denied,))))
    table.follow_cluster()
    table.set_pod("evil/x", pod("x", "10.0.0.9", namespace="evil"))
    assert selected(table) == set()
    table.set_namespaces({"evil": {NAMESPACE_LABEL: "evil"}})
    assert selected(table) == {"10.0.0.9"}
    table.set_namespaces({"evil": {NAMESPACE_LABEL: "evil", "tenant": "x"}})
    assert selected(table) == set()


def test_without_a_cluster_a_namespace_has_its_name_alone() -> None:
    table = table_with(PodPeer(Selector(), namespaces=Selector((Requirement("tenant", "DoesNotExist"),))))
    table.set_pod("net/x", pod("x", "10.0.0.9", namespace="net"))
    assert selected(table) == {"10.0.0.9"}
