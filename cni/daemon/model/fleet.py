"""The other nodes of a cluster, in the form in which the mesh applies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cni.daemon.model.wireguard import Target

GLOBAL = ""  # the node's own device, in mappings by service


@dataclass(frozen=True)
class Fleet:
    """The other nodes, for the mesh: the peers of each device (`GLOBAL` or a service), and the addresses behind them
    that are members of each isolation network, and of each service that a node's `isolation` names; `nodes`: the nodes'
    own addresses."""

    peers: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    services: Mapping[str, frozenset[str]] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()
