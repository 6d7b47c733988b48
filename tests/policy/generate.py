"""Random pods and policies, small enough that most flows are touched by a rule."""

from __future__ import annotations

import random
from typing import Any

from tests.policy.small_model import Document, PodFacts

NAMESPACES = {
    "red": {"kubernetes.io/metadata.name": "red", "team": "a"},
    "blue": {"kubernetes.io/metadata.name": "blue", "team": "b"},
    "green": {"kubernetes.io/metadata.name": "green"},
}
PORTS = (80, 81, 90, 443)
PROTOCOLS = ("TCP", "UDP", "SCTP")
NAMES = {"web": ("TCP", 80), "dns": ("UDP", 81), "wide": ("TCP", 443)}


def labels(rnd: random.Random) -> dict[str, str]:
    """Labels of a pod."""
    drawn = {"app": rnd.choice(["web", "db", ""]), "tier": rnd.choice(["front", "back"]), "old": "yes"}
    return {key: value for key, value in drawn.items() if rnd.random() < 0.7}


def pod(rnd: random.Random, addresses: tuple[str, ...], names: bool = True) -> PodFacts:
    """A pod with these addresses."""
    chosen = [name for name in NAMES if names and rnd.random() < 0.5]
    ports = [{"name": name, "protocol": NAMES[name][0], "containerPort": NAMES[name][1]} for name in chosen]
    return {
        "namespace": rnd.choice(list(NAMESPACES)),
        "labels": labels(rnd),
        "addresses": addresses,
        "ports": ports,
    }


def selector(rnd: random.Random) -> Document:
    """A label selector, often an empty one."""
    made: Document = {}
    if rnd.random() < 0.5:
        made["matchLabels"] = labels(rnd)
    if rnd.random() < 0.4:
        key = rnd.choice(["app", "tier", "old", "none"])
        made["matchExpressions"] = [
            rnd.choice(
                [
                    {"key": key, "operator": "In", "values": rnd.sample(["web", "front", "yes", "db"], 2)},
                    {"key": key, "operator": "NotIn", "values": rnd.sample(["web", "back", "no"], 2)},
                    {"key": key, "operator": "Exists"},
                    {"key": key, "operator": "DoesNotExist"},
                ]
            )
        ]
    return made


def policy(rnd: random.Random, number: int, blocks: list[str], protocols: tuple[str, ...] = PROTOCOLS) -> Document:
    """A policy. `blocks`: CIDRs that contain pods."""
    spec: Document = {"podSelector": selector(rnd)}
    if rnd.random() < 0.7:
        spec["ingress"] = [_rule(rnd, "from", blocks, protocols) for _ in range(rnd.randint(0, 2))]
    if rnd.random() < 0.5:
        spec["egress"] = [_rule(rnd, "to", blocks, protocols) for _ in range(rnd.randint(0, 2))]
    if rnd.random() < 0.6:
        spec["policyTypes"] = rnd.choice([["Ingress"], ["Egress"], ["Ingress", "Egress"]])
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"p{number}", "namespace": rnd.choice(list(NAMESPACES))},
        "spec": spec,
    }


def _rule(rnd: random.Random, peers: str, blocks: list[str], protocols: tuple[str, ...]) -> Document:
    rule: Document = {}
    if rnd.random() < 0.8:
        rule[peers] = [_peer(rnd, blocks) for _ in range(rnd.randint(1, 3))]
    if rnd.random() < 0.6:
        rule["ports"] = [_port(rnd, protocols) for _ in range(rnd.randint(1, 3))]
    return rule


def _peer(rnd: random.Random, blocks: list[str]) -> Document:
    kind = rnd.randrange(4)
    if kind == 0:
        outer, *inner = blocks
        block: dict[str, Any] = {"cidr": outer}
        if rnd.random() < 0.5:
            block["except"] = rnd.sample(inner, rnd.randint(1, min(2, len(inner))))
        elif rnd.random() < 0.5:
            block["cidr"] = rnd.choice(inner)
        return {"ipBlock": block}
    if kind == 1:
        return {"podSelector": selector(rnd)}
    by_name = {"kubernetes.io/metadata.name": rnd.choice(list(NAMESPACES))}
    by_label = rnd.choice([by_name, {"team": rnd.choice("ab")}])
    names = selector(rnd) if rnd.random() < 0.3 else {"matchLabels": by_label}
    return {"namespaceSelector": names, **({"podSelector": selector(rnd)} if kind == 3 else {})}


def _port(rnd: random.Random, protocols: tuple[str, ...]) -> Document:
    entry: Document = {} if rnd.random() < 0.2 else {"protocol": rnd.choice(protocols)}
    kind = rnd.randrange(4)
    if kind == 0:
        entry["port"] = rnd.choice(list(NAMES))
    elif kind == 1:
        entry["port"] = rnd.choice(PORTS)
    elif kind == 2:
        entry |= {"port": rnd.choice((79, 80)), "endPort": rnd.choice((81, 90, 443))}
    return entry
