"""Flows between two ends: what is allowed, what names resolve to, what real packets met."""

from __future__ import annotations

import msgspec

from cni.answers.answer import Answer


class Port(Answer, frozen=True, kw_only=True):
    """The port that was asked for."""

    number: int
    protocol: str


class Rule(Answer, frozen=True, kw_only=True):
    """A rule of the fence."""

    name: str
    family: str
    chain: str


class Endpoint(Answer, frozen=True, kw_only=True):
    """One end of a flow."""

    kind: str
    address: str | None
    label: str
    container_id: str | None
    isolation_network: str | None
    on_flat_mesh: bool


class TranslatedEnd(Answer, frozen=True, kw_only=True):
    """An endpoint to which the node may translate the destination, and the verdict on it. `port`: None without one."""

    address: str
    port: int | None
    label: str
    allowed: bool
    rule: Rule | None
    reason: str


class Path(Answer, frozen=True, kw_only=True):
    """The verdict on one pair of addresses; `from` in JSON is `source` here."""

    family: int
    source: Endpoint = msgspec.field(name="from")
    to: Endpoint
    allowed: bool
    certain: bool = True
    rule: Rule | None
    reason: str
    notes: list[str]
    endpoints: list[TranslatedEnd] = msgspec.field(default_factory=list)


class Reachability(Answer, frozen=True, kw_only=True):
    """Whether a flow is allowed."""

    src: str
    dst: str
    port: Port | None
    allowed: bool
    paths: list[Path]
    warnings: list[str]


class Withheld(Answer, frozen=True, kw_only=True):
    """An address that has the name, and that the asker may not reach."""

    address: str
    of: str
    rule: Rule | None
    reason: str


class Resolution(Answer, frozen=True, kw_only=True):
    """What the node's DNS server answers to an asker about a name."""

    name: str
    asker: str
    code: str
    ttl: int | None
    addresses: list[str]
    names: list[str]
    withheld: list[Withheld]


class Cell(Answer, frozen=True, kw_only=True):
    """One check of the connectivity test: whether packets of a kind go from one place to another. `got` is None if it
    was not run, for the reason in `text`."""

    kind: str
    source: str
    destination: str
    address: str | None
    expected: bool
    predicted: bool | None
    rule: str | None
    got: bool | None
    ok: bool
    code: str | None
    text: str
    remedy: str
    seconds: float


class Connectivity(Answer, frozen=True, kw_only=True):
    """The connectivity test of one node. `codes`: the faults that explain what is not as it should be."""

    ok: bool
    version: str
    node: str
    cells: list[Cell]
    codes: list[str]
    seconds: float


class TraceStep(Answer, frozen=True, kw_only=True):
    """A rule that a packet met: its name if it is the fence's, its text if it is another program's, or `policy`."""

    family: str
    table: str
    chain: str
    rule: str
    verdict: str


class TracedPacket(Answer, frozen=True, kw_only=True):
    """The way of one packet through the node's chains."""

    in_interface: str | None
    out_interface: str | None
    dropped: bool
    steps: list[TraceStep]


class Trace(Answer, frozen=True, kw_only=True):
    """The packets of one flow. `sent`: whether the tool sent the first itself."""

    source: str
    destination: str
    port: Port | None
    sent: bool
    packets: list[TracedPacket]
