"""Connection tracking: deletes every flow of an address, so that the address's next owner inherits none.

ctnetlink, packed by hand: the kernel lists only the flows of the address (filters: Linux 5.8; an older one lists all,
and this module selects), and each is deleted by its identifying attributes. A walk of the kernel's whole hash table
costs about 10 ms; two walks for an address, one for all of a family when there are many: too long for the event loop.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, ip_address

from cni.host import netlink, nlmsg

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = 0, 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25  # CTA_...
_TUPLE_IP, _ZONE, _ID = 1, 18, 12
_DIRECTIONS = (_TUPLE_ORIG, _TUPLE_REPLY)  # the initiator is the source of the first, the responder of the second
_FEW = 2  # addresses of a family up to which each is listed by itself, with two walks
_NAMES = (_TUPLE_ORIG, _ZONE, _ID)  # the id is unique to a flow: it does not delete a new flow of the same addresses
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_IP_SRC = 1 << 0  # CTA_FILTER_FLAG(CTA_IP_SRC)
_GONE = frozenset({errno.ENOENT})


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
        count = 0
        canonical = {str(ip_address(address)) for address in addresses}
        for version in (4, 6):
            of_version = {address for address in canonical if ip_address(address).version == version}
            flows = dict.fromkeys(flow for dump in self._dumps(of_version) for flow in dump)
            count += sum(self._delete(flow, version) for flow in flows)
        return count

    def _dumps(self, addresses: set[str]) -> Iterator[list[bytes]]:
        """The flows of these addresses of one family: by the kernel's filter for few addresses, by one full dump for
        many.
        """
        sources = {ip_address(address).packed for address in addresses}
        version = 6 if any(":" in address for address in addresses) else 4
        if len(addresses) <= _FEW:
            for address in addresses:
                for direction in _DIRECTIONS:
                    yield list(self._flows(version, sources, _filter(address, direction)))
        else:
            yield list(self._flows(version, sources, b""))

    def _flows(self, version: int, sources: set[bytes], attributes: bytes) -> Iterator[bytes]:
        """The identifying attributes of each flow whose source, in either direction, is in `sources`."""
        request = netlink.Message(_SUBSYSTEM << 8 | _GET, 0, _head(version) + attributes, "list tracked flows")
        for answer in self._socket.stream(request):
            flow = nlmsg.attributes(answer.body, nlmsg.NFGEN)
            if any(_source_of(flow.get(direction, b"")) in sources for direction in _DIRECTIONS):
                yield b"".join(nlmsg.attribute(kind, flow[kind]) for kind in _NAMES if kind in flow)

    def _delete(self, flow: bytes, version: int) -> int:
        request = netlink.Message(_SUBSYSTEM << 8 | _DELETE, 0, _head(version) + flow, "forget a tracked flow", _GONE)
        return int(self._socket.send([request]).errors == [0])


def _head(version: int) -> bytes:
    return nlmsg.nfgen(socket.AF_INET6 if version == 6 else socket.AF_INET)


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
