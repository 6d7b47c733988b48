"""Policies are read whole or refused with field and value."""

import json

import pytest

from cni.daemon.policy import reader
from cni.daemon.policy.model import BlockPeer, PodPeer, PortMatch, Requirement, Rule, Selector
from cni.errors import InvalidConfig

TEXT = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, labels: {any: thing}}
spec:
  podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: NotIn, values: [b, a, b]}]}
  ingress:
  - from:
    - podSelector: {}
    - ipBlock: {cidr: 10.0.0.9/8, except: [10.1.0.0/16]}
    - namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}
    ports: [{port: 70, endPort: 80}, {port: http, protocol: UDP}, {protocol: SCTP}]
status: {}
"""


def test_a_policy_is_read_whole() -> None:
    (policy,) = reader.read_text(TEXT)
    assert policy.title == "shop/web" and policy.egress is None
    assert policy.pods == Selector((Requirement("app", "In", ("web",)), Requirement("tier", "NotIn", ("a", "b"))))
    assert policy.ingress == (
        Rule(
            peers=(
                PodPeer(Selector(), namespace="shop"),
                BlockPeer("10.0.0.0/8", ("10.1.0.0/16",)),
                PodPeer(Selector(), namespaces=Selector((Requirement("team", "Exists"),))),
            ),
            ports=(PortMatch("TCP", 70, 80), PortMatch("UDP", name="http"), PortMatch("SCTP")),
        ),
    )


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        ("{podSelector: {}}", "i"),
        ("{podSelector: {}, egress: []}", "i"),  # no rule: not about egress
        ("{podSelector: {}, egress: [{}]}", "ie"),
        ("{podSelector: {}, policyTypes: [Egress]}", "e"),
        ("{podSelector: {}, ingress: [{}], policyTypes: [Egress]}", "e"),
        ("{podSelector: {}, policyTypes: []}", "i"),
        ("{ingress: null}", "i"),
    ],
)
def test_directions_follow_the_apis_defaults(spec: str, directions: str) -> None:
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: "
    (policy,) = reader.read_text(head + spec)
    assert ("i" if policy.ingress is not None else "") + ("e" if policy.egress is not None else "") == directions


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("port: 70,", "port: 0,", "shop/web: spec.ingress[0].ports[0].port: 0 is not between 1 and 65535"),
        ("endPort: 80", "endPort: 60", "spec.ingress[0].ports[0].endPort: 60 is not between 70 and 65535"),
        ("endPort: 80", "endPort: eighty", "ports[0].endPort: Expected `int | null`, got `str`, not 'eighty'"),
        ("port: http", "port: http, endPort: 9", "ports[1].endPort: 9 needs a numeric port"),
        ("port: http", "port: '1-'", "ports[1].port: '1-' is no name of a port"),
        ("protocol: SCTP", "endPort: 9", "ports[2].endPort: 9 needs a port"),
        ("protocol: SCTP", "protocol: ICMP", "ports[2].protocol: Invalid enum value 'ICMP'"),
        ("except:", "excpt:", "spec.ingress[0].from[1].ipBlock: Object contains unknown field `excpt`"),
        ("10.1.0.0/16", "11.1.0.0/16", "ipBlock.except[0]: '11.1.0.0/16' is not inside 10.0.0.9/8"),
        ("10.1.0.0/16", "10.0.0.0/8", "ipBlock.except[0]: '10.0.0.0/8' is not inside 10.0.0.9/8"),
        ("10.1.0.0/16", "fd00::/16", "ipBlock.except[0]: 'fd00::/16' is not inside 10.0.0.9/8"),
        ("10.0.0.9/8", "10.0.0.9", "ipBlock.cidr: '10.0.0.9' is no CIDR"),
        ("10.0.0.9/8", "10.0.0.0/255.0.0.0", "ipBlock.cidr: '10.0.0.0/255.0.0.0' is no CIDR"),
        ("10.0.0.9/8", "10.0.0.0/0.0.0.255", "ipBlock.cidr: '10.0.0.0/0.0.0.255' is no CIDR"),
        ("10.0.0.9/8", "10.0.0.0/+8", "ipBlock.cidr: '10.0.0.0/+8' is no CIDR"),
        ("10.0.0.9/8", "10.0.0.256/8", "ipBlock.cidr: '10.0.0.256/8' is no CIDR"),
        ("10.0.0.9/8", "fe80::%eth0/64", "ipBlock.cidr: 'fe80::%eth0/64' is no CIDR"),
        ("10.0.0.9/8", "'fe80::%x } accept;/64'", "ipBlock.cidr: 'fe80::%x } accept;/64' is no CIDR"),
        ("- podSelector: {}", "- {}", "from[0]: one of podSelector, namespaceSelector, ipBlock is needed"),
        ("- podSelector: {}", "- {podSelector: {}, ipBlock: {cidr: 1.0.0.0/8}}", "from[0]: ipBlock excludes"),
        ("values: [b, a, b]", "values: []", "matchExpressions[0].operator: 'NotIn' needs values"),
        ("operator: Exists", "operator: Exists, values: [a]", "matchExpressions[0].operator: 'Exists' has no values"),
        ("{app: web}", "{app: 'a b'}", "spec.podSelector.matchLabels: 'a b' is no value of a label"),
        ("{app: web}", "{-app: web}", "spec.podSelector.matchLabels: '-app' is no key of a label"),
        ("name: web", "name: Web_1", "metadata.name: 'Web_1' is no name"),
        ("namespace: shop", "namespace: 'a/b'", "metadata.namespace: 'a/b' is no name of a namespace"),
        ("kind: NetworkPolicy", "kind: Deployment", "document 1: kind: 'Deployment' is not NetworkPolicy"),
        ("networking.k8s.io/v1", "networking.k8s.io/v2", "document 1: apiVersion: 'networking.k8s.io/v2' is not"),
        ("metadata: {", "metadata: [{", "the file is no YAML"),
    ],
)
def test_a_fault_is_told_with_field_and_value(was: str, becomes: str, says: str) -> None:
    assert was in TEXT
    with pytest.raises(InvalidConfig) as refused:
        reader.read_text(TEXT.replace(was, becomes, 1))
    assert says in refused.value.msg


def test_a_file_has_several_documents_and_lists() -> None:
    one = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s}, spec: {}}"
    of_list = "{apiVersion: v1, kind: List, items: [" + one % "b" + "]}"
    of_kind = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: [{metadata: {name: c}, spec: {}}]}"
    text = "\n---\n".join([one % "a", "", of_list, of_kind])
    assert [policy.title for policy in reader.read_text(text)] == ["default/a", "default/b", "default/c"]
    with pytest.raises(InvalidConfig, match="default/a is in the file twice"):
        reader.read_text(f"{one % 'a'}\n---\n{one % 'a'}")


@pytest.mark.parametrize(
    ("cidr", "read"),
    [
        ("010.000.0.0/08", "10.0.0.0/8"),
        ("2001:DB8::7/64", "2001:db8::/64"),
        ("::ffff:10.0.0.0/104", "::ffff:a00:0/104"),
    ],
)
def test_a_block_is_read_as_the_api_server_reads_it(cidr: str, read: str) -> None:
    spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}
    document = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a"}, "spec": spec}
    (policy,) = reader.read_text(json.dumps(document))
    (rule,) = policy.rules("ingress") or ()
    assert rule.peers == (BlockPeer(read),)
