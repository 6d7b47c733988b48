"""The peers of each WireGuard device as values, and the changes that one request makes to them.

The rules are those of a WireGuard device: a CIDR belongs to one peer of a device. Giving it to another peer takes it
from the first, and removing the other peer does not return it. Adding a peer that exists replaces it (contract 8).
The keys of the book are `key_of(scope, public key)`; a change maps such keys to peers, with None for a removed peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cni.daemon.model import keys
from cni.daemon.model.endpoints import split_endpoint
from cni.errors import InvalidConfig
from cni.overlay.address import network as network_of
from cni.overlay.address import split_socket_address
from cni.overlay.nested import Candidate
from cni.overlay.requests import AddPeer

CANDIDATE_TYPES = ("host", "server-reflexive", "relay")
LONGEST_KEEPALIVE = 65535  # seconds: the kernel stores 16 bits


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of one device. `service` None: the global device. `owner`: the guest or edge peer, if it is one."""

    service: str | None = None
    public_key: str
    endpoint: str
    allowed_ips: tuple[str, ...]
    keepalive: int = 0
    candidates: tuple[Candidate, ...] = ()
    owner: str = ""
    name: str = ""


Book = Mapping[str, Peer]
Changes = dict[str, Peer | None]


def key_of(service: str | None, public_key: str) -> str:
    """The key of a peer in the book."""
    return public_key if service is None else f"{public_key} {service}"


def of_request(ask: AddPeer, service: str | None) -> Peer:
    """A peer as an agent describes it, in canonical form; unreadable candidates are dropped (contract 6.11).

    Raises InvalidConfig, with the contract's text where the contract has one.
    """
    try:
        split_endpoint(ask.endpoint)
    except ValueError as error:
        raise InvalidConfig(f"invalid peer endpoint {ask.endpoint}: {error}") from error
    if ask.persistent_keepalive_secs > LONGEST_KEEPALIVE:
        raise InvalidConfig(
            f"invalid persistent keepalive {ask.persistent_keepalive_secs}: at most {LONGEST_KEEPALIVE} seconds"
        )
    return Peer(
        service=service,
        public_key=public(ask.public_key),
        endpoint=ask.endpoint,
        allowed_ips=cidr_list(ask.allowed_ips),
        keepalive=ask.persistent_keepalive_secs,
        candidates=tuple(candidate for candidate in ask.candidates if _usable(candidate)),
    )


def _usable(candidate: Candidate) -> bool:
    try:
        split_socket_address(candidate.address)
    except ValueError:
        return False
    return candidate.candidate_type in CANDIDATE_TYPES


def public(key: str) -> str:
    """A public key in its canonical spelling. Raises InvalidConfig."""
    try:
        return keys.canonical(key)
    except ValueError as error:
        raise InvalidConfig(f"invalid public key {key}: {error}") from error


def cidr(text: str) -> str:
    """A CIDR in canonical form; host bits are cleared, as a device clears them. Raises InvalidConfig."""
    try:
        return str(network_of(text.strip()))
    except ValueError as error:
        raise InvalidConfig(f"invalid CIDR {text}: {error}") from error


def cidr_list(text: str) -> tuple[str, ...]:
    """The CIDRs of a comma list, each once, blanks skipped. Raises InvalidConfig."""
    return tuple(dict.fromkeys(cidr(part) for part in text.split(",") if part.strip()))


def put(book: Book, peer: Peer) -> Changes:
    """Put `peer` on its device, in place of an earlier peer with its key, and take its CIDRs from other peers."""
    return {**_taken_from_others(book, peer, peer.allowed_ips), key_of(peer.service, peer.public_key): peer}


def allow(book: Book, service: str | None, public_key: str, added: str) -> Changes:
    """Add the CIDR `added` to the peer. Raises InvalidConfig for an invalid CIDR and for an unknown peer."""
    network, peer = cidr(added), book.get(key_of(service, public(public_key)))
    if peer is None:
        raise InvalidConfig(f"overlay engine error: cannot add allowed_ip {added} to unknown peer {public_key}")
    if network in peer.allowed_ips:
        return {}
    return put(book, msgspec.structs.replace(peer, allowed_ips=(*peer.allowed_ips, network)))


def disallow(book: Book, service: str | None, public_key: str, unwanted: str) -> Changes:
    """Remove the CIDR `unwanted` from the peer, if the peer exists. Raises InvalidConfig for an invalid CIDR."""
    network = cidr(unwanted)
    key = key_of(service, public(public_key))
    peer = book.get(key)
    if peer is None or network not in peer.allowed_ips:
        return {}
    kept = tuple(cidr for cidr in peer.allowed_ips if cidr != network)
    return {key: msgspec.structs.replace(peer, allowed_ips=kept)}


def of_device(book: Book, service: str | None) -> list[Peer]:
    """The peers of one device."""
    return [peer for peer in book.values() if peer.service == service]


def _taken_from_others(book: Book, peer: Peer, cidrs: Iterable[str]) -> Changes:
    taken = set(cidrs)
    changes: Changes = {}
    for key, other in book.items():
        if other.service == peer.service and other.public_key != peer.public_key and taken & set(other.allowed_ips):
            kept = tuple(allowed for allowed in other.allowed_ips if allowed not in taken)
            changes[key] = msgspec.structs.replace(other, allowed_ips=kept)
    return changes
