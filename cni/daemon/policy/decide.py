"""Decides whether a flow may be opened, and names the policy and the rule: the answer of `why`.

Judged are the ends of the flow after translation: the client's own address, and the address and port of the server
that receives it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cni.daemon.policy.model import DIRECTIONS, BlockPeer, Direction, Pod, Policy, Rule, sorted_policies


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow: its address, and the pod that has it, if one has."""

    address: str
    pod: Pod | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that `client` opens to `port` of `server`. `protocol`: TCP, UDP, SCTP, or another name with port 0."""

    client: End
    server: End
    protocol: str
    port: int = 0

    def judged(self, direction: Direction) -> End:
        """The end that policies of that direction select."""
        return self.server if direction == "ingress" else self.client

    def peer(self, direction: Direction) -> End:
        """The end that rules of that direction name as peer."""
        return self.client if direction == "ingress" else self.server


@dataclass(frozen=True, slots=True)
class Side:
    """What the policies of one direction say. `policies`: the titles of those that isolate the pod, none if no policy
    does; `rule`: the rule that allows the flow, empty if none does."""

    direction: Direction
    allowed: bool
    policies: tuple[str, ...] = ()
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of both directions; a flow needs both."""

    egress: Side
    ingress: Side

    @property
    def allowed(self) -> bool:
        """Whether the flow may be opened."""
        return self.egress.allowed and self.ingress.allowed


def rule_name(policy: Policy, direction: Direction, index: int) -> str:
    """How a rule is called: by its policy and its place there."""
    return f"{policy.title} {direction}[{index}]"


def may(flow: Flow, policies: Collection[Policy], namespaces: Mapping[str, Mapping[str, str]]) -> Decision:
    """Whether a flow may be opened. `namespaces`: the labels of each namespace."""
    if flow.client.address == flow.server.address:  # a pod always reaches itself
        return Decision(Side("egress", True), Side("ingress", True))
    ingress, egress = (side(flow, direction, policies, namespaces) for direction in DIRECTIONS)
    return Decision(egress, ingress)


def side(
    flow: Flow, direction: Direction, policies: Iterable[Policy], namespaces: Mapping[str, Mapping[str, str]]
) -> Side:
    """What the policies of one direction say of a flow."""
    pod = flow.judged(direction).pod
    selecting = sorted_policies(p for p in policies if pod is not None and p.selects(pod, direction))
    if not selecting:
        return Side(direction, True)
    titles = tuple(policy.title for policy in selecting)
    for policy in selecting:
        for index, rule in enumerate(policy.rules(direction) or ()):
            if _allows(rule, flow, direction, namespaces):
                return Side(direction, True, titles, rule_name(policy, direction, index))
    return Side(direction, False, titles)


def _allows(rule: Rule, flow: Flow, direction: Direction, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    by_port = rule.ports is None or any(port.accepts(flow.protocol, flow.port, flow.server.pod) for port in rule.ports)
    return by_port and (rule.peers is None or _is_peer(rule, flow.peer(direction), namespaces))


def _is_peer(rule: Rule, end: End, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    for peer in rule.peers or ():
        if isinstance(peer, BlockPeer):
            if peer.accepts(end.address):
                return True
        elif end.pod is not None and peer.accepts(end.pod, namespaces.get(end.pod.namespace, {})):
            return True
    return False
