"""Where a packet was sent before DNAT led it to a socket of this host."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from cni.host import netlink, nlmsg

_GET_FLOW = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_TUPLE_ORIG, _TUPLE_REPLY = 1, 2  # CTA_...
_IP, _PROTO = 1, 2  # CTA_TUPLE_...
_SOURCE, _DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC, ...
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_...
_UNKNOWN = frozenset({errno.ENOENT})
_ORIGINAL_DST = 80  # SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
_PATIENCE = 1.0  # seconds; the kernel answers in some 20 us


class OriginalDestinations:
    """Asks connection tracking. A socket of the constructing thread's namespace, for one thread at a time."""

    def __init__(self) -> None:
        self._socket = netlink.Netlink(_PATIENCE, netlink.NETFILTER)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def of_datagram(self, sender: tuple[str, int], own: tuple[str, int]) -> tuple[str, int] | None:
        """(address, port) that a sender's datagrams were sent to which arrive at the socket `own`; None if that is not
        known, and for what was sent to the socket itself. Raises OSError."""
        there, here = ip_address(sender[0]), ip_address(own[0])
        reply = nlmsg.nested(
            _TUPLE_REPLY,
            nlmsg.nested(
                _IP,
                nlmsg.attribute(_SOURCE[here.version], here.packed),
                nlmsg.attribute(_DESTINATION[here.version], there.packed),
            ),
            nlmsg.nested(
                _PROTO,
                nlmsg.u8(_NUMBER, socket.IPPROTO_UDP),
                nlmsg.attribute(_SOURCE_PORT, own[1].to_bytes(2, "big")),
                nlmsg.attribute(_DESTINATION_PORT, sender[1].to_bytes(2, "big")),
            ),
        )
        family = nlmsg.nfgen(socket.AF_INET if here.version == 4 else socket.AF_INET6)
        answers = self._socket.send(
            [netlink.Message(_GET_FLOW, 0, family + reply, "find a tracked flow", _UNKNOWN)]
        ).answers
        for answer in answers:
            parts = nlmsg.attributes(nlmsg.attributes(answer.body, nlmsg.NFGEN).get(_TUPLE_ORIG, b""))
            addresses, ports = (nlmsg.attributes(parts.get(kind, b"")) for kind in (_IP, _PROTO))
            address, port = addresses.get(_DESTINATION[here.version]), ports.get(_DESTINATION_PORT)
            if address is not None and port is not None:
                found = (str(ip_address(address)), int.from_bytes(port, "big"))
                return None if found == own else found
        return None


def of_connection(sock: socket.socket) -> tuple[str, int] | None:
    """(address, port) that the peer of a TCP connection called; None for the socket's own. Raises OSError."""
    six = sock.family == socket.AF_INET6
    level, size = (socket.IPPROTO_IPV6, 28) if six else (socket.IPPROTO_IP, 16)
    raw = sock.getsockopt(level, _ORIGINAL_DST, size)
    found = (str(ip_address(raw[8:24] if six else raw[4:8])), int.from_bytes(raw[2:4], "big"))
    return None if found == sock.getsockname()[:2] else found
