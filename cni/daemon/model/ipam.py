"""Chooses the address of an attachment from the held addresses and those in cooldown. Pure.

A released address is not chosen during its cooldown, and the address that was released longest ago is chosen first.
Stale neighbour entries and tracked connections therefore do not reach a new owner. An address that is requested by name
has no cooldown: the caller deletes what the last owner left.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from cni import addresses
from cni.errors import AddressUnavailable

Network = addresses.Network
Address = addresses.Address


@dataclass(frozen=True)
class Cooldown:
    """When addresses were released and the present time, in seconds on the boot clock, and the cooldown in seconds."""

    released: Mapping[Address, float]
    now: float
    cooldown: float

    def cooling(self, address: Address) -> bool:
        since = self.released.get(address)
        return since is not None and self.now - since < self.cooldown


def gateway_of(subnet: Network) -> Address:
    """The gateway of a service subnet: its first host (contract 6.4)."""
    return subnet.network_address + 1


def usable(subnet: Network, address: Address) -> bool:
    """Whether a container may have `address`: it is inside the subnet, and not its network, gateway or IPv4 broadcast
    address."""
    if address.version != subnet.version or address not in subnet:
        return False
    last = subnet.version == 4 and address == subnet.broadcast_address
    return not last and address not in (subnet.network_address, gateway_of(subnet))


def capacity(subnet: Network) -> int:
    """How many addresses of `subnet` containers may have."""
    return subnet.num_addresses - (3 if subnet.version == 4 else 2)


def choose(subnet: Network, in_use: Container[Address], rest: Cooldown) -> Address | None:
    """A free address of `subnet`: the lowest that was never used, else the one released longest ago; None if none."""
    top = subnet.num_addresses - (1 if subnet.version == 4 else 0)
    rested: list[tuple[float, Address]] = []
    for offset in range(2, top):
        address = subnet.network_address + offset
        if address in in_use:
            continue
        since = rest.released.get(address)
        if since is None:
            return address
        if rest.now - since >= rest.cooldown:
            rested.append((since, address))
    return min(rested)[1] if rested else None


def claim(subnets: list[Network], requested: Address, in_use: Container[Address]) -> Network:
    """The subnet in which the address `requested` is free, in cooldown or not.

    Raises AddressUnavailable if it is held or no container may have it.
    """
    for subnet in subnets:
        if not usable(subnet, requested):
            continue
        if requested in in_use:
            raise AddressUnavailable(f"the requested address {requested} is in use")
        return subnet
    where = ", ".join(map(str, subnets)) or "no subnet of that family"
    raise AddressUnavailable(f"the requested address {requested} is not to be had: the service has {where}")
