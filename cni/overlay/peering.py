"""How much of a peer ZLayer's overlayd can hold, and the ledger of the peers that a program has added.

ZLayer's daemon stops answering on every connection, for good, once a key that a device already has is set again, and it
takes one CIDR per peer (contract 5.3/22 and 23). So in front of it a peer is replaced by removing and adding it,
its CIDRs are folded into one where that is exact, and a peer that this program did not add is not changed at all.
Values and a dictionary; the requests are in `peers.py`.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cni import defaults
from cni.overlay import wire
from cni.overlay.address import Network, network
from cni.overlay.errors import CodecError

Key = tuple[str | None, str]
"""(service, or None for the global device; public key)."""


@dataclass(frozen=True)
class PeerInfo:
    """A WireGuard peer, as the manager's methods take it."""

    public_key: str
    """Base64."""
    endpoint: str
    """`host:port`, an IPv6 host in brackets. ZLayer's daemon accepts literal addresses only."""
    allowed_ips: str
    """CIDRs joined by commas."""
    keepalive: float = float(defaults.KEEPALIVE)
    """Seconds between keepalives, sent as whole seconds; 0 for none. ZLayer's device accepts up to 65535."""

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The CIDRs one by one, as written, each once."""
        return tuple(dict.fromkeys(c for part in self.allowed_ips.split(",") if (c := part.strip())))


@dataclass(frozen=True)
class AddedPeer:
    """A peer as the daemon has it."""

    peer: PeerInfo
    cidrs: tuple[str, ...]

    def request(self, service: str | None, candidates: Sequence[wire.Candidate] = ()) -> wire.AddPeer:
        """The request that gives a device this peer with `cidrs`, joined by commas. Raises CodecError."""
        if not 0 <= self.peer.keepalive < 1 << 64:
            raise CodecError(f"peer {self.peer.public_key}: a keepalive of {self.peer.keepalive} seconds")
        return wire.AddPeer(
            self.peer.public_key,
            self.peer.endpoint,
            ",".join(self.cidrs),
            int(self.peer.keepalive),
            tuple(candidates),
            scope_of(service),
        )


@dataclass
class Ledger:
    """The peers that this program has added. One thread at a time."""

    added: dict[Key, AddedPeer] = field(default_factory=dict)

    def with_cidr(self, key: Key, cidr: str) -> AddedPeer | None:
        """The peer with one CIDR more, or None for a peer that this program did not add."""
        peer = self.added.get(key)
        return peer and replace(peer, cidrs=tuple(dict.fromkeys((*peer.cidrs, cidr))))

    def without_cidr(self, key: Key, cidr: str) -> AddedPeer | None:
        """The peer without that CIDR, or None for a peer that this program did not add."""
        peer = self.added.get(key)
        return peer and replace(peer, cidrs=tuple(c for c in peer.cidrs if c != cidr))


def scope_of(service: str | None) -> wire.AnyScope:
    """The scope of a service's own device, or the global one for None."""
    return wire.GlobalScope() if service is None else wire.ServiceScope(service)


def aggregate(cidrs: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(the one CIDR that covers most of `cidrs` and nothing else, those that it does not cover).

    A single CIDR is passed on as it is written, for the daemon to check. Of several that do not fold into one,
    the widest of the first one's family is chosen, and of equally wide ones the first. The first part is "" if
    no CIDR can be used.
    """
    if len(cidrs) <= 1:
        return "".join(cidrs), ()
    parsed = {text: network for text in cidrs if (network := _network(text)) is not None}
    if not parsed:
        return "", tuple(cidrs)
    family = next(iter(parsed.values())).version
    # collapse_addresses requires one family. The type checker cannot see that it gets one.
    same = [network for network in parsed.values() if network.version == family]
    folded: list[Network] = list(ipaddress.collapse_addresses(same))  # type: ignore[type-var]
    listed = [next(one for one in folded if _within(network, one)) for network in same]
    widest = max(listed, key=lambda network: network.num_addresses)
    covered = {text for text, network in parsed.items() if _within(network, widest)}
    return str(widest), tuple(text for text in cidrs if text not in covered)


def _network(text: str) -> Network | None:
    """The CIDR, or None for what ZLayer's device refuses: a bare address, a netmask."""
    try:
        return network(text)
    except ValueError:
        return None


def _within(inner: Network, outer: Network) -> bool:
    first, last = int(inner.network_address), int(inner.broadcast_address)
    return inner.version == outer.version and (
        int(outer.network_address) <= first and last <= int(outer.broadcast_address)
    )
