"""Attachments, their garbage collection, and what an ADD would do."""

from __future__ import annotations

import msgspec

from cni.answers.answer import Answer


class Attachment(Answer, frozen=True, kw_only=True):
    """One interface of one container."""

    network: str
    container_id: str
    interface: str
    addresses: list[str]
    gateways: list[str]
    service: str
    mode: str
    isolation_network: str | None
    state: str
    attach: str = "bridge"
    bridge: str
    host_interface: str
    mac: str
    mtu: int
    netns: str
    pid: int | None
    pod: str
    created_unix: float
    names: list[str] = msgspec.field(default_factory=list)


class DeadAttachment(Answer, frozen=True, kw_only=True):
    """An attachment that garbage collection released, or would release."""

    network: str
    container_id: str
    interface: str
    addresses: list[str]
    pod: str
    reason: str


class Garbage(Answer, frozen=True, kw_only=True):
    """What garbage collection did, or would do."""

    dry_run: bool
    released: list[DeadAttachment]
    candidates: list[DeadAttachment]
    strays: list[str]


class Plan(Answer, frozen=True, kw_only=True):
    """What an ADD would do. `service` is None if the configuration is refused; `bridge` if a new one would be made.
    `reaches`: the members of its network on this node; `fails`: why it would fail."""

    network: str
    service: str | None = None
    mode: str = ""
    bridge: str | None = None
    subnets: list[str] = msgspec.field(default_factory=list)
    attachments: int = 0
    isolation_network: str | None = None
    reaches: int = 0
    addresses: list[str] = msgspec.field(default_factory=list)
    mtu: int = 0
    routes: list[str] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    fails: list[str] = msgspec.field(default_factory=list)
