"""Reads the records of an earlier daemon of this boot as values.

A record that cannot be decoded, or is inconsistent, is set aside under another kind and logged: a file that was changed
from outside must not keep the daemon from starting.
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
NOTES_BEGUN = "begun"  # the key of the record that marks that own addresses are recorded


def node(store: Records) -> Node | None:
    """The node as an agent set it; None if no agent did."""
    return next((record for _, record in read(store, "node", _node)), None)


def attachments(store: Records) -> list[Attachment]:
    """Every attachment, oldest first."""
    return [record for _, record in read(store, "attachment", _attachment)]


def leases(store: Records) -> dict[str, Lease]:
    """The leases without a container, by address."""
    return dict(read(store, "lease", _lease))


def released(store: Records) -> dict[str, float]:
    """The released addresses, with the seconds of the boot clock at their release."""
    return dict(read(store, KIND, _since))


def own_addresses(store: Records) -> frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The overlay's addresses that this daemon or an earlier one has added to lo."""
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
            record = decode(key, body)
        except (ValueError, msgspec.DecodeError) as error:  # before 0.21 msgspec's error is no ValueError
            log.error("the record %s %s cannot be read and is set aside: %s", kind, key, error)
            store.apply([(kind, key, None), (f"unreadable {kind}", key, body)])
        else:
            yield key, record


def _node(_: str, body: bytes) -> Node:
    return msgspec.json.decode(body, type=Node)


def _attachment(key: str, body: bytes) -> Attachment:
    attachment = msgspec.json.decode(body, type=Attachment)
    if encode_key(attachment.key) != key:
        raise ValueError(f"it is another's: {encode_key(attachment.key)}")
    for assigned in attachment.addresses:
        ipaddress.ip_interface(assigned.address)
        ipaddress.ip_address(assigned.gateway)
    return attachment


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
    service = msgspec.json.decode(body, type=Service)
    if service.name != key:
        raise ValueError(f"it is another's: {service.name}")
    for subnet in service.subnets:
        ipaddress.ip_network(subnet)
    return service
