"""What `why` answers with: a verdict, and the rule that gave it."""

from __future__ import annotations

from dataclasses import dataclass

HOST_FIREWALL = "the host's own INPUT rules have the last word"


@dataclass(frozen=True, slots=True)
class RuleRef:
    """A rule by its place in the tables: family, chain, name. `network` for the chains that are one network's."""

    family: str
    chain: str
    name: str
    network: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """May it? `spot` is None where no rule of ours has a say."""

    allowed: bool
    spot: RuleRef | None
    reason: str
    notes: tuple[str, ...] = ()


def describe(network: str | None) -> str:
    """A network, for a sentence."""
    return "the flat mesh" if network is None else f"network {network!r}"


def named(name: str, version: int) -> str:
    """A rule that comes once for each family, by its name."""
    return name + (", IPv6" if version == 6 else "")
