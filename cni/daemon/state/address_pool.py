"""The node's book of addresses: which are held and how often, and since when others rest. In memory; the caller saves.

The choices themselves are `ipam.py`'s.
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

KIND = "released"  # the records of addresses that rest: since when, on the boot clock
MANY = 4096  # resting addresses beyond which the long rested ones are forgotten
LONG = 300.0  # seconds


def boot_clock() -> float:
    """Seconds since boot, suspended time included: comparable between the daemons of one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NeedsSlot(AddressUnavailable):
    """Internal to the daemon: the subnets the service has are full; `version` is the family."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the service's IPv{version} subnets are full")
        self.version = version


class AddressPool:
    """Who holds what, as counts: the same address may be in an attachment's old and new record for a moment."""

    def __init__(self, cooldown: float) -> None:
        self.cooldown = cooldown
        self.held: dict[Address, int] = {}
        self.released: dict[Address, float] = {}
        self._last: dict[Address, str] = {}

    def rest(self, now: float | None = None) -> ipam.Cooldown:
        """What is resting, as of now."""
        return ipam.Cooldown(self.released, boot_clock() if now is None else now, self.cooldown)

    def hold(self, texts: Iterable[str]) -> None:
        """These addresses have one more holder."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            self.held[ip] = self.held.get(ip, 0) + 1

    def let_go(self, texts: Iterable[str]) -> None:
        """These addresses have one holder less."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            self.held[ip] = self.held.get(ip, 0) - 1
            if self.held[ip] <= 0:
                del self.held[ip]

    def locked(self, texts: Collection[str], now: float) -> list[Change]:
        """The records that say these addresses rest from now on. Call `cool` once they are written."""
        changes: list[Change] = [(KIND, text, str(now).encode()) for text in texts]
        if len(self.released) >= MANY:
            old = [a for a, since in self.released.items() if now - since > max(self.cooldown, LONG)]
            changes += [(KIND, str(address), None) for address in old]
            for address in old:
                del self.released[address]
                self._last.pop(address, None)
        return changes

    def cool(self, texts: Iterable[str], now: float, owner: str = "") -> None:
        """These addresses rest from now on. `owner` may have them back at once, if it asks for them by name."""
        for text in texts:
            address = ipaddress.ip_address(text)
            self.released[address] = now
            self._last[address] = owner

    def own(self, ips: Iterable[str], owner: str, asked: Iterable[Address]) -> list[Address]:
        """What is `owner`'s own: the addresses `ips` that it holds, and those it asks for that it had last."""
        rested = [a for a in asked if owner and self._last.get(a) == owner and a not in self.held]
        return [*map(ipaddress.ip_address, ips), *rested]

    def pick(
        self, version: int, subnets: list[Network], asked: Address | None = None, own: Collection[Address] = ()
    ) -> AssignedAddress:
        """An address of `subnets`: the one `asked` for, else one of `own` (what the asker holds), else a free one.

        Raises AddressUnavailable, TryAgainLater, NeedsSlot.
        """
        rest = self.rest()
        if asked is not None:
            if asked in own:
                rest = ipam.Cooldown({}, rest.now, rest.cooldown)
            held: Mapping[Address, int] = {a: n for a, n in self.held.items() if a == asked and a not in own}
            subnet = ipam.claim(subnets, asked, held, rest)
            return _held(asked, subnet)
        for subnet in subnets:
            address = next((a for a in own if ipam.usable(subnet, a)), None) or ipam.choose(subnet, self.held, rest)
            if address is not None:
                return _held(address, subnet)
        raise NeedsSlot(version)

    def cooling(self, subnets: list[Network]) -> int:
        """How many addresses of `subnets` are cooling down."""
        rest = self.rest()
        return sum(1 for a in self.released if rest.cooling(a) and any(a in s for s in subnets))

    def has_free(self, subnets: list[Network]) -> bool:
        """Whether one of `subnets` has an address that could be given out now."""
        rest = self.rest()
        return any(ipam.choose(subnet, self.held, rest) is not None for subnet in subnets)

    def any_in(self, network: Network) -> bool:
        """Whether anybody holds an address of `network`."""
        return any(address.version == network.version and address in network for address in self.held)


def _held(address: Address, subnet: Network) -> AssignedAddress:
    return AssignedAddress(f"{address}/{subnet.prefixlen}", str(ipam.gateway_of(subnet)))
