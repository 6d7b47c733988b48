"""CHECK: compares an attachment with its record and ADD's result. Pure; the kernel's answers are passed as values.

cni/attach_rules.py has the comparisons that every overlay shares. This module adds those of this daemon: its bridge by
name, the node's forwarding, the fence.
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
    """What the kernel has: host end, bridge and its addresses, container's end, the namespace's (device, inode),
    why the node does not forward the packets of the bridge, what is missing in the fence, and what the node lacks for a
    routed port."""

    host: Link | None
    bridge: Link | None
    gateways: frozenset[str]
    inside: ContainerView
    netns: tuple[int, int]
    stopped: tuple[str, ...] = ()
    unfenced: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


def sought(attachment: Attachment, previous: Result, sandbox: str) -> Sought:
    """What to read in the container's namespace."""
    return attach_rules.sought(_expected(attachment, sandbox), previous)


def differences(attachment: Attachment, previous: Result, sandbox: str, seen: Observed) -> list[str]:
    """The differences from the record and from the result that the runtime kept, the gravest first; an empty list for a
    good attachment."""
    fatal = attach_rules.not_the_same(attachment.state, sandbox, seen.netns == attachment.netns)
    if fatal:
        return fatal
    expected = _expected(attachment, sandbox)
    return [
        *_node_side(attachment, expected, seen),
        *attach_rules.container_side(expected, previous, seen.inside, seen.host),
        *attach_rules.against_result(
            expected, previous, {link.name: link.mac for link in (seen.host, seen.bridge) if link is not None}
        ),
        *(f"the fence is not whole: {what}" for what in seen.unfenced),
    ]


def _expected(attachment: Attachment, sandbox: str) -> Expected:
    return Expected(
        attachment.ifname,
        sandbox,
        attachment.mac,
        tuple((assigned.address, assigned.gateway) for assigned in attachment.addresses),
        (*((route.dst, route.via) for route in attachment.routes), *_sourced(attachment)),
        attachment.host_veth,
        frozenset({attachment.host_veth} if attachment.is_routed else {attachment.bridge, attachment.host_veth}),
        attachment.host_mac if attachment.is_routed else "",
    )


def _sourced(attachment: Attachment) -> list[tuple[str, str]]:
    """The default routes that only packets from the attachment's own addresses take."""
    gateways = [assigned.gateway for assigned in attachment.addresses]
    versions = [(ipaddress.ip_address(gateway).version, gateway) for gateway in gateways]
    return [(attach_rules.DEFAULT_ROUTES[v], gateway) for v, gateway in versions if v in attachment.sourced]


def _node_side(attachment: Attachment, expected: Expected, seen: Observed) -> list[str]:
    host, bridge = seen.host, seen.bridge
    if host is None:
        return [f"the host interface {attachment.host_veth} is missing"]
    faults = []
    if not host.up:
        faults.append(f"the host interface {attachment.host_veth} is down")
    if attachment.is_routed:
        on = [f"the host interface {attachment.host_veth} is on a bridge, and is to be on none"] if host.master else []
        return [*faults, *on, *seen.lacks, *seen.stopped]
    if bridge is None:
        return [*faults, f"the bridge {attachment.bridge} is missing"]
    if host.master != bridge.index:
        faults.append(f"the host interface {attachment.host_veth} is not on the bridge {attachment.bridge}")
    elif not host.hairpin:
        faults.append(f"the host interface {attachment.host_veth} is not in hairpin mode on {attachment.bridge}")
    faults += attach_rules.bridge_side(bridge, expected, seen.gateways)
    return [*faults, *seen.stopped]
