"""How many of its addresses each service uses, and which services are about to have none left. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cni import addresses, defaults
from cni.daemon.model.records import Service

FEW = 0.8  # the share of the addresses in use from which a service counts as running out


@dataclass(frozen=True, slots=True)
class PoolView:
    """The node's addresses at one moment. `held`: in use; `cooling`: released, in their cooldown, not in use;
    `spare_slots`: by IP version, the subnets that a service could still get on this node."""

    services: tuple[Service, ...]
    held: tuple[addresses.Address, ...]
    cooling: tuple[addresses.Address, ...]
    spare_slots: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Usage:
    """The addresses of one service and IP version, in the subnets that it has now."""

    service: str
    version: int
    used: int
    cooling: int
    capacity: int

    @property
    def free(self) -> int:
        """The addresses that can be given out now."""
        return max(0, self.capacity - self.used - self.cooling)


def usages(view: PoolView) -> list[Usage]:
    """The usage of every service that has subnets, in the order of their creation."""
    subnets = [(service.name, network) for service in view.services for v in (4, 6) for network in service.networks(v)]
    owners: dict[tuple[int, int, int], str] = {
        (net.version, net.prefixlen, int(net.network_address)): name for name, net in subnets
    }
    prefixes = {version: {p for v, p, _ in owners if v == version} for version in (4, 6)}
    used = _count(view.held, owners, prefixes)
    cooling = _count(view.cooling, owners, prefixes)
    capacity: Counter[tuple[str, int]] = Counter()
    for name, network in subnets:
        capacity[name, network.version] += _usable(network.version, network.prefixlen)
    return [
        Usage(name, version, used[name, version], cooling[name, version], size)
        for (name, version), size in capacity.items()
    ]


def _count(
    found: Iterable[addresses.Address],
    owners: Mapping[tuple[int, int, int], str],
    prefixes: Mapping[int, Collection[int]],
) -> Counter[tuple[str, int]]:
    """How many of the addresses are in the subnets of each service and IP version."""
    counts: Counter[tuple[str, int]] = Counter()
    for address in found:
        for prefix in prefixes[address.version]:
            bits = address.max_prefixlen - prefix
            owner = owners.get((address.version, prefix, int(address) >> bits << bits))
            if owner is not None:
                counts[owner, address.version] += 1
    return counts


def _usable(version: int, prefix: int) -> int:
    """The addresses of a subnet that containers may have: not the network's, the gateway's and, for IPv4, the broadcast
    address (`ipam.usable`)."""
    size: int = 1 << ((32 if version == 4 else 128) - prefix)
    return max(0, size - (3 if version == 4 else 2))


def running_out(found: Iterable[Usage], spare_slots: Mapping[int, int]) -> dict[str, str]:
    """A text for each service that has used FEW of what it could have on this node: its subnets, and all that are
    free. By service and IP version."""
    texts = {}
    for each in found:
        spare = spare_slots.get(each.version, 0)
        whole = each.capacity + spare * _usable(each.version, defaults.SLOT_PREFIX[each.version])
        taken = each.used + each.cooling
        if whole and taken >= FEW * whole:
            cooling = f", {each.cooling} of them cooling down" if each.cooling else ""
            texts[f"{each.service} {each.version}"] = (
                f"service {each.service} has taken {taken} of {whole} IPv{each.version} addresses{cooling}"
                f" ({taken / whole:.0%}), and this node can get {spare or 'no'} further subnet{'s' * (spare != 1)}"
            )
    return texts
