"""What the daemon knows: plain values, each saved as one JSON document (`cni/daemon/state/store.py`)."""

from __future__ import annotations

import ipaddress
from typing import Literal

import msgspec

from cni import defaults

AttachmentKey = tuple[str, str, str]
"""(network, container id, interface name): what CNI calls an attachment."""


class AssignedAddress(msgspec.Struct, frozen=True):
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
    bridge_mac: str = ""
    host_veth: str
    host_mac: str
    mac: str
    addresses: tuple[AssignedAddress, ...]
    routes: tuple[StaticRoute, ...] = ()
    mtu: int
    mtu_chosen: bool = False  # by the configuration: it does not follow the underlay
    netns: tuple[int, int]
    sandbox: str
    attempt: str = ""
    created: float = 0.0  # Unix seconds, for people
    made_at: float = 0.0  # seconds on the boot clock, for comparing
    ephemeral: bool = False
    pid: int = 0
    start_time: int = 0
    pod: str = ""

    @property
    def key(self) -> AttachmentKey:
        return (self.network, self.container, self.ifname)

    @property
    def ips(self) -> tuple[str, ...]:
        """The addresses without their prefixes."""
        return tuple(held.ip for held in self.addresses)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service's segment on this node: its bridge and the slots it holds, the first slot of each family first.

    `shared` services use the node's one shared bridge: that has a record under its reserved key, and so do they,
    without subnets. `passing`: it was made by an ADD, not set up by an agent, so it may be given back when it is empty.
    """

    name: str
    mode: str
    bridge: str
    subnets: tuple[str, ...] = ()
    passing: bool = False

    def networks(self, version: int) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The subnets of one family, in the order they were taken."""
        found = [ipaddress.ip_network(subnet) for subnet in self.subnets]
        return [network for network in found if network.version == version]


class Lease(msgspec.Struct, frozen=True):
    """An address that is no attachment's: handed out by allocate_ip (no owner; only release_ip returns it), or held for
    a guest, an edge peer or a process of the host. `service` is the segment it is of, empty for the node's slice."""

    address: str
    service: str
    owner: str = ""


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
    slice_cidr6: str | None = None  # of the other family; only a cluster gives one

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges, the first family first."""
        return (self.cluster_cidr, self.cluster_cidr6) if self.cluster_cidr6 else (self.cluster_cidr,)

    def address(self, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The node's own address of a family: the first of its slice, else of the cluster (contract 6.2)."""
        ranges = [ipaddress.ip_network(c) for c in (self.slice_cidr, self.slice_cidr6, *self.cidrs) if c]
        return next(n.network_address + 1 for n in ranges if n.version == version)

    def home(self, version: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """Where the node's own address and those of guests, edge peers and host processes come from; no service gets
        any of it. The slice; without one, or with one that is the whole cluster, the slot that the node's address is
        in, or all of a cluster that is smaller (ZLayer's daemon hands out service addresses there: contract 5.3/26)."""
        for own in (ipaddress.ip_network(cidr) for cidr in (self.slice_cidr, self.slice_cidr6) if cidr):
            if own.version == version and str(own) not in self.cidrs:
                return own
        cluster = next(n for n in map(ipaddress.ip_network, self.cidrs) if n.version == version)
        prefix = max(defaults.SLOT_PREFIX[version], cluster.prefixlen)
        return ipaddress.ip_network(f"{self.address(version)}/{prefix}", strict=False)


def encode_key(key: AttachmentKey) -> str:
    """The key as one string: the parts cannot hold a slash (CNI's own rules), so none is ambiguous."""
    return "/".join(key)
