"""A node that runs ZLayer's own `zlayer-overlayd`, unmodified, and is driven by our client.

It is a node of a fleet like any other, in a mount namespace of its own besides: its engine keeps its socket below
/var/run/wireguard and removes those of others there when it starts (contract 6.2).
"""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from cni.daemon.model.subnets import SubnetRegistry
from cni.overlay.manager import OverlayManager, PeerInfo
from cni.overlay.nat import NatSettings
from cni.overlay.state import Timeouts

from .fleet import PORT, SLOW, Container, Fleet, Node, wait_for

CACHE = Path(os.environ.get("ZLAYER_CACHE", Path.home() / ".cache" / "zlayer-cni"))
PROGRAM = CACHE / "overlayd" / "bin" / "zlayer-overlayd"
CLUSTER = "10.200.0.0/16"
SCRATCH = 'mount -t tmpfs tmpfs /run && mkdir -p /run/wireguard && exec "$@"'


class UpstreamNode(Node):
    """ZLayer's daemon on a node of the fleet. `manager` is our client for it."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        super().__init__(fleet, number, slice_cidr=f"10.200.{number}.0/28")
        self.manager = self.client(str(self.settings["slice_cidr"]))

    def start(self, without: str = "") -> float:
        """Start it, bring its global overlay up."""
        socket = Path(self.socket)
        socket.unlink(missing_ok=True)
        command = [str(PROGRAM), "--data-dir", str(self.directory / "data"), "--socket", self.socket]
        # Without the variable a data directory of one's own cannot bring the global overlay up (contract 6.2).
        environment = {**os.environ, "ZLAYER_DATA_DIR": str(self.directory / "data"), "NO_COLOR": "1"}
        (self.directory / "data").mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.name, "unshare", "-m", "--propagation", "private"),
                    *("sh", "-c", SCRATCH, "sh", *command),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        daemon = self.daemon
        wait_for(lambda: self.serves() or daemon.poll() is not None, "ZLayer's daemon", 40)
        assert daemon.poll() is None, self.log.read_text()
        self.manager.setup_global_overlay()
        return 0.0

    def end(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL unless told otherwise: SIGTERM does not always end it."""
        super().end(number)

    def container(self, service: str = "web", named: bool = False, **conf: Any) -> Container:
        """A container, attached by our client; `mode` and `isolationNetwork` as in a conflist."""
        self._count += 1
        before = Path("/proc/self/ns/net").stat().st_ino
        process = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
        made = Container(self, f"u{self.number}-{service}-{self._count}", process, service)
        self.containers.append(made)
        wait_for(lambda: Path(made.netns).stat().st_ino != before, "a namespace")
        mode, network = str(conf.get("mode", "auto")), conf.get("isolationNetwork")
        self.manager.setup_service_overlay(service, mode)  # type: ignore[arg-type]
        made.address = self.manager.attach_container(
            process.pid, service, isolation_network=None if network is None else str(network)
        )
        return made

    def subnet(self, service: str) -> str:
        """The subnet that it gives a service, by the rule (contract 6.4): it does not publish the subnet."""
        slot = ipaddress.ip_network(f"{self.settings['slice_cidr']}").supernet(new_prefix=26)
        network, _ = SubnetRegistry.over(CLUSTER).reserve_all([slot]).assign(service, str(self.number))
        return str(network)

    def client(self, slice_cidr: str | None) -> OverlayManager:
        """Our client; NAT traversal is off, for there is no STUN server to be reached."""
        deployment, instance = str(self.settings["deployment"]), str(self.settings["instance_id"])
        made = OverlayManager.with_slice(deployment, CLUSTER, slice_cidr, PORT, instance)
        made.with_local_node_id(self.number).with_nat_config(NatSettings(enabled=False))
        return made.with_socket(self.socket).with_timeouts(Timeouts(call=10 * SLOW))

    def key(self) -> str:
        return str(self.manager.status().public_key)


def upstream_node(fleet: Fleet, number: int) -> UpstreamNode:
    """Such a node, on the fleet's underlay, started."""
    node = UpstreamNode(fleet, number)
    fleet.wire(node)
    node.start()
    return node


def peer_of(node: Node, *cidrs: str, key: str = "", port: int = PORT) -> PeerInfo:
    """A node, as a peer."""
    found = key or (node.key() if isinstance(node, UpstreamNode) else str(node.status().public_key))
    return PeerInfo(found, f"{node.underlay}:{port}", ",".join(cidrs), 5.0)


def manager_of(node: Node) -> OverlayManager:
    """Our client for one of our daemons."""
    settings = node.settings
    made = OverlayManager.with_slice(
        settings["deployment"], CLUSTER, settings["slice_cidr"], PORT, settings["instance_id"]
    )
    return made.with_local_node_id(node.number).with_socket(node.socket)


__all__ = ["PROGRAM", "UpstreamNode", "manager_of", "peer_of", "upstream_node"]
