"""The mesh of this node: its WireGuard devices, their peers, and the routes to the CIDRs behind the peers.

Peers come from the YAML, joined tokens, the cluster and agents. The pure functions in `model/wireguard.py` decide the
wanted state of each device, and this module applies it. A start, a change, a restart and the pass every ten seconds
share `sync`, which changes only what differs. A failure in the mesh never keeps the node from serving its own
containers: it is noted as a problem and tried again.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from cni import naming
from cni.answers import WireGuard
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.departed_nodes import DepartedNode
from cni.daemon.cluster.etcd_answers import Answers
from cni.daemon.cluster.store_records import GLOBAL
from cni.daemon.cluster.view import Fleet
from cni.daemon.fence.controller import RemoteView
from cni.daemon.mesh.devices import Devices
from cni.daemon.mesh.joined_peers import JoinedPeers
from cni.daemon.mesh.paths import PathPlanner, address_of
from cni.daemon.mesh.sources import PeerSources, ProxyNeighbours, remote_view
from cni.daemon.model import wireguard
from cni.daemon.model.wireguard import Target
from cni.daemon.reconcile.mtu import MtuFollower
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import boot_clock
from cni.daemon.state.tables import Tables
from cni.errors import CniError
from cni.host.forwarding import OUTSIDE
from cni.host.monitor import Monitor, is_loss
from cni.host.netlink import RTM_NEWLINK
from cni.host.tunnels import Device, Tunnels
from cni.host.wg_types import DeviceSeen, NoEngine
from cni.host.worker import beat
from cni.overlay import wire

log = logging.getLogger(__name__)

PASS_INTERVAL = 10.0  # seconds between two passes
SETTLE = 0.05  # seconds between a link event and the pass it causes

Network = wireguard.Network


class Cluster(Protocol):
    """The part of the cluster that the tool's requests use (cluster/sync.py)."""

    def departed(self) -> list[DepartedNode]: ...
    def forget(self, word: str) -> DepartedNode: ...


class Mesh:
    """The devices of one node. Thread-safe."""

    def __init__(
        self, service: OverlayService, registry: Tables, identity: Identity, tunnels: Tunnels, joined: JoinedPeers
    ) -> None:
        self._service = service
        self.registry = registry
        self.joined = joined
        self._identity = identity
        self.tunnels = tunnels
        self._lock = threading.RLock()
        self._fleet: Fleet | None = None
        self._connected: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._proxy_neighbours = ProxyNeighbours(service, registry, tunnels)
        self._sources = PeerSources(service.settings, registry, joined, lambda: service.state.cidrs, service.board)
        self._mtu_follower = MtuFollower(service)
        # Sends an event to the agents; is called with the lock held and must not block.
        self.tell: Callable[[wire.AnyEvent], None] = lambda event: None
        self._mtu = 0  # bytes: the MTU last determined
        self.cluster: Cluster | None = None
        self._wake = threading.Event()
        self._stop = False
        self._planner = PathPlanner(
            tunnels,
            self._wake.set,
            lambda: service.state.cidrs,
            service.ranges.inside,
            crew=service.crew,
            told=functools.partial(service.board.set_all, "name-not-found"),
        )
        self._answers = Answers()
        self._devices = Devices(registry, tunnels, self._planner, self._tell, service.board)
        self._monitor: Monitor | None = None
        self._worker = service.crew.worker("mesh", self._run)

    # --- from outside ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Give the fence the devices and the CIDRs behind them before its first load.

        An earlier daemon's tables contain these elements. A load without them removes them, and the tunnels carry
        nothing until the devices have been compared (measured: 25 to 58 ms).
        """
        with self._lock:
            services = self.services()
            wanted = {self.device_name(service): service for service in services}
            self._update_fence(wanted, {service: self.targets(service) for service in services})

    def start(self) -> None:
        """Set the devices up and start the periodic pass."""
        self._devices.start()
        self._reconcile()
        self._monitor = Monitor(self._on_link_event, crew=self._service.crew, name="monitor-mesh")
        self._worker.start()

    def stop(self) -> None:
        """Stop the periodic pass. Devices, engines and traffic are not affected."""
        self._worker.retire()
        self._stop = True
        self._wake.set()
        self._planner.stop()
        if self._monitor is not None:
            self._monitor.close()
        self._worker.join(PASS_INTERVAL)
        self.tunnels.close()

    def tear_down(self) -> None:
        """Remove all devices, for `uninstall`."""
        with self._lock:
            self._stop = True
            self._service.barrier.connect(RemoteView())
            for name in self.registry.devices.all():
                self._devices.remove(name)

    def withdraw(self) -> None:
        """Remove the devices that an earlier daemon left, while this node is out of service."""
        with self._lock:
            for name in self.registry.devices.all():
                self._devices.remove(name)

    def set_fleet(self, fleet: Fleet) -> None:
        """Apply the cluster's present peers and members. A change of members alone updates only the fence, which is
        cheap: members change with every attach on any node."""
        with self._lock:
            before, self._fleet = self._fleet, fleet
            if before is None or before.peers != fleet.peers or not self._connected:
                self.sync()
            elif before.members != fleet.members:
                self._service.barrier.connect(self._remote_view(self._connected))

    def wanted(self) -> bool:
        """Whether this node is part of a mesh: an agent set it up, a token was joined, or the YAML names peers or a
        cluster."""
        settings = self._service.settings
        configured = settings.peers or settings.cluster or self.joined.all()
        return bool(self._service.state.node.set_up or configured)

    def describe(self) -> WireGuard:
        """A summary of the global device, for the tool."""
        interface, device = self.interface(), self.device()
        alive = [age for age in self.ages(device).values() if age < wireguard.DEAD] if device else []
        note = "" if interface else self._without_device()
        return WireGuard(
            interface=interface,
            engine=device.engine if device else None,
            public_key=self._identity.public_key() if self.wanted() else None,
            port=self._service.state.node.wg_port,
            peers=len(self.targets()) if self.wanted() else 0,
            alive=len(alive),
            note=note,
        )

    def _without_device(self) -> str:
        if self._service.settings.underlay == "routed":
            return "no device: traffic between nodes goes by the host's routes, and is not encrypted"
        return "no device" if self.wanted() else "no device: this node has no peers"

    def name(self) -> str:
        """The global device's name, derived from deployment and instance."""
        node = self._service.state.node
        return naming.global_device(node.deployment, node.instance_id)

    def interface(self) -> str | None:
        """The global device's name; None if the device does not exist."""
        name = self.name()
        return name if self._devices.is_there(name) else None

    def device(self, service: str = GLOBAL) -> DeviceSeen | None:
        """The present state of the device; None if it does not exist or cannot be read."""
        return self._devices.read(self.device_name(service))

    def mtu(self) -> int:
        """The MTU of the device and of containers in bytes, as the service manager determines it. While no route leads
        out, as happens briefly when a link goes down and up, the last value stays."""
        fixed = self._service.settings.mtu is not None
        if fixed or not self._mtu or any(self.tunnels.way_to(outside) is not None for outside in OUTSIDE):
            self._mtu = self._service.services.mtu()
        return self._mtu

    def ages(self, device: DeviceSeen) -> dict[str, float]:
        """Seconds since the last handshake of each peer of a device, by the boot clock; infinite for none."""
        return self._devices.ages(device)

    def answering(self, probes: Mapping[str, str]) -> set[str]:
        """The peers of the global device that answer through their tunnels, regardless of the cluster's records.
        `probes`: an address behind each peer, by key. A datagram is sent to the address, and the peer's WireGuard
        answers within ten seconds."""
        device = self.device()
        if device is None:
            return set()
        self._answers.note({key: seen.received for key, seen in device.peers.items()}, boot_clock())
        for key, address in probes.items():
            if key in device.peers:
                self.tunnels.probe(address)
        return {key for key in probes if self._answers.answers(key, boot_clock())}

    def public_key(self) -> str:
        """This node's public key."""
        return self._identity.public_key()

    def rotate(self) -> str:
        """Make a new key for this node and set it on the device; returns the public key. Raises InputOutput."""
        with self._lock:
            public_key = self._identity.rotate()
            self.sync()
        self._service.state.changed()  # the cluster publishes the new key
        return public_key

    def called_at(self, target: Target) -> list[str]:
        """The addresses with ports that a peer's endpoints resolve to."""
        return [address for endpoint in target.endpoints for address in self._planner.addresses(endpoint)]

    def path_mtu(self, endpoint: str) -> int | None:
        """The bytes that the underlay carries to an endpoint, as the kernel knows it; None if there is no route."""
        path = self.tunnels.way_to(address_of(endpoint))
        return path.mtu if path is not None else None

    def targets(self, service: str = GLOBAL) -> dict[str, Target]:
        """The wanted peers of a device, by public key."""
        own = self._identity.public_key() if service == GLOBAL else self._identity.dedicated(service).public_key
        return wireguard.merged(self._sources.of(service, self._fleet), own)

    def cluster_keys(self, service: str = GLOBAL) -> frozenset[str]:
        """The peers that are nodes of the cluster, which publish the members of their isolation networks."""
        peers = self._fleet.peers.get(service, ()) if self._fleet is not None else ()
        return frozenset(target.public_key for target in peers)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            beat(PASS_INTERVAL)
            woken = self._wake.wait(PASS_INTERVAL)
            beat()
            if woken:
                time.sleep(SETTLE)
            self._wake.clear()
            if not self._stop:
                self._reconcile()

    def _reconcile(self) -> None:
        self.sync(thoroughly=True)
        with self._service.board.step("look-incomplete", "sizes", "the containers could not follow the underlay's MTU"):
            self._mtu_follower.follow(self.mtu())  # without the mesh's lock: it takes the locks of attachments

    def _on_link_event(self, kind: int, name: str) -> None:
        """Start a pass if a WireGuard device of this node is gone, or a link of the underlay changed, perhaps its
        MTU."""
        ours = name.startswith(("zl-", "veth"))
        if (is_loss(kind) and name.endswith(("-g", "-d"))) or (kind == RTM_NEWLINK and not ours):
            self._wake.set()

    def _tell(self, event: wire.AnyEvent) -> None:
        self.tell(event)

    # --- making it so ------------------------------------------------------------------------------------------------

    def sync(self, thoroughly: bool = False) -> None:
        """Bring every device into its wanted state; failures are noted as problems. Never raises.

        `thoroughly`: compare with the devices themselves, not with the state last applied.
        """
        with self._lock:
            if self._stop or self._service.ranges.refusal:
                return
            with self._service.board.step("mesh-out-of-order", "", "the mesh could not be brought in order"):
                self._sync(thoroughly)

    def _sync(self, thoroughly: bool) -> None:
        services = self.services()
        routed = self._service.settings.underlay == "routed"
        wanted = {} if routed else {self.device_name(service): service for service in services}
        targets = {service: self.targets(service) for service in services}
        self._sources.note_faults(services)
        all_targets = [target for by_key in targets.values() for target in by_key.values()]
        if thoroughly:
            self._planner.refresh(all_targets)
        self._service.board.set_all("peer-routes-kept-off", wireguard.kept_off(all_targets))
        self._update_fence(wanted, targets)
        self._proxy_neighbours.sync()
        for name in [name for name in self.registry.devices.all() if name not in wanted]:
            self._devices.remove(name)
        sources: dict[int, wireguard.Address] = {a.version: a for a in self._service.state.node_addresses()}
        for name, service in wanted.items():
            beat()
            try:
                device = self._wanted_device(name, service)
                self._devices.ensure(device, targets[service], sources, thoroughly, self._complete())
            except NoEngine as error:
                self._devices.failed(name, f"no WireGuard device {name}: {error}; other nodes cannot be reached")
            except (OSError, CniError) as error:
                self._devices.failed(name, f"the WireGuard device {name} is not as it should be: {error}")
        self._service.board.set_all("path-mtu-doubted", self._planner.doubted())

    def services(self) -> list[str]:
        """The services that need a device: the global one, and those of mode `dedicated` with subnets."""
        if not self.wanted():
            return []
        dedicated = [s.name for s in list(self._service.state.services.values()) if s.mode == "dedicated" and s.subnets]
        return [GLOBAL, *dedicated]

    def device_name(self, service: str) -> str:
        """The name of a service's device, or of the global one."""
        node = self._service.state.node
        if service == GLOBAL:
            return self.name()
        return naming.dedicated_device(node.deployment, node.instance_id, service)

    def _update_fence(self, wanted: Mapping[str, str], targets: Mapping[str, Mapping[str, Target]]) -> None:
        """Give the fence the devices and the CIDRs behind them before a device delivers a packet."""
        self._connected = (tuple(sorted(wanted)), self._planner.behind(targets, tuple(self._service.state.cidrs)))
        self._service.barrier.connect(self._remote_view(self._connected))

    def _remote_view(self, wired: tuple[tuple[str, ...], tuple[str, ...]]) -> RemoteView:
        edges, guests = self.registry.edges.all().values(), self.registry.guests.all().values()
        return remote_view(wired, self._fleet, edges, guests)

    def _complete(self) -> bool:
        """Whether all peers are known. Until the cluster has been read, no peer is removed."""
        return self._sources.complete and (self._service.settings.cluster is None or self._fleet is not None)

    def _wanted_device(self, name: str, service: str) -> Device:
        state, mtu = self._service.state, self.mtu()
        if service == GLOBAL:
            own = self._identity.own()
            addresses = tuple(ipaddress.ip_interface(address) for address in state.node_addresses())
            return Device(name, own.private_key, state.node.wg_port, mtu, addresses)
        # No address: the bridge has the gateway's, and the same address on a second device would divert local traffic.
        own = self._identity.dedicated(service)
        return Device(name, own.private_key, own.port, mtu)
