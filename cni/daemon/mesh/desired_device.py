"""The desired state of a WireGuard device, and the size of the path to a peer: decisions without I/O."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cni.daemon.mesh.measured import MeasuredPath
from cni.daemon.model.fleet import GLOBAL
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.host.tunnel_routes import UnderlayRoute
from cni.host.tunnels import Device


@dataclass(frozen=True, slots=True)
class DeviceSize:
    """The MTU of a device in bytes, and whether an engine's datagrams may be fragmented."""

    mtu: int
    fragments: bool


def desired_device(name: str, service: str, size: DeviceSize, identity: Identity, state: State) -> Device:
    """The device of a service, or the global one."""
    if service == GLOBAL:
        own = identity.own()
        addresses = tuple(ipaddress.ip_interface(address) for address in state.node_addresses())
        return Device(name, own.private_key, state.node.wg_port, size.mtu, addresses, size.fragments)
    # No address: the bridge has the gateway's, and the same address on a second device would divert local traffic.
    own = identity.dedicated(service)
    return Device(name, own.private_key, own.port, size.mtu, fragments=size.fragments)


def carried(measured: MeasuredPath | None, way: UnderlayRoute, overhead: int, widest: int) -> tuple[int, bool]:
    """The bytes that a path of the underlay carries, and whether that was measured. `overhead`: WireGuard's, in bytes;
    `widest`: the largest MTU that the path may have (`PathPlanner.widest`)."""
    if measured is None:
        return way.mtu, False
    return (measured.size + overhead if measured.is_narrow else widest), True
