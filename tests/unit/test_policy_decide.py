"""The decider agrees with a second reading of the API's text, over random policies and flows."""

import random

import pytest

from cni.daemon.policy import reader
from cni.daemon.policy.decide import End, Flow, may
from cni.daemon.policy.model import NamedPort, Pod
from tests.policy import generate, small_model

BLOCKS = ["10.0.0.0/24", "10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/31"]
OUTSIDE = ("192.0.2.1", None)


def pod_of(facts: small_model.PodFacts) -> Pod:
    ports = frozenset(NamedPort(p["name"], p["protocol"], p["containerPort"]) for p in facts["ports"])
    return Pod(facts["namespace"], "-".join(facts["addresses"]), facts["labels"], facts["addresses"], ports)


@pytest.mark.parametrize("seed", range(12))
def test_the_decider_and_the_small_model_agree(seed: int) -> None:
    rnd = random.Random(seed)
    documents = [generate.policy(rnd, n, BLOCKS) for n in range(rnd.randint(1, 6))]
    policies = [reader.read_object(document) for document in documents]
    facts = [generate.pod(rnd, (f"10.0.0.{n}",)) for n in range(1, 10)]
    ends = [(pod["addresses"][0], pod) for pod in facts] + [OUTSIDE]
    for client in ends:
        for server in ends:
            for protocol, port in ((p, n) for p in generate.PROTOCOLS for n in generate.PORTS):
                flow = Flow(
                    End(client[0], pod_of(client[1]) if client[1] else None),
                    End(server[0], pod_of(server[1]) if server[1] else None),
                    protocol,
                    port,
                )
                decision = may(flow, policies, generate.NAMESPACES)
                expected = small_model.allowed(documents, generate.NAMESPACES, client, server, protocol, port)
                assert decision.allowed == expected, (flow, decision, documents)
                for side in (decision.egress, decision.ingress):
                    assert bool(side.rule) == (side.allowed and bool(side.policies))


def test_both_outcomes_are_drawn() -> None:
    """The property would hold for nothing if every flow had the same answer."""
    answers = set()
    for seed in range(5):
        rnd = random.Random(seed)
        documents = [generate.policy(rnd, n, BLOCKS) for n in range(6)]
        one, two = generate.pod(rnd, ("10.0.0.1",)), generate.pod(rnd, ("10.0.0.2",))
        answers.add(
            small_model.allowed(documents, generate.NAMESPACES, ("10.0.0.1", one), ("10.0.0.2", two), "TCP", 80)
        )
    assert answers == {True, False}


def test_the_rule_is_named() -> None:
    text = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress: [{ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: db}}}]}]
"""
    policies = reader.read_text(text)
    web, db = Pod("shop", "web", {}), Pod("shop", "db", {"app": "db"})
    decision = may(Flow(End("10.0.0.1", db), End("10.0.0.2", web), "UDP", 53), policies, {})
    assert (decision.ingress.policies, decision.ingress.rule) == (("shop/web",), "shop/web ingress[1]")
    assert decision.egress.policies == ()
