"""The mesh of this node: its WireGuard devices, their peers, and the routes to the CIDRs behind the peers.

Peers come from the YAML, joined tokens, the cluster and agents. The pure functions in `model/wireguard.py` decide the
wanted state of each device, and this module applies it. A start, a change, a restart and the periodic pass
(`reconcile/mesh.py`) share `sync`, which changes only what differs. A failure in the mesh never keeps the node from
serving its own containers: it is noted as a problem and tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from cni import naming
from cni.daemon.events import Events, NodeFactsChanged, PeersChanged
from cni.daemon.fence.from_records import RemoteView
from cni.daemon.fence.members import FenceMembers
from cni.daemon.mesh.desired_device import DeviceSize, carried, desired_device
from cni.daemon.mesh.devices import Devices
from cni.daemon.mesh.measured import Measurements, ProbedPeer
from cni.daemon.mesh.paths import PathPlanner
from cni.daemon.mesh.sources import PeerSources, ProxyNeighbours, remote_view
from cni.daemon.model import sizes, wireguard
from cni.daemon.model.endpoints import address_of
from cni.daemon.model.fleet import GLOBAL, Fleet
from cni.daemon.model.path_search import Bounds
from cni.daemon.model.wireguard import Target
from cni.daemon.node.container_mtu import ContainerMtu
from cni.daemon.node.ranges import Ranges
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.identity import Identity, KeyPair
from cni.daemon.state.state import State
from cni.daemon.state.tables import Tables
from cni.errors import CniError
from cni.host.forwarding import OUTSIDE
from cni.host.tunnels import Tunnels
from cni.host.wg_types import DeviceSeen, NoEngine
from cni.host.worker import beat

log = logging.getLogger(__name__)


class Mesh:
    """The devices of one node. Thread-safe."""

    def __init__(
        self,
        *,
        settings: Settings,
        state: State,
        registry: Tables,
        identity: Identity,
        fence: FenceMembers,
        ranges: Ranges,
        container_mtu: ContainerMtu,
        tunnels: Tunnels,
        sources: PeerSources,
        planner: PathPlanner,
        measurements: Measurements,
        devices: Devices,
        proxy_neighbours: ProxyNeighbours,
        board: ProblemBoard,
        events: Events,
    ) -> None:
        self._settings, self._state, self._registry, self._identity = settings, state, registry, identity
        self._fence, self._ranges, self._container_mtu, self._tunnels = fence, ranges, container_mtu, tunnels
        self._sources, self._planner, self._devices = sources, planner, devices
        self._measurements = measurements
        self._proxy_neighbours, self._board, self._events = proxy_neighbours, board, events
        self._lock = threading.RLock()
        self._fleet: Fleet | None = None
        self._connected: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._mtu = 0  # bytes: the MTU last determined
        self._stopped = False

    # --- from outside ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Give the fence the devices and the CIDRs behind them before its first load.

        An earlier daemon's tables contain these elements. A load without them removes them, and the tunnels carry
        nothing until the devices have been compared (measured: 25 to 58 ms).
        """
        with self._lock:
            services = self.services()
            devices = {self.device_name(service): service for service in services}
            self._update_fence(devices, {service: self.targets(service) for service in services})

    def start(self) -> None:
        """Set the devices up."""
        self._devices.start()
        self._measurements.restore(self._devices.sizes(self.name()))
        self.sync(thoroughly=True)

    def stop(self) -> None:
        """Change no device from now on. Devices, engines and traffic are not affected."""
        self._stopped = True

    def tear_down(self) -> None:
        """Remove all devices, for `uninstall`."""
        with self._lock:
            self._stopped = True
            self._fence.connect(RemoteView())
            for name in self._registry.devices.all():
                self._devices.remove(name)

    def withdraw(self) -> None:
        """Remove the devices that an earlier daemon left, while this node is out of service."""
        with self._lock:
            for name in self._registry.devices.all():
                self._devices.remove(name)

    def set_fleet(self, fleet: Fleet) -> None:
        """Apply the cluster's present peers and members. A change of members alone updates only the fence, which is
        cheap: members change with every attach on any node."""
        with self._lock:
            before, self._fleet = self._fleet, fleet
            if before is None or before.peers != fleet.peers or not self._connected:
                self.sync()
                self._events.publish(PeersChanged())
            elif before.members != fleet.members:
                self._fence.connect(self._remote_view(self._connected))

    def wanted(self) -> bool:
        """Whether this node is part of a mesh: an agent set it up, a token was joined, or the YAML names peers or a
        cluster."""
        return self._state.node.set_up or self._sources.configured()

    def name(self) -> str:
        """The global device's name, derived from deployment and instance."""
        node = self._state.node
        return naming.global_device(node.deployment, node.instance_id)

    def interface(self) -> str | None:
        """The global device's name; None if the device does not exist."""
        name = self.name()
        return name if self._devices.is_there(name) else None

    def device(self, service: str = GLOBAL) -> DeviceSeen | None:
        """The present state of the device; None if it does not exist or cannot be read."""
        return self._devices.read(self.device_name(service))

    def mtu(self) -> int:
        """The MTU of the device and of containers in bytes, as new containers get it. While no route leads
        out, as happens briefly when a link goes down and up, the last value stays."""
        if (
            self._container_mtu.is_fixed
            or not self._mtu
            or any(self._tunnels.way_to(outside) is not None for outside in OUTSIDE)
        ):
            self._mtu = self._container_mtu.current()
        return self._mtu

    def ages(self, device: DeviceSeen) -> dict[str, float]:
        """Seconds since the last handshake of each peer of a device, by the boot clock; infinite for none."""
        return self._devices.ages(device)

    def public_key(self) -> str:
        """This node's public key."""
        return self._identity.public_key()

    def rotate(self) -> str:
        """Make a new key for this node and set it on the device; returns the public key. Raises InputOutput."""
        pair = KeyPair.fresh()
        self.use_key(pair)
        return pair.public_key

    def use_key(self, pair: KeyPair) -> None:
        """Replace this node's key, on the device too. Raises InputOutput."""
        with self._lock:
            self._identity.replace_key(pair)
            self.sync()
        self._events.publish(NodeFactsChanged())

    def called_at(self, target: Target) -> list[str]:
        """The addresses with ports that a peer's endpoints resolve to."""
        return [address for endpoint in target.endpoints for address in self._planner.addresses(endpoint)]

    def path_mtu(self, key: str, endpoint: str) -> tuple[int, bool] | None:
        """The bytes that the path to a peer carries, and whether that was measured; None if there is no route."""
        address = address_of(endpoint)
        measured, way = self._measurements.paths().of(key, address), self._tunnels.way_to(address)
        if way is None:
            return None
        return carried(measured, way, wireguard.OVERHEAD[address.version], self._planner.widest(way, address.version))

    def targets(self, service: str = GLOBAL) -> dict[str, Target]:
        """The wanted peers of a device, by public key."""
        own = self._identity.public_key() if service == GLOBAL else self._identity.dedicated(service).public_key
        return wireguard.merged(self._sources.of(service, self._fleet), own)

    def cluster_keys(self, service: str = GLOBAL) -> frozenset[str]:
        """The peers that are nodes of the cluster, which publish the members of their isolation networks."""
        peers = self._fleet.peers.get(service, ()) if self._fleet is not None else ()
        return frozenset(target.public_key for target in peers)

    def probed_peers(self, fresh: bool) -> dict[str, ProbedPeer] | None:
        """The peers of the global device, for measuring their paths; None if the device cannot be read. `fresh`: read
        the device; otherwise its state in the last thorough pass counts."""
        device = self.device() if fresh else self._devices.last_reading(self.name())
        if device is None:
            return None
        with self._lock:
            targets, ages, mtu, least = self.targets(), self.ages(device), self.mtu(), self._least()
            probed = {}
            for key, seen in device.peers.items():
                if key not in targets:
                    continue
                address = address_of(seen.endpoint) if seen.endpoint else None
                probed[key] = ProbedPeer(
                    addresses=wireguard.answerers(targets[key]),
                    bounds=Bounds(min(least, mtu), max(least, self._planner.full(address, mtu))),
                    alive=ages[key] < wireguard.DEAD,
                    sent=seen.sent,
                    endpoint=seen.endpoint,
                    told_at=self._planner.told_at(address) if address is not None else 0.0,
                )
            return probed

    def _least(self) -> int:
        """The smallest MTU, in bytes, that a route in the overlay may have."""
        return sizes.least(6 in self._state.versions())

    def silent(self) -> list[Target]:
        """The peers of every device that do not answer although this node calls them."""
        return [
            target for service in self.services() for target in self._devices.silent(self.device_name(service)).values()
        ]

    def set_proven(self, proven: Mapping[str, str], held: frozenset[str]) -> None:
        """Call peers of the global device where they have just answered a probe (`PathPlanner.set_proven`)."""
        with self._lock:
            fresh = self._planner.set_proven(self.name(), proven, held)
            self.sync()
            # One of the two calls: the other one would drop the session that this call begins.
            fresh = frozenset(key for key in fresh if self.public_key() < key)
            if fresh and not self._stopped:
                with self._board.step("mesh-out-of-order", "calls", "peers could not be called where they answer"):
                    self._devices.call_now(self.name(), fresh)

    def sent(self) -> int:
        """The bytes that were sent into the global device; costs less than reading it."""
        return self._tunnels.sent(self.name())

    def last_reading(self) -> DeviceSeen | None:
        """The global device as read in the last thorough pass; None if it was not."""
        return self._devices.last_reading(self.name())

    def is_in_haste(self) -> bool:
        """Whether a silent peer has endpoints that should be tried before the next regular pass."""
        return self._planner.is_in_haste()

    # --- making it so ------------------------------------------------------------------------------------------------

    def sync(self, thoroughly: bool = False) -> None:
        """Bring every device into its wanted state; failures are noted as problems. Never raises.

        `thoroughly`: compare with the devices themselves, not with the state last applied.
        """
        with self._lock:
            if self._stopped or self._ranges.refusal:
                return
            with self._board.step("mesh-out-of-order", "", "the mesh could not be brought in order"):
                self._sync(thoroughly)

    def _sync(self, thoroughly: bool) -> None:
        services = self.services()
        routed = self._settings.underlay == "routed"
        devices = {} if routed else {self.device_name(service): service for service in services}
        targets = {service: self.targets(service) for service in services}
        self._sources.note_faults(services)
        all_targets = [target for by_key in targets.values() for target in by_key.values()]
        if thoroughly:
            self._planner.refresh(all_targets)
        self._board.set_all("peer-routes-kept-off", wireguard.kept_off(all_targets))
        self._update_fence(devices, targets)
        self._proxy_neighbours.sync()
        for name in [name for name in self._registry.devices.all() if name not in devices]:
            self._devices.remove(name)
        sources: dict[int, wireguard.Address] = {a.version: a for a in self._state.node_addresses()}
        for name, service in devices.items():
            beat()
            try:
                mtu = self.mtu()
                size = DeviceSize(mtu, self._planner.needs_fragments(mtu, self._least()))
                device = desired_device(name, service, size, self._identity, self._state)
                self._devices.ensure(device, targets[service], sources, thoroughly, self._complete())
            except NoEngine as error:
                self._devices.failed(name, f"no WireGuard device {name}: {error}; other nodes cannot be reached")
            except (OSError, CniError) as error:
                self._devices.failed(name, f"the WireGuard device {name} is not as it should be: {error}")
        self._board.set_all("path-mtu-doubted", self._planner.doubted())
        self._board.set_all("path-mtu-narrow", self._planner.narrow(targets.get(GLOBAL, {}), self._mtu))

    def services(self) -> list[str]:
        """The services that need a device: the global one, and those of mode `dedicated` with subnets."""
        if not self.wanted():
            return []
        dedicated = [s.name for s in self._state.services.values() if s.mode == "dedicated" and s.subnets]
        return [GLOBAL, *dedicated]

    def device_name(self, service: str) -> str:
        """The name of a service's device, or of the global one."""
        node = self._state.node
        if service == GLOBAL:
            return self.name()
        return naming.dedicated_device(node.deployment, node.instance_id, service)

    def _update_fence(self, devices: Mapping[str, str], targets: Mapping[str, Mapping[str, Target]]) -> None:
        """Give the fence the devices and the CIDRs behind them before a device delivers a packet."""
        self._connected = (tuple(sorted(devices)), self._planner.behind(targets, tuple(self._state.cidrs)))
        self._fence.connect(self._remote_view(self._connected))

    def _remote_view(self, wired: tuple[tuple[str, ...], tuple[str, ...]]) -> RemoteView:
        edges, guests = self._registry.edges.all().values(), self._registry.guests.all().values()
        return remote_view(wired, self._fleet, edges, guests)

    def _complete(self) -> bool:
        """Whether all peers are known. Until the cluster has been read, no peer is removed."""
        return self._sources.complete and (self._settings.cluster is None or self._fleet is not None)
