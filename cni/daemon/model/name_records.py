"""What nodes tell one another of names by the cluster's store, as values: a record for each service of a node.

Below `<prefix>/<deployment>/name/<identity>/`, under the node's lease and signed by the node:

    <service>    the containers and guests of the service on that node
    _            the node's aliases, each with the services that have it, and the names that its agents registered

An ADD changes one record of its node. Other nodes keep the bytes, and read them when the service is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cni.daemon.model.dns_members import Member

INDEX = "_"
LARGEST = 256 << 10  # bytes of a record
MOST_MEMBERS = 2048  # of one service on one node
MOST_NAMES = 4096  # registered on one node


class NamedMember(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One member of a service. `asked`: as in `Member`."""

    container: str = ""
    addresses: tuple[str, ...]
    network: str | None = None
    aliases: tuple[str, ...] = ()
    asked: bool = False


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The members of one service on one node; `signer` as in `NodeDocument`."""

    signer: str
    members: tuple[NamedMember, ...] = ()


class IndexRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node's aliases with their services, and its registered names with their addresses."""

    signer: str
    aliases: dict[str, tuple[str, ...]] = {}
    registered: dict[str, tuple[str, ...]] = {}


def records_of(
    members: Iterable[Member], registered: Mapping[str, tuple[str, ...]], signer: str
) -> dict[str, ServiceRecord | IndexRecord]:
    """The records of a node by the last part of their keys. What exceeds a limit is left out."""
    services: dict[str, list[NamedMember]] = {}
    aliases: dict[str, dict[str, None]] = {}
    for member in members:
        if not member.service or len(services.setdefault(member.service, [])) >= MOST_MEMBERS:
            continue
        services[member.service].append(
            NamedMember(
                container=member.container,
                addresses=member.addresses,
                network=member.network,
                aliases=member.aliases,
                asked=member.asked,
            )
        )
        for alias in member.aliases:
            aliases.setdefault(alias, {})[member.service] = None
    found: dict[str, ServiceRecord | IndexRecord] = {
        service: ServiceRecord(signer=signer, members=tuple(each)) for service, each in services.items()
    }
    if aliases or registered:
        kept = dict(list(registered.items())[:MOST_NAMES])
        found[INDEX] = IndexRecord(
            signer=signer, aliases={alias: tuple(each) for alias, each in aliases.items()}, registered=kept
        )
    return found


def members_of(record: ServiceRecord, service: str, prefix: str) -> list[Member]:
    """The members of another node's record. `prefix`: of their keys."""
    return [
        Member(
            key=f"{prefix}/{service}/{number}",
            place="remote",
            service=service,
            container=each.container,
            addresses=each.addresses,
            network=each.network,
            aliases=each.aliases,
            id=f"{prefix}/{service}/{number}",
            asked=each.asked,
        )
        for number, each in enumerate(record.members)
    ]
