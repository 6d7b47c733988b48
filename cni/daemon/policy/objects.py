"""The objects of `networking.k8s.io/v1` as they are written: the fields of the API, and no others."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

API_VERSION = "networking.k8s.io/v1"
KIND = "NetworkPolicy"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A field that the API does not have is an error: a misspelt `except` would allow what it was to refuse."""


class LabelSelectorRequirement(_Strict, frozen=True):
    """`matchExpressions[]`."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None


class LabelSelector(_Strict, frozen=True):
    """`podSelector`, `namespaceSelector`."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class IPBlock(_Strict, frozen=True):
    """`ipBlock`."""

    cidr: str
    except_: list[str] | None = msgspec.field(default=None, name="except")


class NetworkPolicyPeer(_Strict, frozen=True):
    """An entry of `from` or `to`."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = msgspec.field(default=None, name="ipBlock")


class NetworkPolicyPort(_Strict, frozen=True):
    """An entry of `ports`."""

    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    port: int | str | None = None
    end_port: int | None = None


class IngressRule(_Strict, frozen=True):
    """An entry of `ingress`."""

    from_: list[NetworkPolicyPeer] | None = msgspec.field(default=None, name="from")
    ports: list[NetworkPolicyPort] | None = None


class EgressRule(_Strict, frozen=True):
    """An entry of `egress`."""

    to: list[NetworkPolicyPeer] | None = None
    ports: list[NetworkPolicyPort] | None = None


class Spec(_Strict, frozen=True):
    """`spec`."""

    pod_selector: LabelSelector | None = None
    ingress: list[IngressRule] | None = None
    egress: list[EgressRule] | None = None
    policy_types: list[Literal["Ingress", "Egress"]] | None = None


class Metadata(msgspec.Struct, frozen=True):
    """`metadata`: labels, annotations and what the API server adds have no meaning here."""

    name: str
    namespace: str = "default"


class NetworkPolicy(msgspec.Struct, frozen=True):
    """A NetworkPolicy object. `status` and what else the object has at this level has no meaning here."""

    metadata: Metadata
    spec: Spec = Spec()


def decode(document: Any) -> NetworkPolicy:
    """The object in a document that YAML or JSON contained. Raises msgspec.ValidationError."""
    return msgspec.convert(document, NetworkPolicy)
