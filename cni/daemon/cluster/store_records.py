"""The records of the cluster's store as values: their keys, their contents and their limits.

Below `<prefix>/<deployment>/`:

    id/<number>        the identity that has this node id
    slot/<cidr>        the identity that has this slot of the overlay's range, and its use
    key/<hex>          the identity that has this WireGuard key
    node/<identity>    the node's document, under the node's lease

Every key and value is untrusted input from another machine. The parsers raise ValueError for a record that is not in
its one canonical form: if two keys could mean the same slot, id or WireGuard key, the second record would override the
first.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from cni.daemon.model import keys
from cni.daemon.model.cluster_records import SERVICE, NodeDocument, SignedSlot, every_cidr, every_key, hexadecimal
from cni.daemon.model.endpoints import address_of, split_endpoint
from cni.daemon.model.json_depth import check_depth
from cni.daemon.model.subnets import SLICE_PREFIX
from cni.overlay.address import canonical_ip, join_host_port
from cni.overlay.address import network as network_of

T = TypeVar("T")

LONGEST_KEY = 512  # bytes of a key below the base; the longest that this program writes has 64 + 5
LARGEST = {"node": 256 << 10, "slot": 1024, "id": 64, "key": 64}  # bytes of a value, by kind
MOST = {  # in one node document
    "hosts": 32,
    "endpoints": 32,
    "slices": 8,
    "subnets": 1024,
    "dedicated services": 256,
    "networks": 512,
    "members": 4096,
    "ranges": 8,
    "addresses outside": 8,
    "services": 512,
    "service addresses": 4096,
}
LONGEST_NAME = 253  # characters of a service's, a network's or a host's name


_NUMBER = re.compile(r"[1-9][0-9]{0,19}")
_IDENTITY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,63}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,32}")


@dataclass(frozen=True)
class StoreKeys:
    """The keys of the records in etcd, below `base`."""

    base: str

    def id(self, number: int) -> str:
        return f"{self.base}id/{number}"

    def slot(self, cidr: str) -> str:
        return f"{self.base}slot/{cidr.replace('/', '_')}"

    def key(self, public_key: str) -> str:
        return self.named_key(hexadecimal(public_key))

    def named_key(self, name: str) -> str:
        """The key of the claim of a WireGuard key, given in hexadecimal digits."""
        return f"{self.base}key/{name}"

    def node(self, identity: str) -> str:
        return f"{self.base}node/{identity}"


@functools.lru_cache(1 << 16)
def is_slot(cidr: str, ranges: tuple[str, ...] = ()) -> bool:
    """Whether the CIDR is exactly a slot: it has a slot's size, and is inside one of the ranges if any are given."""
    network = ipaddress.ip_network(cidr)
    if network.prefixlen != SLICE_PREFIX[network.version]:
        return False
    outer = [ipaddress.ip_network(cidr) for cidr in ranges]
    return not outer or any(network.version == range_.version and network.subnet_of(range_) for range_ in outer)  # type: ignore[arg-type]


def read_id(name: str, value: bytes) -> tuple[int, str]:
    """The record `id/<name>`: (node id, identity). Raises ValueError."""
    if not _NUMBER.fullmatch(name):
        raise ValueError("the key is no decimal number")
    return int(name), read_identity(value)


def read_holder(name: str, value: bytes) -> tuple[str, str]:
    """The record `key/<name>`: (hexadecimal key, identity). Raises ValueError."""
    if not _HEX.fullmatch(name):
        raise ValueError("the key is not in lower-case hexadecimal digits")
    return name, read_identity(value)


def read_slot(name: str, value: bytes) -> tuple[str, SignedSlot]:
    """The record `slot/<name>`: (CIDR, slot). Raises ValueError."""
    network = network_of(name.replace("_", "/"), strict=True)
    cidr = str(network)
    if cidr.replace("/", "_") != name:
        raise ValueError(f"the key is not in the form {cidr.replace('/', '_')}")
    if not is_slot(cidr):
        raise ValueError(f"a slot is a /{SLICE_PREFIX[network.version]}, not a /{network.prefixlen}")
    slot = decoded("slot", value, SignedSlot)
    check_identity(slot.owner)
    check_name("use", slot.use, LONGEST_NAME + len(SERVICE))
    return cidr, slot


def read_node(name: str, value: bytes) -> NodeDocument:
    """The record `node/<name>`. Raises ValueError."""
    doc = decoded("node", value, NodeDocument)
    check_identity(doc.identity)
    if doc.identity != name:
        raise ValueError(f"it says it is {doc.identity}")
    check_node(doc)
    return doc


def decoded(kind: str, value: bytes, shape: type[T]) -> T:
    """The decoded JSON of a record. Raises ValueError if it is too large, nested too deep, or not of that shape."""
    check_size(kind, value)
    check_depth(value)
    try:
        return msgspec.json.decode(value, type=shape)
    except RecursionError:
        raise ValueError("nested too deep") from None


def check_size(kind: str, value: bytes) -> None:
    """Raises ValueError if the value is larger than the limit of its kind."""
    if len(value) > LARGEST[kind]:
        raise ValueError(f"{len(value)} bytes, of a {kind} at most {LARGEST[kind]} are read")


def read_identity(value: bytes) -> str:
    """The identity that is the value of a claim. Raises ValueError."""
    if len(value) > LARGEST["id"] or not value.isascii():
        raise ValueError("the value is no identity")
    return check_identity(value.decode("ascii"))


def check_identity(text: str) -> str:
    """Returns `text` if it is a valid identity. Raises ValueError."""
    if not _IDENTITY.fullmatch(text):
        raise ValueError("the value is no identity: letters, digits, `.`, `_` and `-` are wanted, at most 64")
    return text


def check_name(what: str, text: str, longest: int = LONGEST_NAME) -> None:
    """Raises ValueError for a name that is too long or contains unprintable characters."""
    if len(text) > longest:
        raise ValueError(f"{what}: {len(text)} characters, at most {longest}")
    if not text.isprintable():
        raise ValueError(f"{what}: {text!a} holds characters that cannot be printed")


def check_node(doc: NodeDocument) -> None:
    """Check every field of a document. Raises ValueError, which names the field."""
    for what, count in (
        ("hosts", len(doc.hosts)),
        ("endpoints", len(doc.endpoints)),
        ("slices", len(doc.slices)),
        ("subnets", len(doc.subnets) + sum(len(device.subnets) for device in doc.dedicated.values())),
        ("dedicated services", len(doc.dedicated)),
        ("networks", len(doc.members)),
        ("members", sum(map(len, doc.members.values()))),
        ("ranges", len(doc.ranges)),
        ("addresses outside", len(doc.nat.outside) if doc.nat is not None else 0),
        ("services", len(doc.services)),
        ("service addresses", sum(map(len, doc.services.values()))),
    ):
        if count > MOST[what]:
            raise ValueError(f"{count} {what}, at most {MOST[what]} are read")
    if not 0 <= doc.node_id < 1 << 64:
        raise ValueError(f"node_id: {doc.node_id} is not between 0 and {(1 << 64) - 1}")
    if not 0 <= doc.sequence < 1 << 63:
        raise ValueError(f"sequence: {doc.sequence} is not between 0 and {(1 << 63) - 1}")
    for what, text in (
        ("name", doc.name),
        ("place", doc.place),
        ("version", doc.version),
        ("signer", doc.signer),
        ("nat.mapping", doc.nat.mapping if doc.nat else ""),
    ):
        check_name(what, text)
    for what, names in (("a service", (*doc.dedicated, *doc.services)), ("a network", doc.members)):
        for name in names:
            check_name(f"the name of {what}", name)
    _check_devices(doc)
    for cidr in (*every_cidr(doc), *doc.ranges):
        network_of(cidr, strict=True)
    for host in doc.hosts:
        _check_host(host)
    for endpoint in doc.endpoints:
        _check_endpoint(endpoint)
    for endpoint in doc.nat.outside if doc.nat is not None else ():
        _check_endpoint(endpoint)
        address_of(endpoint)  # a name would have to be looked up for every probe
    if doc.nat is not None and doc.nat.relay:
        ipaddress.IPv4Address(doc.nat.relay)
    _check_members(doc.members.values())
    _check_services(doc.services.values())


def publishable(doc: NodeDocument) -> tuple[NodeDocument, tuple[str, ...]]:
    """The document within the limits of `check_node`, and the parts left out: what exceeds a limit, and names that are
    too long or unprintable."""
    left: list[str] = []
    members: dict[str, tuple[str, ...]] = {}
    room = MOST["members"]
    for network, addresses in doc.members.items():
        if not _is_name(network) or len(members) >= MOST["networks"] or len(addresses) > room:
            left.append(f"the members of the network {network[:40]!a}")
            continue
        members[network] = addresses
        room -= len(addresses)
    dedicated = {name: device for name, device in doc.dedicated.items() if _is_name(name)}
    left += [f"the service {name[:40]!a}" for name in doc.dedicated.keys() - dedicated.keys()]
    room = max(0, MOST["subnets"] - sum(len(device.subnets) for device in dedicated.values()))
    left += [f"the subnet {cidr}" for cidr in doc.subnets[room:]]
    services, room_of_services = {}, MOST["service addresses"]
    for name, addresses in doc.services.items():
        if not _is_name(name) or len(addresses) > room_of_services:
            left.append(f"the containers of the service {name[:40]!a}")
            continue
        services[name] = addresses
        room_of_services -= len(addresses)
    hosts = doc.hosts[: MOST["hosts"]]
    endpoints = doc.endpoints[: MOST["endpoints"]]
    left += [f"the endpoint {endpoint[:40]!a}" for endpoint in doc.endpoints[len(endpoints) :]]
    left += [f"the host {host[:40]!a}" for host in doc.hosts[len(hosts) :]]
    if not left:
        return doc, ()
    short = msgspec.structs.replace(
        doc,
        members=members,
        dedicated=dedicated,
        subnets=doc.subnets[:room],
        hosts=hosts,
        endpoints=endpoints,
        services=services,
    )
    return short, tuple(left)


def _is_name(text: str) -> bool:
    try:
        check_name("", text)
    except ValueError:
        return False
    return True


def _check_devices(doc: NodeDocument) -> None:
    for port in (doc.port, *(device.port for device in doc.dedicated.values())):
        if not 0 < port < 65536:
            raise ValueError(f"port: {port} is not between 1 and 65535")
    public = every_key(doc)
    for key in public:
        if keys.canonical(key) != key:
            raise ValueError(f"public_key: {key!a} is not in the form {keys.canonical(key)}")
    if len(set(public)) != len(public):
        raise ValueError("public_key: two devices have one key")


def _check_host(host: str) -> None:
    """Raises ValueError unless the host is an address in canonical form or a name that a resolver accepts."""
    if ":" in host:
        canonical_ip(host)
    try:
        split_endpoint(f"[{host}]:1" if ":" in host else f"{host}:1")
    except ValueError:
        raise ValueError(f"hosts: {host[:LONGEST_NAME]!a} is neither an address nor a name") from None


def _check_endpoint(endpoint: str) -> None:
    """Raises ValueError unless the endpoint is the canonical text of an address or a name, with a port."""
    try:
        host, port = split_endpoint(endpoint)
        if not port or join_host_port(canonical_ip(host) if ":" in host else host, port) != endpoint:
            raise ValueError
    except ValueError:
        raise ValueError(f"endpoints: {endpoint[:LONGEST_NAME]!a} is not host:port in canonical form") from None


def _check_services(services: Iterable[Collection[str]]) -> None:
    """Raises ValueError unless the addresses are in canonical form."""
    for address in (address for addresses in services for address in addresses):
        if canonical_ip(address) != address:
            raise ValueError(f"services: {address!a} is not in the form {canonical_ip(address)}")


def _check_members(networks: Iterable[Collection[str]]) -> None:
    """Raises ValueError unless the addresses are in canonical form and each is in one network only: the fence has one
    verdict for an address."""
    seen: set[str] = set()
    for addresses in networks:
        for address in addresses:
            if canonical_ip(address) != address:
                raise ValueError(f"members: {address!a} is not in the form {canonical_ip(address)}")
            if address in seen:
                raise ValueError(f"members: {address} is in two networks, or twice in one")
            seen.add(address)
