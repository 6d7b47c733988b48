"""Builds the registries of the slots of the cluster's ranges from the records of the node and the services.

The registry itself, and the rule by which a service gets its slot, are in `subnets.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence

from cni.daemon.model.records import Node, Service
from cni.daemon.model.subnets import Address, Network, SubnetRegistry, fits, further
from cni.errors import InvalidConfig


def registries(
    node: Node,
    services: Collection[Service],
    in_use: Collection[Address],
    foreign: Sequence[Network] = (),
    service_cidr: str | None = None,
) -> dict[int, SubnetRegistry]:
    """The slot registries by family. `in_use`: every address in use; `foreign`: other nodes' slots.

    A slot whose service is gone stays reserved while an address in it is in use. A range that is too small for slots
    has no registry. Raises InvalidConfig if a service holds a subnet that is no slot of the ranges.
    """
    by_family: dict[int, SubnetRegistry] = {}
    for cidr in node.cidrs:
        version = ipaddress.ip_network(cidr).version
        own = part_of(cidr, service_cidr)
        if not fits(own) and not any(service.networks(version) for service in services):
            continue
        segments = SubnetRegistry.over(own).reserve(node.home(version)).reserve_all(foreign)
        for service in services:
            for n, network in enumerate(service.networks(version)):
                segments = segments.hold(service.name, further(str(node.node_id), n), network)
        for address in homeless(version, services, in_use):
            segments = segments.reserve(address)
        by_family[version] = segments
    return by_family


def holds_slots(node: Node, service: Service, service_cidr: str | None = None) -> bool:
    """Whether all subnets of a service, of the families that the node has, are slots of the node's ranges."""
    for cidr in node.cidrs:
        own = part_of(cidr, service_cidr)
        networks = service.networks(ipaddress.ip_network(cidr).version)
        try:
            segments = SubnetRegistry.over(own) if networks else None
            for n, network in enumerate(networks):
                segments = segments.hold(service.name, further(str(node.node_id), n), network) if segments else None
        except InvalidConfig:
            return False
    return True


def part_of(cidr: str, service_cidr: str | None) -> str:
    """The part of a cluster range from which this node's services get their subnets."""
    own = ipaddress.ip_network(service_cidr) if service_cidr else None
    cluster = ipaddress.ip_network(cidr)
    if own is not None and own.version == cluster.version and own.subnet_of(cluster):  # type: ignore[arg-type]
        return str(own)
    return cidr


def homeless(version: int, services: Collection[Service], in_use: Collection[Address]) -> list[Address]:
    """The held addresses of a family that are in no service's subnet."""
    networks = [network for service in services for network in service.networks(version)]
    by_shift: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        by_shift.setdefault(shift, set()).add(int(network.network_address) >> shift)
    mine = [address for address in in_use if address.version == version]
    return [
        address for address in mine if not any(int(address) >> shift in starts for shift, starts in by_shift.items())
    ]
