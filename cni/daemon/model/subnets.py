"""Chooses the subnet of a service on a node by the slot rule of ZLayer's daemons (contract 6.4).

The cluster's range is divided into slots of one size (/26, or /120 for IPv6). A service's key, (service, node
id), hashes to a slot; if that slot is taken or reserved, the next free one after it is used, wrapping at the
end. Two daemons that assign the same services in the same order therefore choose the same subnets without
communication.

A service whose subnet is full gets a further slot, under a key that no ZLayer daemon uses: (service,
"<node>#<n>"), n from 1. A node id is a number, so a key with "#" equals no other node's key.

Everything here is a value: each change returns a new `SubnetRegistry`. Slots are kept as numbers, never as a list
of all of them, so that an IPv6 range with 2^64 slots costs the same as an IPv4 /16 with 1024.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cni import addresses, defaults
from cni.errors import InvalidConfig, PoolExhausted
from cni.naming import fnv1a64

Network = addresses.Network
Address = addresses.Address
Key = tuple[str, str]
"""(service, node id in decimal digits, followed by `#n` for a further slot)."""

SLICE_PREFIX = defaults.SLOT_PREFIX
_MOST_SLOTS = (1 << 64) - 1
"""The largest slot count in ZLayer, which stores it in 64 bits; the hash is taken modulo the count."""


def fits(cluster: str) -> bool:
    """Whether the range `cluster` is larger than one of ZLayer's slots. Raises ValueError if it is no CIDR."""
    network = ipaddress.ip_network(cluster, strict=False)
    return network.prefixlen < SLICE_PREFIX[network.version]


def further(node: str, n: int) -> str:
    """The node half of the key of a service's `n`th further slot; `n` = 0 is the service's first subnet."""
    return f"{node}#{n}" if n else node


@dataclass(frozen=True, slots=True)
class SubnetRegistry:
    """The slots of one cluster range, their holders, and the reserved slots. Built by `SubnetRegistry.over`."""

    cluster: Network
    slice_prefix: int
    held: Mapping[Key, int] = field(default_factory=lambda: MappingProxyType({}))
    """Slot numbers by key, in the order they were assigned."""
    reserved: tuple[tuple[int, int], ...] = ()
    """Ranges of slot numbers, both ends included, sorted, that neither overlap nor touch."""

    @staticmethod
    def over(cluster: str, slice_prefix: int | None = None) -> SubnetRegistry:
        """An empty registry over `cluster` (host bits are ignored), by default with ZLayer's slot size.

        Raises InvalidConfig if `cluster` is no CIDR, or not larger than one slot.
        """
        try:
            network = ipaddress.ip_network(cluster, strict=False)
        except ValueError as e:
            raise InvalidConfig(f"failed to build ServiceSubnetRegistry: Invalid CIDR notation: {e}") from e
        prefix = SLICE_PREFIX[network.version] if slice_prefix is None else slice_prefix
        if not network.prefixlen < prefix <= network.max_prefixlen:
            raise InvalidConfig(
                "failed to build ServiceSubnetRegistry: Invalid CIDR notation: "
                f"slice prefix /{prefix} must be more specific than cluster prefix /{network.prefixlen}",
                f"the overlay's range {network} has no room for services, which get a /{prefix} of it each",
            )
        return SubnetRegistry(network, prefix)

    @property
    def slots(self) -> int:
        """The number of slots of the range, taken or not, at most 2^64 - 1."""
        return min(1 << (self.slice_prefix - self.cluster.prefixlen), _MOST_SLOTS)

    @property
    def free(self) -> int:
        """The number of slots that are neither held nor reserved."""
        reserved = sum(last - first + 1 for first, last in self.reserved)
        return max(0, self.slots - reserved - sum(1 for slot in self.held.values() if not self._reserved_from(slot)))

    def get(self, service: str, node: str) -> Network | None:
        """The first subnet that `service` holds on `node`; None if it holds none."""
        slot = self.held.get((service, node))
        return None if slot is None else self._network(slot)

    def subnets(self, service: str, node: str) -> tuple[Network, ...]:
        """All subnets `service` holds on `node`: the first, then the further ones in order."""
        mine = [(_number(k, node), slot) for k, slot in self.held.items() if _belongs(k, service, node)]
        return tuple(self._network(slot) for _, slot in sorted(mine))

    def assign(self, service: str, node: str) -> tuple[Network, SubnetRegistry]:
        """The subnet of (service, node), and the registry that contains it. Idempotent.

        Raises PoolExhausted, with ZLayer's text, when every slot is taken or reserved.
        """
        if (slot := self.held.get((service, node))) is not None:
            return self._network(slot), self
        start = fnv1a64(_bytes(service) + b"\x1f" + _bytes(node)) % self.slots
        if (slot := self._first_free(start)) is None:
            raise PoolExhausted(
                f"overlay engine error: ServiceSubnetRegistry::assign({service}, {node}) failed: "
                "No available IP addresses in CIDR range",
                f"{self.slots} subnets of /{self.slice_prefix} in {self.cluster}, none free",
            )
        return self._network(slot), self._with((service, node), slot)

    def assign_further(self, service: str, node: str, n: int) -> tuple[Network, SubnetRegistry]:
        """The `n`th further subnet (from 1) of a service whose first is full. Raises PoolExhausted."""
        return self.assign(service, further(node, n))

    def hold(self, service: str, node: str, subnet: Network) -> SubnetRegistry:
        """The registry in which (service, node) holds the given subnet: a saved one, or another node's claim.

        Raises InvalidConfig if `subnet` is not one of the slots, or another key holds it.
        """
        slot = self._slot(int(subnet.network_address)) if subnet.version == self.cluster.version else -1
        if subnet.prefixlen != self.slice_prefix or not 0 <= slot < self.slots:
            raise InvalidConfig(f"{subnet} is not one of the /{self.slice_prefix} subnets of {self.cluster}")
        owner = next((key for key, other in self.held.items() if other == slot), (service, node))
        if owner != (service, node):
            raise InvalidConfig(f"{subnet} is already held by service {owner[0]} on node {owner[1]}")
        return self._with((service, node), slot)

    def release(self, service: str, node: str) -> SubnetRegistry:
        """The registry without that key; the slot is free at once. Releasing twice changes nothing."""
        if (service, node) not in self.held:
            return self
        return self._holding({key: slot for key, slot in self.held.items() if key != (service, node)})

    def reserve(self, what: Address | Network | str) -> SubnetRegistry:
        """The registry that assigns no slot which overlaps this address or CIDR.

        A present holder of such a slot keeps it. An address outside the cluster's range, or of the other family,
        changes nothing. Idempotent.
        """
        network = ipaddress.ip_network(str(what), strict=False)
        if network.version != self.cluster.version or not network.overlaps(self.cluster):
            return self
        first = max(self._slot(int(network.network_address)), 0)
        last = min(self._slot(int(network.broadcast_address)), self.slots - 1)
        # Addresses beyond the last of 2^64 - 1 slots are in no slot.
        return replace(self, reserved=_merged([*self.reserved, (first, last)])) if first <= last else self

    def reserve_all(self, what: Iterable[Network]) -> SubnetRegistry:
        """`reserve` for many networks, at the cost of one."""
        spans = list(self.reserved)
        for network in what:
            if network.version == self.cluster.version and network.overlaps(self.cluster):
                first = max(self._slot(int(network.network_address)), 0)
                last = min(self._slot(int(network.broadcast_address)), self.slots - 1)
                if first <= last:
                    spans.append((first, last))
        return replace(self, reserved=_merged(spans))

    def _first_free(self, start: int) -> int | None:
        """The first slot from `start` on, wrapping, that is neither held nor reserved; None if there is none."""
        taken = frozenset(self.held.values())
        slot, left = start, self.slots
        while left > 0:
            step = 1 if slot in taken else self._reserved_from(slot)
            if step == 0:
                return slot
            left -= step
            slot = (slot + step) % self.slots
        return None

    def _reserved_from(self, slot: int) -> int:
        """The number of consecutive reserved slots from `slot` on; 0 if `slot` is not reserved."""
        at = bisect_right(self.reserved, slot, key=lambda span: span[0]) - 1
        return max(0, self.reserved[at][1] - slot + 1) if at >= 0 else 0

    def _slot(self, address: int) -> int:
        shift = self.cluster.max_prefixlen - self.slice_prefix
        return (address - int(self.cluster.network_address)) >> shift

    def _network(self, slot: int) -> Network:
        shift = self.cluster.max_prefixlen - self.slice_prefix
        start = int(self.cluster.network_address) + (slot << shift)
        return type(self.cluster)((start, self.slice_prefix))

    def _with(self, key: Key, slot: int) -> SubnetRegistry:
        return self._holding({**self.held, key: slot})

    def _holding(self, slots: dict[Key, int]) -> SubnetRegistry:
        return replace(self, held=MappingProxyType(slots))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _belongs(key: Key, service: str, node: str) -> bool:
    return key[0] == service and (key[1] == node or key[1].startswith(f"{node}#"))


def _number(key: Key, node: str) -> int:
    return int(key[1].removeprefix(node).removeprefix("#") or 0)


def _merged(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same slot numbers as sorted ranges that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
