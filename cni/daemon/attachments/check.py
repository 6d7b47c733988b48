"""CHECK: is the attachment still what ADD made? Pure; the kernel's answers come in as values.

What every overlay has is judged in cni/attach_rules.py; here is what this daemon has besides: its bridge by name, the
node's forwarding, the fence. Returns what is wrong, the gravest first; an empty list is a good attachment.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cni import attach_rules
from cni.attach_rules import Expected
from cni.daemon.model.records import Attachment
from cni.host.links import Link
from cni.host.ports import ContainerView, Sought
from cni.netconf.types import Result


@dataclass(frozen=True)
class Observed:
    """What the kernel holds: the host end, the bridge and its addresses, the container's end, the namespace's id."""

    host: Link | None
    bridge: Link | None
    gateways: frozenset[str]
    inside: ContainerView
    netns: tuple[int, int]
    forwarding: dict[int, bool]
    unfenced: tuple[str, ...] = ()


def sought(attachment: Attachment, previous: Result, sandbox: str) -> Sought:
    """What to look for in the container's namespace."""
    return attach_rules.sought(_expected(attachment, sandbox), previous)


def differences(attachment: Attachment, previous: Result, sandbox: str, seen: Observed) -> list[str]:
    """What differs from the record, and from the result the runtime kept."""
    found = attach_rules.not_the_same(attachment.state, sandbox, seen.netns == attachment.netns)
    if found:
        return found
    expected = _expected(attachment, sandbox)
    return [
        *_node_side(attachment, expected, seen),
        *attach_rules.container_side(expected, previous, seen.inside, seen.host),
        *attach_rules.against_result(expected, previous),
        *(f"the fence is not whole: {what}" for what in seen.unfenced),
    ]


def _expected(attachment: Attachment, sandbox: str) -> Expected:
    return Expected(
        attachment.ifname,
        sandbox,
        attachment.mac,
        tuple((held.address, held.gateway) for held in attachment.addresses),
        tuple((route.dst, route.via) for route in attachment.routes),
        attachment.host_veth,
        frozenset({attachment.bridge, attachment.host_veth}),
    )


def _node_side(attachment: Attachment, expected: Expected, seen: Observed) -> list[str]:
    host, bridge = seen.host, seen.bridge
    if host is None:
        return [f"the host interface {attachment.host_veth} is missing"]
    found = []
    if not host.up:
        found.append(f"the host interface {attachment.host_veth} is down")
    if bridge is None:
        return [*found, f"the bridge {attachment.bridge} is missing"]
    if host.master != bridge.index:
        found.append(f"the host interface {attachment.host_veth} is not on the bridge {attachment.bridge}")
    found += attach_rules.bridge_side(bridge, expected, seen.gateways)
    versions = dict.fromkeys(ipaddress.ip_address(held.gateway).version for held in attachment.addresses)
    return found + [f"the node does not forward IPv{each}" for each in versions if not seen.forwarding.get(each, True)]
