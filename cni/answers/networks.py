"""Isolation networks and what the fence drops."""

from __future__ import annotations

import msgspec

from cni.answers.answer import Answer
from cni.answers.status import Fence


class Member(Answer, frozen=True, kw_only=True):
    """An attachment as a member of an isolation network or of the flat mesh."""

    container_id: str
    interface: str
    addresses: list[str]
    service: str
    bridge: str
    host_interface: str
    pod: str
    state: str
    names: list[str] = msgspec.field(default_factory=list)


class Counts(Answer, frozen=True, kw_only=True):
    """A counter of the fence."""

    packets: int
    bytes: int


class Network(Answer, frozen=True, kw_only=True):
    """An isolation network; `isolation_network` is None for the flat mesh."""

    isolation_network: str | None
    members: list[Member]
    remote_members: list[str]
    dropped: Counts


class Drop(Answer, frozen=True, kw_only=True):
    """A rule that drops, and its counter since it was loaded."""

    rule: str
    family: str
    chain: str
    isolation_network: str | None
    of_a_network: bool
    packets: int
    bytes: int


class Networks(Answer, frozen=True, kw_only=True):
    """All networks of the node, the flat mesh first."""

    fence: Fence
    networks: list[Network]
    drops: list[Drop]


class DroppedPacket(Answer, frozen=True, kw_only=True):
    """A packet that a rule of the fence dropped. The ends are addresses, or MACs where the packet has no addresses."""

    time_unix: float
    rule: str
    family: str
    chain: str
    isolation_network: str | None
    of_a_network: bool
    source: str
    source_label: str
    source_port: int | None
    destination: str
    destination_label: str
    destination_port: int | None
    protocol: str
    in_interface: str | None
    out_interface: str | None


class DropSample(Answer, frozen=True, kw_only=True):
    """The packets since the reader's last request. `cursor` belongs into its next one."""

    cursor: int
    packets: list[DroppedPacket]
    lost: int
