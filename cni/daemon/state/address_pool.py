"""The node's addresses: which are held and how often, and since when others are in cooldown. In memory; the caller
saves.

`ipam.py` makes the choices.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection, Iterable, Mapping

from cni.daemon.model import ipam
from cni.daemon.model.records import AssignedAddress
from cni.daemon.state.store import Change
from cni.errors import AddressUnavailable

Address = ipam.Address
Network = ipam.Network

KIND = "released"  # the kind of the records of addresses in cooldown: since when, in seconds of the boot clock
MANY = 4096  # released addresses beyond which those released longer than `LONG` ago are forgotten
LONG = 300.0  # seconds


def boot_clock() -> float:
    """Seconds since boot, suspended time included: comparable between the daemons of one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NeedsSlot(AddressUnavailable):
    """Internal to the daemon: the service's subnets of IP version `version` are full."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the service's IPv{version} subnets are full")
        self.version = version


class AddressPool:
    """The held addresses with the number of their holders, and the released ones. An address may have two holders for
    a moment: an attachment's old and new record."""

    def __init__(self, cooldown: float) -> None:
        self.cooldown = cooldown
        self.held: dict[Address, int] = {}
        self.released: dict[Address, float] = {}

    def rest(self, now: float | None = None) -> ipam.Cooldown:
        """The cooldown as of `now` (seconds of the boot clock; None for the present)."""
        return ipam.Cooldown(self.released, boot_clock() if now is None else now, self.cooldown)

    def hold(self, texts: Iterable[str]) -> None:
        """Count one more holder for each of these addresses."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            self.held[ip] = self.held.get(ip, 0) + 1

    def release_hold(self, texts: Iterable[str]) -> None:
        """Count one holder less for each of these addresses."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            self.held[ip] = self.held.get(ip, 0) - 1
            if self.held[ip] <= 0:
                del self.held[ip]

    def locked(self, texts: Collection[str], now: float) -> list[Change]:
        """The records for the cooldown of these addresses, which starts at `now` (seconds of the boot clock). Call
        `cool` once the records are written."""
        changes: list[Change] = [(KIND, text, str(now).encode()) for text in texts]
        if len(self.released) >= MANY:
            old = [a for a, since in self.released.items() if now - since > max(self.cooldown, LONG)]
            changes += [(KIND, str(address), None) for address in old]
            for address in old:
                del self.released[address]
        return changes

    def cool(self, texts: Iterable[str], now: float) -> None:
        """Start the cooldown of these addresses."""
        for text in texts:
            self.released[ipaddress.ip_address(text)] = now

    def in_cooldown(self, texts: Iterable[str]) -> list[str]:
        """Those of these addresses that are in cooldown, held again or not."""
        rest = self.rest()
        return [text for text in texts if rest.cooling(ipaddress.ip_address(text))]

    def left_behind(self) -> list[str]:
        """The released addresses without a holder."""
        return [str(address) for address in self.released if address not in self.held]

    def pick(
        self, version: int, subnets: list[Network], asked: Address | None = None, own: Collection[Address] = ()
    ) -> AssignedAddress:
        """An address of `subnets`: `asked` if given, else one of `own` (the requester's), else a free one.

        Raises AddressUnavailable, NeedsSlot.
        """
        rest = self.rest()
        if asked is not None:
            users: Mapping[Address, int] = {a: n for a, n in self.held.items() if a == asked and a not in own}
            subnet = ipam.claim(subnets, asked, users)
            return _held(asked, subnet)
        for subnet in subnets:
            address = next((a for a in own if ipam.usable(subnet, a)), None) or ipam.choose(subnet, self.held, rest)
            if address is not None:
                return _held(address, subnet)
        raise NeedsSlot(version)

    def cooling(self, subnets: list[Network]) -> int:
        """How many addresses of `subnets` are in cooldown, held again or not."""
        rest = self.rest()
        return sum(1 for a in self.released if rest.cooling(a) and any(a in s for s in subnets))

    def has_free(self, subnets: list[Network]) -> bool:
        """Whether one of `subnets` has an address that can be given out now."""
        rest = self.rest()
        return any(ipam.choose(subnet, self.held, rest) is not None for subnet in subnets)

    def any_in(self, network: Network) -> bool:
        """Whether an address of `network` is held."""
        return any(address.version == network.version and address in network for address in self.held)


def _held(address: Address, subnet: Network) -> AssignedAddress:
    return AssignedAddress(f"{address}/{subnet.prefixlen}", str(ipam.gateway_of(subnet)))
