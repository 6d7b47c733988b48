"""CHECK in front of ZLayer's daemon: compares the attachment with what ADD created. Uses the state of the kernel only,
because the daemon has no operation for it (contract 7.1), and may hang.

The comparisons for every overlay are in cni/attach_rules.py; this module has those for ZLayer's daemon only. Pure: the
state of the kernel is passed in as a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni import attach_rules
from cni.attach_rules import Expected
from cni.host.links import Link
from cni.host.ports import ContainerView, Sought
from cni.netconf.types import Result
from cni.upstream.records import Record


@dataclass(frozen=True)
class Facts:
    """The state of the kernel: the namespace's identity, the holder, the host end and its bridge, the container's
    end."""

    netns: tuple[int, int]
    holder_alive: bool
    host: Link | None
    bridge: Link | None
    gateways: frozenset[str]
    inside: ContainerView


def faults(record: Record, previous: Result, sandbox: str, facts: Facts) -> list[str]:
    """The differences, the most severe first; empty for an intact attachment."""
    differences = attach_rules.not_the_same(record.state, sandbox, facts.netns == record.netns)
    if differences:
        return differences
    if facts.host is None or facts.host.index != record.host_index:
        return [f"the host interface {record.host_veth} is missing: did the overlay daemon end, or sweep it?"]
    expected = _expected(record, sandbox)
    return [
        *_node(record, expected, facts),
        *attach_rules.container_side(expected, previous, facts.inside, facts.host),
        # The MAC of a bridge of ZLayer's daemon follows its ports.
        *attach_rules.against_result(expected, previous, {facts.host.name: facts.host.mac}),
    ]


def sought(record: Record, previous: Result, sandbox: str) -> Sought:
    """The addresses and routes to look for in the container's namespace."""
    return attach_rules.sought(_expected(record, sandbox), previous)


def _expected(record: Record, sandbox: str) -> Expected:
    return Expected(record.ifname, sandbox, record.mac, record.addresses, record.routes, record.host_veth)


def _node(record: Record, expected: Expected, facts: Facts) -> Iterator[str]:
    if not facts.holder_alive:
        yield f"the holder process {record.pid} is gone: the daemon will remove the interface at its next attach"
    if facts.host is not None and not facts.host.up:
        yield f"the host interface {record.host_veth} is down"
    if facts.bridge is None:
        yield f"the host interface {record.host_veth} is on no bridge"
        return
    if facts.bridge.name != record.bridge:
        yield f"the host interface {record.host_veth} is on {facts.bridge.name}, not on {record.bridge}"
    yield from attach_rules.bridge_side(facts.bridge, expected, facts.gateways)
