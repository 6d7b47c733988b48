"""The parts of the fence around its tables, part of the composition root (`app.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cni.daemon.fence.drop_rules import DropRules
from cni.daemon.fence.enforcement import FenceEnforcement
from cni.daemon.fence.from_records import Network
from cni.daemon.fence.inventory import Inventory
from cni.daemon.fence.members import FenceMembers
from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.status import FenceStatus
from cni.daemon.fence.tables import FenceTables
from cni.daemon.settings import Settings
from cni.daemon.state.state import State


@dataclass(frozen=True, kw_only=True)
class Fence:
    """The fence of one node. All parts share one `FenceTables`, which no other object is given."""

    enforcement: FenceEnforcement
    members: FenceMembers
    status: FenceStatus
    drop_rules: DropRules
    other_firewalls: OtherFirewalls


def build_fence(
    state: State,
    settings: Settings,
    bridge_names: bool,
    alone: Callable[[], bool],
    host_networks: Callable[[], Iterable[Network]],
) -> Fence:
    """The fence, not loaded. `bridge_names`, `alone` and `host_networks`: as in `Inventory`, `FenceTables` and
    `FenceEnforcement`."""
    tables = FenceTables(Inventory(state, settings, bridge_names), alone)
    other_firewalls = OtherFirewalls(tables, state)
    enforcement = FenceEnforcement(tables, other_firewalls, state, host_networks)
    return Fence(
        enforcement=enforcement,
        members=FenceMembers(tables, enforcement, state),
        status=FenceStatus(tables, state),
        drop_rules=DropRules(tables),
        other_firewalls=other_firewalls,
    )
