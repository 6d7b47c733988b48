"""The node's data path as a whole: applied from the records, changed with the node's record, and removed."""

from __future__ import annotations

import logging

from cni import naming
from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.segments import Segments
from cni.daemon.fence.enforcement import FenceEnforcement
from cni.daemon.fence.from_records import on_the_hosts_networks
from cni.daemon.model.records import NodeChanges
from cni.daemon.node.node_settings import NodeSettings
from cni.daemon.node.own_addresses import OwnAddresses
from cni.daemon.node.ranges import Ranges
from cni.daemon.reconcile.conditions import NodeConditions
from cni.daemon.state.state import State
from cni.errors import CniError
from cni.host.kernel import Kernel

log = logging.getLogger(__name__)


class DataPath:
    """Applies, changes and removes the links, addresses, routes and tables of one node. Thread-safe."""

    def __init__(
        self,
        *,
        state: State,
        kernel: Kernel,
        fence: FenceEnforcement,
        own: OwnAddresses,
        ranges: Ranges,
        node_settings: NodeSettings,
        segments: Segments,
        release: SegmentRelease,
        attacher: Attacher,
        conditions: NodeConditions,
    ) -> None:
        self._state, self._kernel, self._fence, self._own, self._ranges = state, kernel, fence, own, ranges
        self._segments, self._release, self._attacher, self._conditions = segments, release, attacher, conditions
        self._node_settings = node_settings
        self._started = False  # before the start there is no fence that must follow a change of the node

    def start(self) -> None:
        """Apply the records to the kernel. Raises CniError, OSError if the node cannot serve."""
        self._started = True
        self._fence.begin()
        self._apply_node()
        self._segments.restore()

    def change_node(self, changes: NodeChanges) -> None:
        """Change this node's record, and once the node was started its addresses and tables as well. Raises
        InvalidConfig."""
        before, addresses = self._state.node, self._state.node_addresses()
        after = self._state.update_node(**changes)
        if self._ranges.refusal:
            self._ranges.reconsider()
        elif self._started and (before.cidrs, addresses) != (after.cidrs, self._state.node_addresses()):
            self._apply_node()

    def apply_ranges(self) -> bool:
        """Apply the host's current networks: the fence excepts those in the overlay's ranges, and subnets in them are
        released with their last container. Returns whether the networks changed. Raises OSError, CniError."""
        self._node_settings.keep_advertisements()
        before = self._state.connected, self._ranges.inside()
        if on_the_hosts_networks(self._ranges.networks(), self._state.cidrs) != self._state.connected:
            self._fence.load()
        self._release.vacate()
        return before != (self._state.connected, self._ranges.inside())

    def remove(self) -> None:
        """Remove an earlier daemon's bridges, addresses and tables, which would disturb the host: no container is
        attached. The records stay. Raises OSError, CniError."""
        for service in self._state.services.values():
            if service.is_routed:
                self._segments.dismantle(service)
            link = self._kernel.find(service.bridge) if service.subnets else None
            if link is not None and link.kind == "bridge":
                self._kernel.remove_link(service.bridge)
        self._own.remove_all()
        self._fence.unload()

    def tear_down(self) -> None:
        """Remove the whole data path: attachments, bridges, tables, for `uninstall`."""
        for attachment in self._state.snapshot():
            try:
                self._attacher.detach(attachment.key)
            except CniError as error:
                log.error("%s of %s: %s", attachment.ifname, attachment.container, error)
        for name in [name for name in self._state.services if name != naming.SHARED_BRIDGE_KEY]:
            self._segments.teardown(name)
        self._segments.teardown_shared()
        self._own.remove_all()
        self._fence.unload()

    def _apply_node(self) -> None:
        """Apply forwarding, the node's own addresses and the tables, which services and attachments need."""
        self._node_settings.repair()
        self._fence.load()
        self._conditions.look_for_obstacles()
