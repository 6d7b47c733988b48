"""Which settings a pod may choose by its annotations, and which the network list fixes. Pure.

The pod's author writes an annotation (or a label in `args.cni.labels`); the node's operator writes the list. So an
annotation cannot replace a value in the list, unless the list's `annotations` allows it. The isolation network counts
as given also if it follows from the list's mode and service.
"""

import msgspec

from cni.errors import InvalidConfig
from cni.isolation import (
    ATTACH_LABEL,
    EDGE_FENCE,
    ISOLATED,
    MODE_LABEL,
    NETWORK_LABEL,
    NETWORKS_LABEL,
    SERVICE_LABEL,
)
from cni.netconf.decode import Fields, fold, show
from cni.netconf.values import check_line, check_service

DECIDABLE = ("service", "mode", "isolationNetwork", "attach")
"""The keys of a list that an annotation can stand for."""
ANNOTATIONS_KEYS = fold("allow", "networks", "services")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`annotations` of a list. A member that was not given is None."""

    allow: tuple[str, ...] | None = None  # of DECIDABLE; None: those that the list gives no value
    networks: tuple[str, ...] | None = None  # isolation networks that annotations may lead to; None: any
    services: tuple[str, ...] | None = None  # services that annotations may name; None: any


class ClusterWords(msgspec.Struct, frozen=True):
    """What the cluster says of a Pod. `defaults`: the annotations of its Namespace; `annotations`: its own, where the
    runtime passes none; `namespace`, `pod`: its Namespace, "" if the cluster says nothing, and its name."""

    namespace: str = ""
    defaults: dict[str, str] = {}
    annotations: dict[str, str] = {}
    pod: str = ""


SILENT = ClusterWords()


class Place(msgspec.Struct, frozen=True):
    """The service, mode and isolation network of a container. `network` None is none; "" is a network of that name.
    `attach`: the kind of attach, "" for that of the service."""

    service: str
    mode: str
    network: str | None
    attach: str = ""


def read_policy(fields: Fields) -> Policy:
    """`annotations`; raises `UndecodableContent` for a wrong type, `InvalidConfig` for a wrong value."""
    allow, networks, services = (fields.texts(key) for key in ("allow", "networks", "services"))
    for index, name in enumerate(allow or ()):
        if name not in DECIDABLE:
            raise InvalidConfig(f"{fields.where('allow')}[{index}]: {show(name)} is not one of {', '.join(DECIDABLE)}")
    for index, name in enumerate(networks or ()):
        check_network(name, f"{fields.where('networks')}[{index}]")
    for index, name in enumerate(services or ()):
        check_service(name, f"{fields.where('services')}[{index}]")
    return Policy(allow=allow, networks=networks, services=services)


def check_network(name: str, where: str) -> None:
    """Check the name of an isolation network: any text of one line, except the reserved names for edge peers. Raises
    InvalidConfig."""
    check_line(name, where)
    if name.startswith(EDGE_FENCE):
        raise InvalidConfig(f"{where}: {show(name)} is reserved: such names are the fences of edge peers")


def allowed(policy: Policy, pinned: frozenset[str], listed: Place) -> frozenset[str]:
    """Which of DECIDABLE annotations may decide; `pinned` are those that the list gives a value."""
    if policy.allow is not None:
        return frozenset(policy.allow)
    fixed = pinned | ({"isolationNetwork"} if listed.mode == ISOLATED and "mode" in pinned else set())
    return frozenset(DECIDABLE) - fixed


def refuse(policy: Policy, pinned: frozenset[str], labels: dict[str, str], listed: Place, wished: Place) -> None:
    """Raises InvalidConfig if the annotations `labels` decide something that they may not: the container belongs to
    `listed` without them, and to `wished` with them."""
    may = allowed(policy, pinned, listed)
    if wished.service != listed.service:
        _refuse_key(SERVICE_LABEL, "service", labels, may, listed.service)
        if policy.services is not None and wished.service not in policy.services:
            raise _outside(SERVICE_LABEL, wished.service, "services")
    if wished.mode != listed.mode:
        _refuse_key(MODE_LABEL, "mode", labels, may, listed.mode)
    if wished.attach != listed.attach:
        _refuse_key(ATTACH_LABEL, "attach", labels, may, listed.attach or None)
    if wished.network != listed.network:
        _refuse_network(policy, may, labels, listed, wished)


def refuse_by_namespace(words: ClusterWords, labels: dict[str, str], listed: Place, wished: Place) -> None:
    """Raises InvalidConfig if the Pod's annotations `labels` lead to an isolation network that its Namespace does not
    grant: to its own name and names that begin with it and a slash every Namespace leads, to others and to none by its
    annotation."""
    if not words.namespace or wished.network == listed.network:
        return
    own, network = words.namespace, wished.network
    granted = {name.strip() for name in words.defaults.get(NETWORKS_LABEL, "").split(",")} - {""}
    if "*" in granted or (network is not None and (network in granted | {own} or network.startswith(f"{own}/"))):
        return
    label = next(label for label in (NETWORK_LABEL, MODE_LABEL, SERVICE_LABEL) if label in labels)
    to = "no isolation network" if network is None else f"isolation network {show(network)}"
    raise InvalidConfig(
        f"{label}: {show(labels[label])}: the Namespace {own} does not let its Pod {words.pod} choose {to}",
        f"the annotation {NETWORKS_LABEL} of the Namespace names those that they may",
    )


def _refuse_network(policy: Policy, may: frozenset[str], labels: dict[str, str], listed: Place, wished: Place) -> None:
    label = next(label for label in (NETWORK_LABEL, MODE_LABEL, SERVICE_LABEL) if label in labels)
    if label == NETWORK_LABEL or listed.network is not None:
        _refuse_key(label, "isolationNetwork", labels, may, listed.network)
    if wished.network is not None:
        check_network(wished.network, label)
    if policy.networks is not None and wished.network not in policy.networks:
        raise _outside(label, "no isolation network" if wished.network is None else wished.network, "networks")


def _refuse_key(label: str, key: str, labels: dict[str, str], may: frozenset[str], value: str | None) -> None:
    if key in may:
        return
    given = f"the list gives {show(value)}" if value is not None else "the list gives none"
    raise InvalidConfig(
        f"{label}: {show(labels[label])}: a pod may not choose its {key} here, {given}",
        f"annotations.allow in the list says what annotations may decide: {', '.join(sorted(may)) or 'nothing'}",
    )


def _outside(label: str, value: str, key: str) -> InvalidConfig:
    return InvalidConfig(f"{label}: {show(value)} is not among annotations.{key} of the list")
