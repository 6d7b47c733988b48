"""Reads policies: documents of YAML or JSON become values, and a fault is told with object, field and value.

What the API server refuses is refused here too (pkg/apis/networking/validation), since files pass no API server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import msgspec

from cni.daemon.policy import objects
from cni.daemon.policy.model import BlockPeer, Peer, PodPeer, Policy, PortMatch, Requirement, Rule, Selector
from cni.errors import InvalidConfig

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)  # RFC 1123, a subdomain
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,251}", re.ASCII)  # a CNI network's name, or a namespace
# What the API server accepts (ParseCIDRSloppy): octets with leading zeros are decimal. A zone, which is no part of the
# grammar of nft, a netmask and a host mask are refused.
_CIDR = re.compile(
    r"(?:(?P<octets>\d{1,4}(?:\.\d{1,4}){3})|(?P<six>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))/(?P<length>\d{1,3})", re.ASCII
)
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)  # RFC 6335, 5.1
_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)


def read_text(text: str) -> list[Policy]:
    """The policies of a file: YAML documents, or JSON, each a NetworkPolicy or a list of them. Raises InvalidConfig."""
    policies: dict[tuple[str, str], Policy] = {}
    for place, document in objects_of(text):
        policy = read_object(document, place)
        if policy.key in policies:
            raise InvalidConfig(f"{place}: metadata.name: {policy.title} is in the file twice")
        policies[policy.key] = policy
    return list(policies.values())


def read_object(document: Any, place: str = "the object") -> Policy:
    """The policy in one document. `place` names the document where it has no name. Raises InvalidConfig."""
    if not isinstance(document, dict):
        raise InvalidConfig(f"{place}: {_shown(document)} is no NetworkPolicy")
    for key, wanted in (("apiVersion", objects.API_VERSION), ("kind", objects.KIND)):
        if document.get(key) != wanted:
            raise InvalidConfig(f"{place}: {key}: {_shown(document.get(key))} is not {wanted}")
    try:
        decoded = objects.decode(document)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`").lstrip(".")
        what += _found(document, field)
        raise InvalidConfig(f"{_title(document, place)}: {field or 'the object'}: {what}") from error
    return _Reading(decoded).policy()


def objects_of(text: str) -> Iterator[tuple[str, Any]]:
    """The objects of a file with the place of each; empty documents are left out, lists are unfolded. Raises
    InvalidConfig."""
    import yaml

    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfig("the file is no YAML", " ".join(str(error).split())) from error
    for number, document in enumerate(documents, 1):
        if document is None:
            continue
        place = f"document {number}"
        kind = document.get("kind") if isinstance(document, dict) else None
        if kind not in ("List", "NetworkPolicyList"):
            yield place, document
            continue
        items = document.get("items")
        if not isinstance(items, list):
            raise InvalidConfig(f"{place}: items: {_shown(items)} is no list")
        for index, item in enumerate(items):
            given = {"apiVersion": objects.API_VERSION, "kind": objects.KIND} if kind == "NetworkPolicyList" else {}
            yield f"{place}: items[{index}]", {**given, **item} if isinstance(item, dict) else item


class _Reading:
    """One object, with the faults that its types do not express."""

    def __init__(self, decoded: objects.NetworkPolicy) -> None:
        self._object = decoded
        self._title = f"{decoded.metadata.namespace}/{decoded.metadata.name}"

    def policy(self) -> Policy:
        """The object's value. Raises InvalidConfig."""
        metadata, spec = self._object.metadata, self._object.spec
        if not _NAME.fullmatch(metadata.name):
            raise self._fault("metadata.name", metadata.name, "is no name of lower-case letters, digits, - and .")
        if not _NAMESPACE.fullmatch(metadata.namespace):
            raise self._fault("metadata.namespace", metadata.namespace, "is no name of a namespace")
        types: list[str] = [*(spec.policy_types or (["Ingress", "Egress"] if spec.egress else ["Ingress"]))]
        ingress = [(rule.from_, rule.ports) for rule in spec.ingress or ()]
        egress = [(rule.to, rule.ports) for rule in spec.egress or ()]
        of_ingress = self._rules("ingress", "from", ingress)
        of_egress = self._rules("egress", "to", egress)
        return Policy(
            namespace=metadata.namespace,
            name=metadata.name,
            pods=self._selector(spec.pod_selector or objects.LabelSelector(), "spec.podSelector"),
            ingress=of_ingress if "Ingress" in types else None,
            egress=of_egress if "Egress" in types else None,
        )

    def _rules(
        self,
        direction: str,
        peers_key: str,
        rules: list[tuple[list[objects.NetworkPolicyPeer] | None, list[objects.NetworkPolicyPort] | None]],
    ) -> tuple[Rule, ...]:
        """The rules of one direction. An absent or empty list of peers or ports allows any."""
        read = []
        for index, (peers, ports) in enumerate(rules):
            place = f"spec.{direction}[{index}]"
            read.append(
                Rule(
                    tuple(self._peer(p, f"{place}.{peers_key}[{n}]") for n, p in enumerate(peers)) if peers else None,
                    tuple(self._port(p, f"{place}.ports[{n}]") for n, p in enumerate(ports)) if ports else None,
                )
            )
        return tuple(read)

    def _peer(self, peer: objects.NetworkPolicyPeer, place: str) -> Peer:
        pods, namespaces, block = peer.pod_selector, peer.namespace_selector, peer.ip_block
        if block is not None:
            if pods is not None or namespaces is not None:
                raise InvalidConfig(f"{self._title}: {place}: ipBlock excludes podSelector and namespaceSelector")
            return self._block(block, f"{place}.ipBlock")
        if pods is None and namespaces is None:
            raise InvalidConfig(f"{self._title}: {place}: one of podSelector, namespaceSelector, ipBlock is needed")
        selected = self._selector(pods or objects.LabelSelector(), f"{place}.podSelector")
        if namespaces is None:
            return PodPeer(selected, namespace=self._object.metadata.namespace)
        return PodPeer(selected, namespaces=self._selector(namespaces, f"{place}.namespaceSelector"))

    def _block(self, block: objects.IPBlock, place: str) -> BlockPeer:
        outer = self._cidr(block.cidr, f"{place}.cidr")
        excepted = []
        for index, text in enumerate(block.except_ or ()):
            inner = self._cidr(text, f"{place}.except[{index}]")
            # Equal networks are refused by the API server as well: the block would be empty.
            if inner.version != outer.version or inner == outer or not inner.subnet_of(outer):
                raise self._fault(f"{place}.except[{index}]", text, f"is not inside {block.cidr}")
            excepted.append(str(inner))
        return BlockPeer(str(outer), tuple(sorted(set(excepted))))

    def _cidr(self, text: str, place: str) -> Any:
        try:
            found = _CIDR.fullmatch(text)
            if found is None:
                raise ValueError(text)
            octets = found["octets"]
            address = ".".join(str(int(octet)) for octet in octets.split(".")) if octets else found["six"]
            # The API server accepts host bits, and ignores them.
            return ip_network(f"{address}/{int(found['length'])}", strict=False)
        except ValueError as error:
            raise self._fault(place, text, "is no CIDR") from error

    def _port(self, port: objects.NetworkPolicyPort, place: str) -> PortMatch:
        protocol, number, end = port.protocol or "TCP", port.port, port.end_port
        if number is None:
            if end is not None:
                raise self._fault(f"{place}.endPort", end, "needs a port")
            return PortMatch(protocol)
        if isinstance(number, str):
            if not _PORT_NAME.fullmatch(number):
                raise self._fault(f"{place}.port", number, "is no name of a port")
            if end is not None:
                raise self._fault(f"{place}.endPort", end, "needs a numeric port")
            return PortMatch(protocol, name=number)
        if not 1 <= number <= 65535:
            raise self._fault(f"{place}.port", number, "is not between 1 and 65535")
        if end is not None and not number <= end <= 65535:
            raise self._fault(f"{place}.endPort", end, f"is not between {number} and 65535")
        return PortMatch(protocol, number, number if end is None else end)

    def _selector(self, selector: objects.LabelSelector, place: str) -> Selector:
        needed = set()
        for key, value in (selector.match_labels or {}).items():
            self._label(key, (value,), f"{place}.matchLabels")
            needed.add(Requirement(key, "In", (value,)))
        for index, item in enumerate(selector.match_expressions or ()):
            spot = f"{place}.matchExpressions[{index}]"
            values = tuple(sorted(set(item.values or ())))
            self._label(item.key, values, spot)
            if (item.operator in ("In", "NotIn")) != bool(values):
                wants = "needs values" if not values else "has no values"
                raise self._fault(f"{spot}.operator", item.operator, wants)
            needed.add(Requirement(item.key, item.operator, values))
        return Selector(tuple(sorted(needed)))

    def _label(self, key: str, values: tuple[str, ...], place: str) -> None:
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            raise self._fault(place, key, "is no key of a label")
        for value in values:
            if value and not _LABEL_NAME.fullmatch(value):
                raise self._fault(place, value, "is no value of a label")

    def _fault(self, place: str, value: object, what: str) -> InvalidConfig:
        return InvalidConfig(f"{self._title}: {place}: {_shown(value)} {what}")


def _title(document: dict[str, Any], place: str) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{metadata.get('namespace', 'default')}/{name}" if isinstance(metadata, dict) and name else place


def _found(document: Any, field: str) -> str:
    """The value at a path such as `spec.ingress[0].ports[1].port`, for an error; empty if there is none."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", field):
        try:
            document = document[int(index)] if index else document[name]
        except (LookupError, TypeError):
            return ""
    return f", not {_shown(document)}" if field and not isinstance(document, dict | list) else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
