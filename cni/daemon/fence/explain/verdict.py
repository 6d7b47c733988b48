"""The result of `why`: a verdict, and the rule that gave it."""

from __future__ import annotations

from dataclasses import dataclass

HOST_FIREWALL = "the host's own INPUT rules decide last"


@dataclass(frozen=True, slots=True)
class RuleRef:
    """A rule by its family, chain and name. `network` is set for the chains of one network."""

    family: str
    chain: str
    name: str
    network: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a flow may be opened. `spot` is the rule that decided, None where no rule of the fence did.
    `certain`: the answer does not depend on another node's fence whose networks this node is not told. `translated`:
    the endpoints, if the node translates the destination."""

    allowed: bool
    spot: RuleRef | None
    reason: str
    notes: tuple[str, ...] = ()
    certain: bool = True
    translated: tuple[Translated, ...] = ()


@dataclass(frozen=True, slots=True)
class Translated:
    """One endpoint to which the node may translate the destination, and the verdict on it. Port 0: that of the flow."""

    address: str
    port: int
    label: str
    verdict: Verdict


def describe(network: str | None) -> str:
    """A network, as a phrase in a sentence."""
    return "the flat mesh" if network is None else f"network {network!r}"


def named(name: str, version: int) -> str:
    """The name, for one IP version, of a rule that exists once for each: "to a port" is "to a port, IPv6" for 6."""
    return name + (", IPv6" if version == 6 else "")
