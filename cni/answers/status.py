"""The summary of the node."""

from __future__ import annotations

import msgspec

from cni.answers.answer import Answer


class NodeSummary(Answer, frozen=True, kw_only=True):
    """The identity of the node, and the overlay's ranges."""

    deployment: str
    instance_id: str
    node_id: int
    cluster_cidrs: list[str]
    slice_cidr: str | None


class WireGuard(Answer, frozen=True, kw_only=True):
    """The node's own WireGuard device. `interface` is None without one, and `note` then has the reason."""

    interface: str | None = None
    engine: str | None = None
    public_key: str | None = None
    port: int | None = None
    peers: int = 0
    alive: int = 0
    note: str = ""


class Fence(Answer, frozen=True, kw_only=True):
    """Whether the fence is in force, and the reason if it is not."""

    in_force: bool
    trouble: str


class ServiceSummary(Answer, frozen=True, kw_only=True):
    """One service of the node; `attachments` is a number."""

    service: str
    mode: str
    attach: str = "bridge"
    bridge: str
    subnets: list[str]
    attachments: int


class ProblemDetail(Answer, frozen=True, kw_only=True):
    """A problem of the registry (cni/problems/)."""

    code: str
    area: str
    severity: str
    text: str
    action: str


class Calls(Answer, frozen=True, kw_only=True):
    """The calls of plugins since the daemon's start, by what sent them."""

    launcher: int
    python: int


class Dns(Answer, frozen=True, kw_only=True):
    """The node's DNS server: the addresses at which it answers, the overlay's zone, how many have names, and what was
    counted since the daemon's start, by name."""

    served: list[str]
    zone: str
    named: int
    counts: dict[str, int]
    forwarding: dict[str, int]


class Status(Answer, frozen=True, kw_only=True):
    """The summary of the node. `problem_details` is None from a daemon that is older than the codes."""

    version: str
    pid: int
    uptime_seconds: float
    run_dir: str
    data_dir: str
    node: NodeSummary
    mtu: int
    wireguard: WireGuard
    fence: Fence
    services: list[ServiceSummary]
    attachments: int
    unfinished: int
    calls: Calls | None = None
    dns: Dns | None = None
    problems: list[str]
    problem_details: list[ProblemDetail] | None = None
    notes: list[str] = msgspec.field(default_factory=list)


class Running(Answer, frozen=True, kw_only=True):
    """The part of `Status` that daemons of all versions have: what `install` needs to know of the one it replaces."""

    version: str
    pid: int
