"""The node's addresses: which are held and how often, and since when others are in cooldown. In memory; the caller
saves.

`ipam.py` makes the choices.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
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
BLOCK = {4: 6, 6: 8}  # bits of a block, by IP version: as many as those of a service's slot (contract 6.4)


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
        self._last_macs: dict[Address, str] = {}  # with which MAC the last holder had the address, "" if unknown
        self._forgot = False  # some addresses were released, and their MACs are not known any more
        self._in_block: Counter[tuple[int, int]] = Counter()  # held addresses by block, so that no call counts them

    def rest(self, now: float | None = None) -> ipam.Cooldown:
        """The cooldown as of `now` (seconds of the boot clock; None for the present)."""
        return ipam.Cooldown(self.released, boot_clock() if now is None else now, self.cooldown)

    def hold(self, texts: Iterable[str]) -> None:
        """Count one more holder for each of these addresses."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            if ip not in self.held:
                self._in_block[_block(ip)] += 1
            self.held[ip] = self.held.get(ip, 0) + 1

    def release_hold(self, texts: Iterable[str]) -> None:
        """Count one holder less for each of these addresses."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            self.held[ip] = self.held.get(ip, 0) - 1
            if self.held[ip] <= 0 and self.held.pop(ip) == 0:
                self._in_block[_block(ip)] -= 1

    def locked(self, texts: Collection[str], now: float) -> list[Change]:
        """The records for the cooldown of these addresses, which starts at `now` (seconds of the boot clock). Call
        `cool` once the records are written."""
        changes: list[Change] = [(KIND, text, str(now).encode()) for text in texts]
        if len(self.released) >= MANY:
            old = [a for a, since in self.released.items() if now - since > max(self.cooldown, LONG)]
            changes += [(KIND, str(address), None) for address in old]
            for address in old:
                del self.released[address]
                self._last_macs.pop(address, None)
                self._forgot = True
        return changes

    def cool(self, texts: Iterable[str], now: float, mac: str = "") -> None:
        """Start the cooldown of these addresses. `mac`: their last holder's, "" if that is not known."""
        for text in texts:
            ip = ipaddress.ip_address(text)
            self.released[ip], self._last_macs[ip] = now, mac

    def had_other_mac(self, texts: Iterable[str], mac: str) -> bool:
        """Whether a former holder may have had one of these addresses with another MAC than `mac`."""
        fresh = "" if self._forgot else mac
        return any(self._last_macs.get(ipaddress.ip_address(text), fresh) != mac for text in texts)

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
            address = next((a for a in own if ipam.usable(subnet, a)), None) or self._choose(subnet, rest)
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
        return any(self._choose(subnet, rest) is not None for subnet in subnets)

    def _choose(self, subnet: Network, rest: ipam.Cooldown) -> Address | None:
        """A free address of `subnet`; a slot of which every address is held is not searched."""
        is_slot = subnet.prefixlen == subnet.max_prefixlen - BLOCK[subnet.version]
        if is_slot and self._in_block[_block(subnet.network_address)] >= ipam.capacity(subnet):
            return None
        return ipam.choose(subnet, self.held, rest)

    def any_in(self, network: Network) -> bool:
        """Whether an address of `network` is held."""
        exact = network.max_prefixlen - BLOCK[network.version]
        (version, first), last = _block(network.network_address), _block(network.broadcast_address)[1]
        if network.prefixlen == exact:
            return self._in_block[version, first] > 0
        busy = any(
            count and version == network.version and first <= block <= last
            for (version, block), count in self._in_block.items()
        )
        return busy and (network.prefixlen < exact or any(address in network for address in self.held))


def _block(address: Address) -> tuple[int, int]:
    """The block of an address: its version, and its number without the last bits."""
    return address.version, int(address) >> BLOCK[address.version]


def _held(address: Address, subnet: Network) -> AssignedAddress:
    return AssignedAddress(f"{address}/{subnet.prefixlen}", str(ipam.gateway_of(subnet)))
