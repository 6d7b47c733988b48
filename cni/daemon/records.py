"""What the daemon knows: plain values, each saved as one JSON document (`cni/daemon/store.py`)."""

from __future__ import annotations

import ipaddress
from typing import Literal

import msgspec

AttachmentKey = tuple[str, str, str]
"""(network, container id, interface name): what CNI calls an attachment."""


class Held(msgspec.Struct, frozen=True):
    """One address of an attachment, with its prefix (`10.200.1.2/26`), and the gateway of its subnet."""

    address: str
    gateway: str

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]


class StaticRoute(msgspec.Struct, frozen=True):
    """A route we put into the container; `via` empty means the gateway of the route's family."""

    dst: str
    via: str


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of one container. `intent` = being made or unmade; `live` = answered for."""

    network: str
    container: str
    ifname: str
    state: Literal["intent", "live"]
    service: str
    mode: str
    isolation: str | None
    bridge: str
    host_veth: str
    host_mac: str
    mac: str
    addresses: tuple[Held, ...]
    routes: tuple[StaticRoute, ...] = ()
    mtu: int
    netns: tuple[int, int]
    sandbox: str
    attempt: str = ""
    created: float = 0.0
    ephemeral: bool = False
    pid: int = 0
    start_time: int = 0
    pod: str = ""

    @property
    def key(self) -> AttachmentKey:
        return (self.network, self.container, self.ifname)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service's segment on this node: its bridge and the slots it holds, the first slot of each family first.

    `shared` services use the node's one shared bridge: that has a record under its reserved key, and so do they,
    without subnets.
    """

    name: str
    mode: str
    bridge: str
    subnets: tuple[str, ...] = ()

    def networks(self, version: int) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The subnets of one family, in the order they were taken."""
        found = [ipaddress.ip_network(subnet) for subnet in self.subnets]
        return [network for network in found if network.version == version]


class Lease(msgspec.Struct, frozen=True):
    """An address handed out by allocate_ip: nobody's interface, returned only by release_ip."""

    address: str
    service: str


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent told this daemon about itself (contract 6.2), on top of the YAML."""

    deployment: str
    instance_id: str
    node_id: int
    cluster_cidr: str
    cluster_cidr6: str | None
    slice_cidr: str | None
    wg_port: int
    wg_public_key: str | None = None
    set_up: bool = False


def encode_key(key: AttachmentKey) -> str:
    """The key as one string: the parts cannot hold a slash (CNI's own rules), so none is ambiguous."""
    return "/".join(key)
