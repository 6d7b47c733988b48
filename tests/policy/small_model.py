"""A second reading of the API's text, over plain documents: what the product's decider and real packets must agree
with. It shares no code with the product.
"""

from __future__ import annotations

import ipaddress
from typing import Any

Document = dict[str, Any]
PodFacts = dict[str, Any]
"""namespace, labels, addresses, ports (list of {name, protocol, containerPort})."""


def selects(selector: Document | None, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects everything."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if key not in labels or labels[key] != value:
            return False
    for term in selector.get("matchExpressions") or []:
        key, operator = term["key"], term["operator"]
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
        if operator == "In" and (key not in labels or labels[key] not in term["values"]):
            return False
        if operator == "NotIn" and key in labels and labels[key] in term["values"]:
            return False
    return True


def types(policy: Document) -> set[str]:
    """The directions that a policy is about."""
    spec = policy["spec"]
    if spec.get("policyTypes"):
        return set(spec["policyTypes"])
    return {"Ingress", "Egress"} if spec.get("egress") else {"Ingress"}


def allowed(
    policies: list[Document],
    namespaces: dict[str, dict[str, str]],
    client: tuple[str, PodFacts | None],
    server: tuple[str, PodFacts | None],
    protocol: str,
    port: int,
) -> bool:
    """Whether `client` (address, pod or None) may open a flow to `port` of `server`."""
    if client[0] == server[0]:
        return True
    return _side(policies, namespaces, "Egress", client[1], server, server[1], protocol, port) and _side(
        policies, namespaces, "Ingress", server[1], client, server[1], protocol, port
    )


def _side(
    policies: list[Document],
    namespaces: dict[str, dict[str, str]],
    kind: str,
    pod: PodFacts | None,
    peer: tuple[str, PodFacts | None],
    server_pod: PodFacts | None,
    protocol: str,
    port: int,
) -> bool:
    if pod is None:
        return True
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod["namespace"]
        and kind in types(policy)
        and selects(policy["spec"].get("podSelector"), pod["labels"])
    ]
    if not mine:
        return True
    peers_key = "from" if kind == "Ingress" else "to"
    for policy in mine:
        for rule in policy["spec"].get(kind.lower()) or []:
            entries, ports = rule.get(peers_key) or [], rule.get("ports") or []
            peer_fits = not entries or any(_peer(e, policy, namespaces, peer) for e in entries)
            if peer_fits and (not ports or any(_port(p, server_pod, protocol, port) for p in ports)):
                return True
    return False


def _peer(
    entry: Document, policy: Document, namespaces: dict[str, dict[str, str]], peer: tuple[str, PodFacts | None]
) -> bool:
    address, pod = peer
    if "ipBlock" in entry:
        block = entry["ipBlock"]
        inside = ipaddress.ip_address(address) in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            ipaddress.ip_address(address) in ipaddress.ip_network(cut) for cut in block.get("except") or []
        )
    if pod is None:
        return False
    if "namespaceSelector" in entry:
        if not selects(entry["namespaceSelector"], namespaces.get(pod["namespace"], {})):
            return False
    elif pod["namespace"] != policy["metadata"]["namespace"]:
        return False
    return selects(entry.get("podSelector"), pod["labels"])


def _port(entry: Document, server_pod: PodFacts | None, protocol: str, port: int) -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    wanted = entry.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        named = server_pod["ports"] if server_pod else []
        return any(n["name"] == wanted and n["protocol"] == protocol and n["containerPort"] == port for n in named)
    last: Any = entry.get("endPort", wanted)
    return bool(wanted <= port <= last)
