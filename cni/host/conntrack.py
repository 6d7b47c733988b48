"""Connection tracking: deletes every flow of an address, so that the address's next owner inherits none.

ctnetlink, packed by hand. A walk of the kernel's whole hash table costs about 10 ms, whatever is in it: too long for
the event loop. Without flows there is none, and with up to `FEW_FLOWS` there is one, whose flows this module selects.
Where more are tracked, the kernel lists only the flows of an address (filters: Linux 5.8; an older one lists all), by
two walks for an address, one for all of a family when there are many. Each flow is deleted by its identifying
attributes.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from cni.host import netlink, nlmsg

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE, _STATS = 1, 2, 5
_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25  # CTA_...
_TUPLE_IP, _ZONE, _ID = 1, 18, 12
_TUPLE_PROTO, _PROTO_NUM, _PROTO_SRC_PORT, _V4_SRC = 2, 1, 2, 1  # CTA_...
_DIRECTIONS = (_TUPLE_ORIG, _TUPLE_REPLY)  # the initiator is the source of the first, the responder of the second
FEW_FLOWS = 1000  # flows up to which all are listed: to select one here costs 10 µs
_FEW = 2  # addresses of a family up to which each is listed by itself, with two walks
_NAMES = (_TUPLE_ORIG, _ZONE, _ID)  # the id is unique to a flow: it does not delete a new flow of the same addresses
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_IP_SRC = 1 << 0  # CTA_FILTER_FLAG(CTA_IP_SRC)
_GONE = frozenset({errno.ENOENT})


class Flow(NamedTuple):
    """A tracked flow: its address family, and the attributes that identify it."""

    family: int
    names: bytes


class Conntrack:
    """A ctnetlink socket of the constructing thread's namespace; any thread may use it, one at a time."""

    def __init__(self) -> None:
        self._socket = netlink.Netlink(5.0, netlink.NETFILTER)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def forget(self, addresses: Iterable[str]) -> int:
        """Deletes every flow that one of `addresses` opened or answers, translated or not; returns how many.

        Idempotent. Raises OSError.
        """
        by_version: dict[int, set[str]] = {}
        for address in map(ip_address, addresses):
            by_version.setdefault(address.version, set()).add(str(address))
        if not by_version:
            return 0
        tracked = self._tracked()
        if tracked <= FEW_FLOWS:
            sources = {ip_address(address).packed for some in by_version.values() for address in some}
            found = dict.fromkeys(self._flows(0, sources, b"")) if tracked else {}
            return sum(map(self._delete, found))
        count = 0
        for version, of_version in by_version.items():
            flows = dict.fromkeys(flow for dump in self._dumps(version, of_version) for flow in dump)
            count += sum(map(self._delete, flows))
        return count

    def forget_udp(self, source: str, destination: str) -> bool:
        """Deletes the flow over IPv4 that a datagram from `source` to `destination`, `address:port` each, has opened;
        returns whether there was one. Raises OSError.
        """
        split = (end.rpartition(":") for end in (source, destination))
        ends = [(ip_address(host), int(port)) for host, _, port in split]
        addresses = [nlmsg.attribute(kind, address.packed) for kind, (address, _) in enumerate(ends, _V4_SRC)]
        ports = [nlmsg.attribute(kind, port.to_bytes(2, "big")) for kind, (_, port) in enumerate(ends, _PROTO_SRC_PORT)]
        protocol = nlmsg.attribute(_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
        tuple_ = nlmsg.nested(
            _TUPLE_ORIG, nlmsg.nested(_TUPLE_IP, *addresses), nlmsg.nested(_TUPLE_PROTO, protocol, *ports)
        )
        return self._delete(Flow(socket.AF_INET, tuple_)) == 1

    def _tracked(self) -> int:
        """The number of tracked flows of this network namespace, of every kind."""
        request = netlink.Message(_SUBSYSTEM << 8 | _STATS, 0, nlmsg.nfgen(0), "count tracked flows")
        answers = self._socket.send([request]).answers
        counted = nlmsg.attributes(answers[0].body, nlmsg.NFGEN).get(_ENTRIES, b"") if answers else b""
        return int.from_bytes(counted, "big") if counted else FEW_FLOWS + 1

    def _dumps(self, version: int, addresses: set[str]) -> Iterator[list[Flow]]:
        """The flows of these addresses of one IP version: by the kernel's filter for few addresses, by one full dump
        for many.
        """
        sources = {ip_address(address).packed for address in addresses}
        if len(addresses) <= _FEW:
            for address in addresses:
                for direction in _DIRECTIONS:
                    yield list(self._flows(_FAMILIES[version], sources, _filter(address, direction)))
        else:
            yield list(self._flows(_FAMILIES[version], sources, b""))

    def _flows(self, family: int, sources: set[bytes], attributes: bytes) -> Iterator[Flow]:
        """Each flow whose source, in either direction, is in `sources`. `family` 0: of all families."""
        request = netlink.Message(_SUBSYSTEM << 8 | _GET, 0, nlmsg.nfgen(family) + attributes, "list tracked flows")
        for answer in self._socket.stream(request):
            flow = nlmsg.attributes(answer.body, nlmsg.NFGEN)
            if any(_source_of(flow.get(direction, b"")) in sources for direction in _DIRECTIONS):
                names = b"".join(nlmsg.attribute(kind, flow[kind]) for kind in _NAMES if kind in flow)
                yield Flow(answer.body[0], names)

    def _delete(self, flow: Flow) -> int:
        body = nlmsg.nfgen(flow.family) + flow.names
        request = netlink.Message(_SUBSYSTEM << 8 | _DELETE, 0, body, "forget a tracked flow", _GONE)
        return int(self._socket.send([request]).errors == [0])


def _filter(address: str, direction: int) -> bytes:
    """The request attributes that select the flows whose source in `direction` is `address`."""
    asked, other = (
        (_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS)
        if direction == _TUPLE_ORIG
        else (_FILTER_REPLY_FLAGS, _FILTER_ORIG_FLAGS)
    )
    flags = nlmsg.nested(_FILTER, nlmsg.u32(asked, _IP_SRC), nlmsg.u32(other, 0))
    return nlmsg.nested(direction, nlmsg.nested(_TUPLE_IP, _source(address))) + flags


def _source(address: str) -> bytes:
    packed = ip_address(address)
    return nlmsg.attribute(1 if isinstance(packed, IPv4Address) else 3, packed.packed)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC


def _source_of(tuple_: bytes) -> bytes:
    inside = nlmsg.attributes(nlmsg.attributes(tuple_).get(_TUPLE_IP, b""))
    return inside.get(1) or inside.get(3) or b""
