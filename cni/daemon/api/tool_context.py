"""The parts of the daemon that the requests of the operator's tool use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni import answers
from cni.daemon.attachments.attach import Attacher
from cni.daemon.dns.service import DnsService
from cni.daemon.fence.drop_watch import DropWatch
from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.status import FenceStatus
from cni.daemon.mesh.joined_peers import JoinedPeers
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.nat.netcheck import NetCheck
from cni.daemon.nat.traversal import Traversal
from cni.daemon.node.container_mtu import ContainerMtu
from cni.daemon.reconcile.conditions import NodeConditions
from cni.daemon.reconcile.health import NodeHealth
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.tables import Tables
from cni.host.kernel import Kernel

if TYPE_CHECKING:
    from cni.daemon.cluster.departed_nodes import DepartedNodes


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """The context of every request. `departed`: None outside a cluster; `rotate` replaces this node's key and returns
    the new public key; `tear_down` removes the whole data path; `started`: when the daemon started, in seconds of the
    monotonic clock."""

    settings: Settings
    state: State
    kernel: Kernel
    fence: FenceStatus
    other_firewalls: OtherFirewalls
    drops: DropWatch
    attacher: Attacher
    container_mtu: ContainerMtu
    conditions: NodeConditions
    health: NodeHealth
    registry: Tables
    joined: JoinedPeers
    mesh: Mesh
    netcheck: NetCheck
    dns: DnsService
    traversal: Traversal
    departed: DepartedNodes | None
    rotate: Callable[[], str]
    calls: Callable[[], answers.Calls]
    tear_down: Callable[[], None]
    started: float = field(default_factory=time.monotonic)
