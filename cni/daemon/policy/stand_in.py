"""The policy that stands in for one that cannot be read: it isolates what that selects, and allows nothing. Pure."""

from __future__ import annotations

import contextlib

from cni.daemon.policy import objects, reader
from cni.daemon.policy.model import Policy
from cni.errors import InvalidConfig

UNNAMED = "unreadable"
"""The name of the policy that stands in for one whose name cannot be read either."""


def isolating(namespace: object, name: object, spec: object) -> Policy:
    """The policy that isolates the pods of the selector, if that can be read, else the whole namespace; in the
    directions of the policy, if those can be read, else in both. Raises InvalidConfig if the namespace is no name."""
    fields = spec if isinstance(spec, dict) else {}
    types = fields.get("policyTypes") or (["Ingress", "Egress"] if fields.get("egress") else ["Ingress"])
    both, selector = ["Ingress", "Egress"], fields.get("podSelector")
    for title in (name, UNNAMED):
        for pods, directions in ((selector, types), (selector, both), ({}, types)):
            with contextlib.suppress(InvalidConfig):
                return _without_rules(namespace, title, pods, directions)
    return _without_rules(namespace, UNNAMED, {}, both)


def _without_rules(namespace: object, name: object, selector: object, types: object) -> Policy:
    metadata = {"namespace": namespace, "name": name}
    spec = {"podSelector": selector, "policyTypes": types}
    return reader.read_object(
        {"apiVersion": objects.API_VERSION, "kind": objects.KIND, "metadata": metadata, "spec": spec}
    )


def read_each(text: str) -> list[Policy]:
    """The policies of a file that cannot be read whole: each as it is written if it can be read, else the one that
    stands in for it. None of a text that is no YAML, and of objects of other kinds."""
    policies: dict[tuple[str, str], Policy] = {}
    with contextlib.suppress(InvalidConfig):
        for place, document in reader.objects_of(text):
            with contextlib.suppress(InvalidConfig):
                policy = _read_or_isolating(document, place)
                policies.setdefault(policy.key, policy)
    return list(policies.values())


def _read_or_isolating(document: object, place: str) -> Policy:
    try:
        return reader.read_object(document, place)
    except InvalidConfig:
        if not isinstance(document, dict) or document.get("kind") != objects.KIND:
            raise
        metadata = document.get("metadata")
        fields = metadata if isinstance(metadata, dict) else {}
        return isolating(fields.get("namespace", "default"), fields.get("name"), document.get("spec"))
