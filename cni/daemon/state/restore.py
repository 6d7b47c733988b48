"""What an earlier daemon of this boot wrote down, read back as values.

A record that cannot be read, or says what cannot be, is set aside under another kind and reported: somebody's hand in
the file must not keep the daemon from starting.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from cni.daemon.model.records import Attachment, Lease, Node, Service, encode_key
from cni.daemon.state.address_pool import KIND
from cni.daemon.state.store import Records

log = logging.getLogger(__name__)

T = TypeVar("T")
OWN_ADDRESS = "own address"
NOTES_BEGUN = "begun"  # the key of the record that says that such notes are kept


def node(store: Records) -> Node | None:
    """What an agent told of the node; None if none did."""
    return next((found for _, found in read(store, "node", _node)), None)


def attachments(store: Records) -> list[Attachment]:
    """Every attachment, in the order they were made."""
    return [found for _, found in read(store, "attachment", _attachment)]


def leases(store: Records) -> dict[str, Lease]:
    """The bare leases by address."""
    return dict(read(store, "lease", _lease))


def released(store: Records) -> dict[str, float]:
    """The addresses that rest, and since when on the boot clock."""
    return dict(read(store, KIND, _since))


def own_addresses(store: Records) -> frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that this daemon or an earlier one put on lo."""
    return frozenset(ipaddress.ip_address(key) for key, _ in read(store, OWN_ADDRESS, _own) if key != NOTES_BEGUN)


def _own(key: str, _: bytes) -> None:
    if key != NOTES_BEGUN:
        ipaddress.ip_address(key)


def services(store: Records) -> dict[str, Service]:
    """The services by name."""
    return dict(read(store, "service", _service))


def read(store: Records, kind: str, decode: Callable[[str, bytes], T]) -> Iterator[tuple[str, T]]:
    """The records of a kind by key. `decode` gets key and document, and raises ValueError for what it cannot read."""
    for key, body in store.load(kind):
        try:
            found = decode(key, body)
        except (ValueError, msgspec.DecodeError) as error:  # before 0.21 msgspec's error is no ValueError
            log.error("the record %s %s cannot be read and is set aside: %s", kind, key, error)
            store.apply([(kind, key, None), (f"unreadable {kind}", key, body)])
        else:
            yield key, found


def _node(_: str, body: bytes) -> Node:
    return msgspec.json.decode(body, type=Node)


def _attachment(key: str, body: bytes) -> Attachment:
    found = msgspec.json.decode(body, type=Attachment)
    if encode_key(found.key) != key:
        raise ValueError(f"it is another's: {encode_key(found.key)}")
    for held in found.addresses:
        ipaddress.ip_interface(held.address)
        ipaddress.ip_address(held.gateway)
    return found


def _lease(key: str, body: bytes) -> Lease:
    ipaddress.ip_address(key)
    return msgspec.json.decode(body, type=Lease)


def _since(key: str, body: bytes) -> float:
    ipaddress.ip_address(key)
    since = float(body)
    if not math.isfinite(since):
        raise ValueError("no time")
    return since


def _service(key: str, body: bytes) -> Service:
    found = msgspec.json.decode(body, type=Service)
    if found.name != key:
        raise ValueError(f"it is another's: {found.name}")
    for subnet in found.subnets:
        ipaddress.ip_network(subnet)
    return found
