"""The interface names of segments, and the refusal of a name that another service's segment has.

A long service name becomes 40 bits of a hash without a secret, so a user who may choose service names can find a
collision, and with it take the other service's bridge or device down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cni import naming
from cni.daemon.model.records import Node, Service
from cni.errors import InvalidConfig

SHARED = naming.SHARED_BRIDGE_KEY
USABLE = re.compile(r"[^\s/:%\"\\*\x00-\x1f\x7f]+")
"""Interface names that can be used: the kernel refuses some of the excluded characters, replaces others (`%d`, NUL),
and the syntax of the fence's rules has no form for the rest."""


def bridge_name(node: Node, segment: str) -> str:
    """The name of a segment's bridge."""
    if segment == SHARED:
        return naming.shared_bridge(node.deployment, node.instance_id)
    return naming.service_bridge(node.deployment, node.instance_id, segment)


def usable_bridge_name(node: Node, segment: str, service: str) -> str:
    """`bridge_name`. Raises InvalidConfig if no interface can have it; `service` is the name as requested."""
    bridge = bridge_name(node, segment)
    if not USABLE.fullmatch(bridge):
        raise InvalidConfig(f"service: {service!r} does not make an interface name ({bridge!r})")
    return bridge


def owner_of(bridge: str, services: Iterable[Service]) -> Service | None:
    """The service whose record has a bridge of that name, and subnets."""
    return next((service for service in services if service.bridge == bridge and service.subnets), None)


def refuse_same_bridge(node: Node, segment: str, services: Iterable[Service]) -> None:
    """Raises InvalidConfig if another service's bridge has the interface name that this one's would have."""
    bridge = bridge_name(node, segment)
    other = owner_of(bridge, services)
    if other is not None and other.name != segment:
        raise InvalidConfig(f"service: {segment!r} makes the interface name {bridge!r}, which {other.name!r} has")


def refuse_same_device(node: Node, name: str, services: Iterable[Service]) -> None:
    """As `refuse_same_bridge`, for the WireGuard device of a service in mode dedicated. Raises InvalidConfig."""
    device = _device_name(node, name)
    for other in services:
        if other.mode == "dedicated" and other.name != name and _device_name(node, other.name) == device:
            raise InvalidConfig(f"service: {name!r} makes the interface name {device!r}, which {other.name!r} has")


def _device_name(node: Node, service: str) -> str:
    return naming.dedicated_device(node.deployment, node.instance_id, service)
