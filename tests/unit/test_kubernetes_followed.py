"""What is kept of Pods and Namespaces, and what their annotations lead to."""

from __future__ import annotations

import json

import pytest

from cni.daemon.kubernetes.objects import NAMESPACES, NETWORK_POLICIES, PODS, namespace_of, pod_of, policy_of
from cni.daemon.model.kubernetes import NamedPort, Namespace
from cni.errors import InvalidConfig
from cni.isolation import MODE_LABEL, NETWORK_LABEL, NETWORKS_LABEL, SERVICE_LABEL
from cni.netconf.capabilities import RuntimeConfig
from cni.netconf.configuration import NetConf
from cni.netconf.environment import Call
from cni.netconf.intent import Intent, intent
from cni.netconf.policy import ClusterWords

POD = {
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "uid": "u1",
        "labels": {"app": "web"},
        "annotations": {"com.zlayer.service": "web", "kubectl.kubernetes.io/last-applied-configuration": "x" * 9999},
    },
    "spec": {
        "nodeName": "node1",
        "containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]}],
        "initContainers": [
            {
                "name": "side",
                "restartPolicy": "Always",
                "ports": [{"containerPort": 53, "name": "d", "protocol": "UDP"}],
            },
            {"name": "once", "ports": [{"containerPort": 9, "name": "gone"}]},
        ],
    },
    "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
}


def test_of_a_pod_only_what_is_needed_is_kept() -> None:
    pod = pod_of(json.dumps(POD).encode())
    assert pod.annotations == {"com.zlayer.service": "web"} and pod.labels == {"app": "web"}
    assert pod.ips == ("10.0.0.1", "fd00::1") and pod.node == "node1" and not pod.host_network
    assert pod.ports == (NamedPort("http", "TCP", 80), NamedPort("d", "UDP", 53))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_has_no_addresses(phase: str) -> None:
    ended = {**POD, "status": {**POD["status"], "phase": phase}}
    assert pod_of(json.dumps(ended).encode()).ips == ()


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"metadata":{"name":1}}', b'{"metadata":{"name":"a"},"spec":[]}'])
def test_an_object_in_another_form_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        pod_of(raw)


def test_null_is_nothing() -> None:
    raw = {"metadata": {"name": "a", "labels": None, "annotations": None}}
    assert namespace_of(json.dumps(raw).encode()) == Namespace("a")


def test_a_static_pod_has_the_uid_that_its_kubelet_knows() -> None:
    mirror = {**POD["metadata"], "annotations": {"kubernetes.io/config.mirror": "of-the-file"}}
    assert pod_of(json.dumps({**POD, "metadata": mirror}).encode()).uid == "of-the-file"


def test_of_a_policy_the_spec_is_kept() -> None:
    raw = {"metadata": {"name": "a", "namespace": "b", "uid": "u"}, "spec": {"podSelector": {}}, "status": {}}
    policy = policy_of(json.dumps(raw).encode())
    assert (policy.namespace, policy.name, json.loads(policy.spec)) == ("b", "a", {"podSelector": {}})


def test_every_object_of_the_cluster_is_followed() -> None:
    assert PODS.query(limit="5") == "/api/v1/pods?limit=5"
    assert NAMESPACES.query(watch="true") == "/api/v1/namespaces?watch=true"
    assert NETWORK_POLICIES.query(a="b") == "/apis/networking.k8s.io/v1/networkpolicies?a=b"


# --- annotations -----------------------------------------------------------------------------------------------------


def asked(annotations: dict[str, str], defaults: dict[str, str], by_watch: bool = False, **conf: object) -> Intent:
    """What a pod of the Namespace `shop` gets."""
    words = ClusterWords("shop", defaults, annotations if by_watch else {}, "till-0")
    runtime = RuntimeConfig() if by_watch else RuntimeConfig(annotations=annotations)
    return intent(NetConf(name="net", runtime=runtime, **conf), Call(command="ADD"), words)


def test_a_namespace_gives_its_pods_defaults_which_win_over_the_list() -> None:
    defaults = {SERVICE_LABEL: "shop", NETWORK_LABEL: "blue"}
    wish = asked({}, defaults, service="all", pinned=frozenset({"service"}))
    assert (wish.service, wish.isolation_network) == ("shop", "blue")


@pytest.mark.parametrize("by_watch", [False, True])
def test_a_pods_annotation_wins_over_the_default_of_its_namespace(by_watch: bool) -> None:
    assert asked({SERVICE_LABEL: "web"}, {SERVICE_LABEL: "shop"}, by_watch).service == "web"


@pytest.mark.parametrize("network", ["red", "shopping", "shop2/x", "edge:1"])
@pytest.mark.parametrize("by_watch", [False, True])
def test_no_pod_chooses_a_network_of_another_namespace(network: str, by_watch: bool) -> None:
    with pytest.raises(InvalidConfig, match=r"com\.zlayer\.isolation_network"):
        asked({NETWORK_LABEL: network}, {}, by_watch)


def test_the_refusal_names_pod_network_and_namespace() -> None:
    with pytest.raises(InvalidConfig, match=r'the Namespace shop does not let its Pod till-0 choose .* "red"'):
        asked({NETWORK_LABEL: "red"}, {})


@pytest.mark.parametrize(
    "annotations",
    [
        {MODE_LABEL: "isolated", SERVICE_LABEL: "red"},  # the network `red` by another way
        {MODE_LABEL: "isolated"},  # the network of the list's name
        {NETWORK_LABEL: ""},  # an empty name is a name
    ],
)
def test_nor_by_a_mode_or_an_empty_name(annotations: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig):
        asked(annotations, {})


def test_no_pod_leaves_the_network_of_its_namespace() -> None:
    defaults = {MODE_LABEL: "isolated", SERVICE_LABEL: "shop"}
    assert asked({}, defaults).isolation_network == "shop"
    with pytest.raises(InvalidConfig, match="no isolation network"):
        asked({MODE_LABEL: "auto"}, defaults)
    assert asked({MODE_LABEL: "auto"}, {**defaults, NETWORKS_LABEL: "*"}).isolation_network is None


@pytest.mark.parametrize("network", ["shop", "shop/db"])
def test_the_networks_with_the_namespaces_name_are_its_own(network: str) -> None:
    assert asked({NETWORK_LABEL: network}, {}).isolation_network == network


def test_the_namespace_grants_others_by_name() -> None:
    granted = {NETWORKS_LABEL: "red, blue"}
    assert asked({NETWORK_LABEL: "blue"}, granted).isolation_network == "blue"
    with pytest.raises(InvalidConfig):
        asked({NETWORK_LABEL: "green"}, granted)


def test_a_pod_does_not_grant_itself_a_network() -> None:
    with pytest.raises(InvalidConfig):
        asked({NETWORK_LABEL: "red", NETWORKS_LABEL: "*"}, {}, by_watch=True)
