"""The daemon's records: plain values, each saved as one JSON document (`cni/daemon/state/store.py`)."""

from __future__ import annotations

import functools
import ipaddress
from typing import Literal, TypedDict

import msgspec

from cni import defaults
from cni.openings import NOTHING, ListedOpenings

AttachmentKey = tuple[str, str, str]
"""(network, container id, interface name): identifies an attachment, as in the CNI specification."""


class AssignedAddress(msgspec.Struct, frozen=True):
    """One address of an attachment, with its prefix (`10.200.1.2/26`), and the gateway of its subnet."""

    address: str
    gateway: str

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]

    def alone(self) -> AssignedAddress:
        """The address without its subnet, as an interface has it that is on no bridge: /32, or /128."""
        return AssignedAddress(f"{self.ip}/{128 if ':' in self.ip else 32}", self.gateway)


class StaticRoute(msgspec.Struct, frozen=True):
    """A route in the container; an empty `via` means the gateway of the route's family."""

    dst: str
    via: str


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of one container. `state`: `intent` while it is set up or removed, `live` once the ADD was
    answered."""

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
    sourced: tuple[int, ...] = ()
    """The IP versions whose default route is another interface's: rules in the container let packets from this
    interface's addresses leave by it."""
    mtu_chosen: bool = False  # the configuration sets the MTU: it does not follow the underlay
    netns: tuple[int, int]
    sandbox: str
    attempt: str = ""
    created: float = 0.0  # Unix seconds, for display
    made_at: float = 0.0  # seconds on the boot clock, for comparison
    ephemeral: bool = False
    pid: int = 0
    start_time: int = 0
    pod: str = ""
    pod_uid: str = ""  # of the Pod object, where the runtime names it
    aliases: tuple[str, ...] = ()  # further names, as the runtime gave them
    labels: tuple[tuple[str, str], ...] = ()  # of `args.cni.labels`, for network policies
    asked: bool = False  # the ADD asked for the address by name, so another may have it at once afterwards
    attach: str = defaults.BRIDGE  # one of ATTACH_KINDS; records of versions without a routed attach are of a bridge
    opens: ListedOpenings = NOTHING  # what the network list opens while the attachment exists

    @property
    def key(self) -> AttachmentKey:
        return (self.network, self.container, self.ifname)

    @property
    def ips(self) -> tuple[str, ...]:
        """The addresses without their prefixes."""
        return tuple(assigned.ip for assigned in self.addresses)

    @property
    def is_routed(self) -> bool:
        """Whether the port is on no bridge; `bridge` then only names the segment."""
        return self.attach == defaults.ROUTED


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service's segment on this node: its bridge and the slots it holds, the first slot of each family first.

    `shared` services use the node's one shared bridge. The bridge has a record under its reserved key, and each such
    service has a record without subnets. `passing`: an ADD created it, not an agent, so it may be released when it is
    empty. `attach`: one of ATTACH_KINDS; a routed segment has no bridge, and `bridge` is its name alone.
    """

    name: str
    mode: str
    bridge: str
    subnets: tuple[str, ...] = ()
    passing: bool = False
    attach: str = defaults.BRIDGE

    @property
    def is_routed(self) -> bool:
        """Whether the segment has no bridge."""
        return self.attach == defaults.ROUTED

    def networks(self, version: int) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The subnets of one family, in the order in which they were taken."""
        networks = [_network(subnet) for subnet in self.subnets]
        return [network for network in networks if network.version == version]


@functools.lru_cache(4096)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A subnet; every attach and detach of a service asks for all of its subnets."""
    return ipaddress.ip_network(text)


class Lease(msgspec.Struct, frozen=True):
    """An address that belongs to no attachment: given out by allocate_ip (no owner; only release_ip returns it), or
    held for a guest, an edge peer or a process of the host. `service`: its segment, empty for the node's slice."""

    address: str
    service: str
    owner: str = ""


class NodeChanges(TypedDict, total=False):
    """The fields of a `Node` to change."""

    deployment: str
    instance_id: str
    node_id: int
    cluster_cidr: str
    cluster_cidr6: str | None
    slice_cidr: str | None
    slice_cidr6: str | None
    wg_port: int
    wg_public_key: str | None
    set_up: bool


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The node's settings as agents have set them (contract 6.2), on top of the YAML."""

    deployment: str
    instance_id: str
    node_id: int
    cluster_cidr: str
    cluster_cidr6: str | None
    slice_cidr: str | None
    wg_port: int
    wg_public_key: str | None = None
    set_up: bool = False
    slice_cidr6: str | None = None  # the slice of the other family; only a cluster sets it

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges, the first family first."""
        return (self.cluster_cidr, self.cluster_cidr6) if self.cluster_cidr6 else (self.cluster_cidr,)

    def address(self, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The node's own address of a family: the first of its slice, else of the cluster's range (contract 6.2)."""
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
    """The key as one string. It is unambiguous: by CNI's rules no part contains a slash."""
    return "/".join(key)
