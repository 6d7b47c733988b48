"""Which configuration of NAT traversal is in effect: the YAML's, else the agent's."""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.model.endpoints import LONGEST_NAME, split_endpoint
from cni.daemon.model.relay_pairs import usable_ports
from cni.daemon.settings import Nat
from cni.overlay import wire


@dataclass(frozen=True, slots=True)
class RelayRules:
    """What this node relays for others. `external`: the address at which it is reached, "" for its own."""

    ports: range
    external: str
    max_pairs: int


@dataclass(frozen=True, slots=True)
class NatRules:
    """`stun`: the servers, (host, port); `unusable`: what was named as one and is none;
    `most_candidates`: places of one peer that are probed."""

    enabled: bool = False
    stun: tuple[tuple[str, int], ...] = ()
    unusable: tuple[str, ...] = ()
    most_candidates: int = 16
    relay: RelayRules | None = None


def in_effect(yaml: Nat | None, of_agent: wire.NatConfig | None) -> NatRules:
    """The rules. The YAML comes first, as for every setting that an operator wrote. Without either NAT traversal is
    off; an agent's object counts as it says itself (contract 2.6), but its empty list of servers asks none."""
    if yaml is not None:
        relay = yaml.relay
        rules = RelayRules(usable_ports(relay.ports), relay.external, relay.max_pairs) if relay is not None else None
        return NatRules(yaml.enabled, *_split(yaml.stun), relay=rules)
    if of_agent is not None:
        return NatRules(of_agent.enabled, *_split(of_agent.stun_servers), of_agent.max_candidate_pairs or 10)
    return NatRules()


def _split(servers: tuple[str, ...]) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    usable, unusable = [], []
    for server in servers:
        try:
            usable.append(split_endpoint(server, LONGEST_NAME))
        except ValueError:
            unusable.append(server)
    return tuple(usable), tuple(unusable)
