"""The mesh as seen from this node: its WireGuard devices, their peers, the routes to what is behind them.

Peers come from the YAML, from the cluster and from agents; the deciders in `wireguard.py` say what each device should
have, and this makes it so. `sync` is the walk that a start, a change, a restart and the look every ten seconds share:
what is right is not touched. Nothing here ever keeps the node from serving its own containers: what cannot be done is
told by `problems`, and tried again.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cni import naming
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.departed_nodes import DepartedNode
from cni.daemon.cluster.etcd_answers import Answers
from cni.daemon.cluster.store_records import GLOBAL
from cni.daemon.cluster.view import Fleet
from cni.daemon.fence.controller import RemoteView
from cni.daemon.mesh.devices import Devices
from cni.daemon.mesh.joined_peers import JoinedPeers
from cni.daemon.mesh.paths import PathPlanner, address_of
from cni.daemon.mesh.sources import PeerSources, ProxyNeighbours, beyond
from cni.daemon.model import wireguard
from cni.daemon.model.wireguard import Target
from cni.daemon.reconcile.mtu import MtuFollower
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import boot_clock
from cni.daemon.state.tables import Tables
from cni.errors import CniError
from cni.host.kernel import OUTSIDE
from cni.host.monitor import Monitor, is_loss
from cni.host.netlink import RTM_NEWLINK
from cni.host.tunnels import Device, Tunnels
from cni.host.wg_types import DeviceSeen, NoEngine
from cni.host.worker import beat
from cni.overlay import wire

log = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between two looks
SETTLE = 0.05  # seconds between hearing of a loss and looking

Network = wireguard.Network


class Cluster(Protocol):
    """What the tool asks the cluster, where there is one (cluster.py)."""

    def departed(self) -> list[DepartedNode]: ...
    def forget(self, word: str) -> DepartedNode: ...


class Mesh:
    """The devices of one node. Safe from any thread."""

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
        self._wired: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._stand_in = ProxyNeighbours(service, registry, tunnels)
        self._sources = PeerSources(service.settings, registry, joined, lambda: service.state.cidrs, service.board)
        self._sizes = MtuFollower(service)
        self.tell: Callable[[wire.AnyEvent], None] = lambda event: None  # agents; called with our lock: it never waits
        self._mtu = 0  # what was last known of it
        self.cluster: Cluster | None = None
        self._wake = threading.Event()
        self._stop = False
        self._ways = PathPlanner(
            tunnels,
            self._wake.set,
            lambda: service.state.cidrs,
            service.ranges.inside,
            crew=service.crew,
            told=functools.partial(service.board.set_all, "name-not-found"),
        )
        self._answers = Answers()
        self._devices = Devices(registry, tunnels, self._ways, self._tell, service.board)
        self._monitor: Monitor | None = None
        self._worker = service.crew.worker("mesh", self._run)

    # --- from outside ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Tell the fence the devices and what is behind them, before its first load.

        An earlier daemon's tables have these elements. A load without them takes them out, and the tunnels carry
        nothing until the devices were compared (25 to 58 ms were measured).
        """
        with self._lock:
            services = self.services()
            wanted = {self.device_name(service): service for service in services}
            self._connect(wanted, {service: self.targets(service) for service in services})

    def start(self) -> None:
        """Make everything so, and look after it from now on."""
        self._devices.start()
        self._look()
        self._monitor = Monitor(self._heard, crew=self._service.crew, name="monitor-mesh")
        self._worker.start()

    def stop(self) -> None:
        """Look no more. Devices, engines and traffic go on."""
        self._worker.retire()
        self._stop = True
        self._wake.set()
        self._ways.stop()
        if self._monitor is not None:
            self._monitor.close()
        self._worker.join(INTERVAL)
        self.tunnels.close()

    def tear_down(self) -> None:
        """No device of ours any more: only `uninstall` asks for it."""
        with self._lock:
            self._stop = True
            self._service.barrier.connect(RemoteView())
            for name in self.registry.devices.all():
                self._devices.remove(name)

    def withdraw(self) -> None:
        """No device that an earlier daemon left: this node is not in service."""
        with self._lock:
            for name in self.registry.devices.all():
                self._devices.remove(name)

    def set_fleet(self, fleet: Fleet) -> None:
        """The cluster says this of the other nodes from now on. Members alone are the fence's affair, and cost little:
        they change with every attach on any node."""
        with self._lock:
            before, self._fleet = self._fleet, fleet
            if before is None or before.peers != fleet.peers or not self._wired:
                self.sync()
            elif before.members != fleet.members:
                self._service.barrier.connect(self._beyond(self._wired))

    def wanted(self) -> bool:
        """Whether this node is part of a mesh: an agent set it up, or the YAML names peers or a cluster."""
        settings = self._service.settings
        configured = settings.peers or settings.cluster or self.joined.all()
        return bool(self._service.state.node.set_up or configured)

    def describe(self) -> dict[str, Any]:
        """The global device at a glance, for the tool."""
        interface, device = self.interface(), self.device()
        alive = [age for age in self.ages(device).values() if age < wireguard.DEAD] if device else []
        note = "" if interface else self._without_device()
        return {
            "interface": interface,
            "engine": device.engine if device else None,
            "public_key": self._identity.public_key() if self.wanted() else None,
            "port": self._service.state.node.wg_port,
            "peers": len(self.targets()) if self.wanted() else 0,
            "alive": len(alive),
            "note": note,
        }

    def _without_device(self) -> str:
        if self._service.settings.underlay == "routed":
            return "no device: traffic between nodes goes by the host's routes, and is not encrypted"
        return "no device" if self.wanted() else "no device: this node has no peers"

    def name(self) -> str:
        """The global device's name, by the rule."""
        node = self._service.state.node
        return naming.global_device(node.deployment, node.instance_id)

    def interface(self) -> str | None:
        """The global device, if it is there."""
        name = self.name()
        return name if self._devices.is_there(name) else None

    def device(self, service: str = GLOBAL) -> DeviceSeen | None:
        """The device as it is now; None if there is none."""
        return self._devices.read(self.device_name(service))

    def mtu(self) -> int:
        """The MTU of the device and of containers: as `services` says, and while no route leads out, which passes when
        a link comes and goes, as it was. Bytes."""
        fixed = self._service.settings.mtu is not None
        if fixed or not self._mtu or any(self.tunnels.way_to(outside) is not None for outside in OUTSIDE):
            self._mtu = self._service.services.mtu()
        return self._mtu

    def ages(self, device: DeviceSeen) -> dict[str, float]:
        """How many seconds ago each peer of a device was heard of, by the boot clock; infinite for never."""
        return self._devices.ages(device)

    def answering(self, probes: Mapping[str, str]) -> set[str]:
        """Which peers of the global device answer by their tunnels, whatever the cluster says of them. `probes`: by
        key, an address behind each: a datagram goes there, which the peer's WireGuard answers within ten seconds."""
        device = self.device()
        if device is None:
            return set()
        self._answers.note({key: seen.received for key, seen in device.peers.items()}, boot_clock())
        for key, address in probes.items():
            if key in device.peers:
                self.tunnels.probe(address)
        return {key for key in probes if self._answers.answers(key, boot_clock())}

    def public_key(self) -> str:
        """This node's key."""
        return self._identity.public_key()

    def rotate(self) -> str:
        """A new key for this node, on its device at once; returns the public one. Raises InputOutput."""
        with self._lock:
            fresh = self._identity.rotate()
            self.sync()
        self._service.state.changed()  # a cluster must hear of it
        return fresh

    def called_at(self, target: Target) -> list[str]:
        """The addresses and ports at which a peer says it can be called."""
        return [found for endpoint in target.endpoints for found in self._ways.addresses(endpoint)]

    def path_mtu(self, endpoint: str) -> int | None:
        """The bytes that the underlay carries to an endpoint, as far as the kernel knows."""
        way = self.tunnels.way_to(address_of(endpoint))
        return way.mtu if way is not None else None

    def targets(self, service: str = GLOBAL) -> dict[str, Target]:
        """The peers of a device as they should be, by key."""
        own = self._identity.public_key() if service == GLOBAL else self._identity.dedicated(service).public_key
        return wireguard.merged(self._sources.of(service, self._fleet), own)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            beat(INTERVAL)
            heard = self._wake.wait(INTERVAL)
            beat()
            if heard:
                time.sleep(SETTLE)
            self._wake.clear()
            if not self._stop:
                self._look()

    def _look(self) -> None:
        self.sync(thoroughly=True)
        with self._service.board.step("look-incomplete", "sizes", "the containers could not follow the underlay's MTU"):
            self._sizes.follow(self.mtu())  # not with our lock: it takes those of attachments

    def _heard(self, kind: int, name: str) -> None:
        """Wake up if a device of ours has gone, and if something is new about the underlay: its MTU may be."""
        ours = name.startswith(("zl-", "veth"))
        if (is_loss(kind) and name.endswith(("-g", "-d"))) or (kind == RTM_NEWLINK and not ours):
            self._wake.set()

    def _tell(self, event: wire.AnyEvent) -> None:
        self.tell(event)

    # --- making it so ------------------------------------------------------------------------------------------------

    def sync(self, thoroughly: bool = False) -> None:
        """Every device is as it should be, or `problems` says why not. Never raises.

        `thoroughly`: compare with the devices themselves, not with what they were last given.
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
        if thoroughly:
            self._ways.refresh(target for book in targets.values() for target in book.values())
        every = [target for book in targets.values() for target in book.values()]
        self._service.board.set_all("peer-routes-kept-off", wireguard.kept_off(every))
        self._connect(wanted, targets)
        self._stand_in.sync()
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
        self._service.board.set_all("path-mtu-doubted", self._ways.doubted())

    def services(self) -> list[str]:
        """Which devices there should be: the global one, and those of dedicated services."""
        if not self.wanted():
            return []
        own = [s.name for s in list(self._service.state.services.values()) if s.mode == "dedicated" and s.subnets]
        return [GLOBAL, *own]

    def device_name(self, service: str) -> str:
        """The name of a device, by the rule."""
        node = self._service.state.node
        if service == GLOBAL:
            return self.name()
        return naming.dedicated_device(node.deployment, node.instance_id, service)

    def _connect(self, wanted: Mapping[str, str], targets: Mapping[str, Mapping[str, Target]]) -> None:
        """The fence knows devices and what is behind them before a packet comes out of one."""
        self._wired = (tuple(sorted(wanted)), self._ways.behind(targets, tuple(self._service.state.cidrs)))
        self._service.barrier.connect(self._beyond(self._wired))

    def _beyond(self, wired: tuple[tuple[str, ...], tuple[str, ...]]) -> RemoteView:
        edges, guests = self.registry.edges.all().values(), self.registry.guests.all().values()
        return beyond(wired, self._fleet, edges, guests)

    def _complete(self) -> bool:
        """Whether everybody is known who should be a peer: before the cluster was heard, nobody is taken away."""
        return self._sources.complete and (self._service.settings.cluster is None or self._fleet is not None)

    def _wanted_device(self, name: str, service: str) -> Device:
        state, mtu = self._service.state, self.mtu()
        if service == GLOBAL:
            own = self._identity.own()
            addresses = tuple(ipaddress.ip_interface(address) for address in state.node_addresses())
            return Device(name, own.private_key, state.node.wg_port, mtu, addresses)
        # No address: the bridge has the gateway's, and a second device with it would draw local traffic away from it.
        own = self._identity.dedicated(service)
        return Device(name, own.private_key, own.port, mtu)
